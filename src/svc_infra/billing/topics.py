"""The webhook topics that billing publishes, for the event catalogue."""

from __future__ import annotations

from svc_infra.billing.jobs import INVOICE_CREATED, USAGE_AGGREGATED
from svc_infra.billing.quota_alerts import QUOTA_THRESHOLD
from svc_infra.billing.schemas import InvoiceCreated, QuotaThreshold, UsageAggregated
from svc_infra.webhooks.catalogue import TopicCatalogue


def billing_topics() -> TopicCatalogue:
    """Return billing's topics, each with its payload, a description and an example."""
    topics = TopicCatalogue()
    topics.add(
        USAGE_AGGREGATED,
        UsageAggregated,
        description="The total of a metric over one day of a tenant was computed or has changed.",
        example={
            "tenant_id": "t1",
            "metric": "api_calls",
            "day_start": "2025-01-31T00:00:00Z",
            "total": "1250.5",
        },
    )
    topics.add(
        INVOICE_CREATED,
        InvoiceCreated,
        description="An invoice was created for a tenant and a period.",
        example={
            "tenant_id": "t1",
            "invoice_id": "0194b1e0-0000-7000-8000-000000000009",
            "period_start": "2025-01-01T00:00:00Z",
            "period_end": "2025-02-01T00:00:00Z",
            "currency": "usd",
        },
    )
    topics.add(
        QUOTA_THRESHOLD,
        QuotaThreshold,
        description="A tenant has used a share of its quota in this window for the first time.",
        example={
            "tenant_id": "t1",
            "key": "reports",
            "window": "day",
            "window_start": "2025-01-31T00:00:00Z",
            "window_end": "2025-02-01T00:00:00Z",
            "percent": 80,
            "limit": 100,
            "used": "80",
        },
    )
    return topics
