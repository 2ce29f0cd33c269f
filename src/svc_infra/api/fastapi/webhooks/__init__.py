"""Webhooks over HTTP: endpoints, secrets, deliveries, replays and the event catalogue."""
