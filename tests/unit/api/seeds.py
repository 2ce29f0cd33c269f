"""What the owner in the matrix of routes and roles has. A new path parameter gets its id here."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.billing import BillingService
from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.credit_notes import credit_invoice
from svc_infra.billing.entitlements import reserve
from svc_infra.billing.models import Invoice, PendingLine
from svc_infra.billing.subscriptions import subscribe
from tests.unit.api.route_matrix import OWNER, Seeds, Sessions
from tests.unit.api.seeds_beside_billing import sow_jobs, sow_webhooks

CANARY = "canary-7f3a"
JANUARY, FEBRUARY = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC)
CATALOG = """
[[plans]]
key = "matrix"
name = "Matrix"
default = true

[[plans.entitlements]]
key = "calls"
limit = 1000
window = "day"

[[plans]]
key = "team"
name = "Another"

[[prices]]
key = "usage"
plan = "matrix"
currency = "usd"
model = "per_unit"
metric = "calls"
unit_amount = "2.5"

[[prices]]
key = "base"
plan = "matrix"
currency = "usd"
model = "fixed"
recurring_interval = "month"
unit_amount = "1000"
"""


async def sow(sessions: Sessions) -> Seeds:
    """Give the owner one of everything."""
    seeds = Seeds(canaries=[CANARY])
    async with sessions.begin() as session:
        await session.run_sync(sow_billing, seeds)
        await session.run_sync(sow_webhooks, seeds)
        await session.run_sync(sow_jobs, seeds)
    return seeds


def sow_billing(session: Session, seeds: Seeds, tenant_id: str = OWNER) -> None:
    """A plan, usage, and an invoice of January 2025 with a credit note."""
    apply_catalog(session, parse_catalog(CATALOG), now=JANUARY, is_retroactive=True)
    seeds.shared["plan_key"] = "matrix"
    seeds.ids["entitlement_key"] = "calls"
    seeds.ids["subscription_id"] = subscribe(
        session, tenant_id=tenant_id, plan_key="matrix", effective_at=JANUARY, now=JANUARY
    )
    held = reserve(session, tenant_id, "calls", 1, now=JANUARY, lives_seconds=1e9)
    seeds.ids["reservation_id"] = held.id
    billing = BillingService(session, tenant_id)
    at = datetime(2025, 1, 10, 9, tzinfo=UTC)
    seeds.ids["event_id"] = billing.record_usage("calls", 12, at, CANARY, {"note": CANARY})
    billing.aggregate_daily("calls", at)
    invoice_id = seeds.ids["invoice_id"] = billing.generate_monthly_invoice(JANUARY, FEBRUARY, "usd")
    assert session.scalars(select(Invoice.total_amount)).one() == 1000 + 30
    session.add(
        PendingLine(
            tenant_id=tenant_id,
            currency="usd",
            kind="credit",
            description=CANARY,
            period_start=JANUARY,
            period_end=FEBRUARY,
            quantity=Decimal(1),
            amount=-5,
        )
    )
    note = credit_invoice(
        session, tenant_id, invoice_id, reason=CANARY, actor=CANARY, amount=10, now=FEBRUARY
    )
    seeds.ids["credit_note_id"] = note.id
