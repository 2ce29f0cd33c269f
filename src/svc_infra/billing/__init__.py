"""Usage-based billing: usage events, daily aggregates, a price catalog, subscriptions and invoices."""

from __future__ import annotations

from svc_infra.billing.models import (
    Invoice,
    InvoiceLine,
    Plan,
    PlanEntitlement,
    Price,
    Subscription,
    UsageAggregate,
    UsageEvent,
)
from svc_infra.billing.service import BillingService

__all__ = [
    "BillingService",
    "Invoice",
    "InvoiceLine",
    "Plan",
    "PlanEntitlement",
    "Price",
    "Subscription",
    "UsageAggregate",
    "UsageEvent",
]
