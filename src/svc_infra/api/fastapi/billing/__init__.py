"""Billing over HTTP: usage in, daily totals out."""
