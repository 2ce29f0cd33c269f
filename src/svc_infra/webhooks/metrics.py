"""Metrics of deliveries. Without labels of tenants or URLs: each value is a series of its own."""

from __future__ import annotations

from prometheus_client import Counter

ATTEMPTS = Counter(
    "billing_webhook_attempts",
    "Recorded delivery attempts by the class of what came out (delivery.AttemptOutcome).",
    ["outcome"],
)
