"""Billing's metrics. Without tenant labels: each value of a label is a time series of its own."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

USAGE_INGESTED = Counter(
    "billing_usage_ingest_total",
    "Usage events by what became of them: inserted, duplicate, conflict or rejected.",
    ["result"],
)
AGGREGATE_MILLISECONDS = Histogram(
    "billing_aggregate_duration_ms",
    "How long one recompute of daily totals took, of one day or of a batch, in milliseconds.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000),
)
INVOICES_GENERATED = Counter(
    "billing_invoice_generated_total", "Invoices made (found again ones not counted)."
)
QUOTA_REFUSALS = Counter("billing_quota_refusals", "Requests that a hard quota refused.")
