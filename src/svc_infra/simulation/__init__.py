"""Billing a history in simulated time, and the independent recomputation that proves the result."""
