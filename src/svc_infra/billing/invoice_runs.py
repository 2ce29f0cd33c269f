"""What the daily run enqueues beside aggregation: anniversaries, drafts that are due, late usage.

Each takes what is due at the fire and is not done yet, so repeating one is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from svc_infra.billing import invoice_statements as statements
from svc_infra.billing.columns import CALENDAR_CYCLE
from svc_infra.billing.cycles import parse_cycle
from svc_infra.billing.invoice_closing import tenants_without_next_invoice
from svc_infra.billing.invoice_jobs import finalize_request, late_usage_request
from svc_infra.billing.invoice_models import Invoice
from svc_infra.billing.models import Price, Subscription, Tenant
from svc_infra.billing.periods import Period, zone
from svc_infra.billing.schemas import GenerateMonthlyInvoice
from svc_infra.jobs.job import JobRequest
from svc_infra.jobs.sql import insert_jobs

GENERATE_MONTHLY_INVOICE = "billing.generate_monthly_invoice"

# A period of any zone that ended at the fire before this one is seen by this one at the latest.
_RECENT = timedelta(days=2)
_PAGE = 1_000


class DueInvoice(NamedTuple):
    """An invoice that is to be made."""

    tenant_id: str
    currency: str
    period: Period
    cycle: str = CALENDAR_CYCLE

    def request(self, queue: str) -> JobRequest:
        """The job that makes it."""
        payload = GenerateMonthlyInvoice(
            tenant_id=self.tenant_id,
            period_start=self.period.start,
            period_end=self.period.end,
            currency=self.currency,
            cycle=self.cycle,
        )
        return JobRequest(
            GENERATE_MONTHLY_INVOICE, payload.to_payload(), queue=queue, tenant_id=self.tenant_id
        )


class Currencies:
    """The currencies in which a tenant is invoiced: those of the prices that apply to it."""

    def __init__(self, session: Session, default: str) -> None:
        self._default = default
        self._by_plan: dict[str | None, set[str]] = {}
        for plan_id, currency in session.execute(select(Price.plan_id, Price.currency).distinct()):
            self._by_plan.setdefault(plan_id, set()).add(currency)

    @property
    def has_planless_prices(self) -> bool:
        """Whether some price bills every tenant."""
        return None in self._by_plan

    def of(self, plan_ids: set[str], *, with_planless: bool = True) -> list[str]:
        """The currencies of these plans, and with the calendar's invoices those of every tenant's prices."""
        found = set(self._by_plan.get(None, ())) if with_planless else set()
        for plan_id in plan_ids:
            found |= self._by_plan.get(plan_id, set())
        return sorted(found) or [self._default]


def enqueue_due(
    session: Session, fire_at: datetime, queue: str, now: datetime, *, default_currency: str
) -> None:
    """Enqueue the invoices of anniversaries that have passed, and what is due of drafts and late usage."""
    for page in _anniversaries(session, fire_at, Currencies(session, default_currency)):
        missing = without_invoice(session, page)
        insert_jobs(session, [each.request(queue) for each in missing], now=now)
    due = select(Invoice.tenant_id, Invoice.id).where(
        Invoice.status == "draft", Invoice.finalize_after <= fire_at
    )
    drafts = session.execute(due.order_by(Invoice.finalize_after)).all()
    insert_jobs(session, [finalize_request(*row, queue) for row in drafts], now=now)
    waiting = tenants_without_next_invoice(session, now=fire_at)
    insert_jobs(session, [late_usage_request(tenant_id, queue) for tenant_id in waiting], now=now)


def without_invoice(session: Session, due: list[DueInvoice]) -> list[DueInvoice]:
    """Those that have no invoice of this very period yet."""
    dialect = session.get_bind().dialect.name
    rows = [
        (at, each.tenant_id, each.cycle, each.currency, each.period.start, each.period.end)
        for at, each in enumerate(due)
    ]
    found = session.execute(
        statements.overlapping_invoices(dialect), statements.REQUESTS.parameters(dialect, rows)
    )
    done = {at for at, _, start, end in found if Period(start, end) == due[at].period}
    return [each for at, each in enumerate(due) if at not in done]


def _anniversaries(session: Session, fire_at: datetime, currencies: Currencies) -> Iterator[list[DueInvoice]]:
    """Pages of the invoices of cycles whose period ended a short while before the fire."""
    own = select(Subscription.cycle, func.coalesce(Tenant.timezone, "UTC")).outerjoin(
        Tenant, Tenant.tenant_id == Subscription.tenant_id
    )
    for name, timezone in session.execute(own.where(Subscription.cycle != CALENDAR_CYCLE).distinct()).all():
        period = parse_cycle(name).period_before(fire_at, zone(timezone))
        if period.end > fire_at - _RECENT:
            yield from _subscribed(session, name, timezone, period, currencies)


def _subscribed(
    session: Session, cycle: str, timezone: str, period: Period, currencies: Currencies
) -> Iterator[list[DueInvoice]]:
    after = ""
    while True:
        tenant_ids = (
            select(Subscription.tenant_id, Subscription.plan_id)
            .outerjoin(Tenant, Tenant.tenant_id == Subscription.tenant_id)
            .where(
                Subscription.cycle == cycle,
                Subscription.tenant_id > after,
                func.coalesce(Tenant.timezone, "UTC") == timezone,
                Subscription.effective_at < period.end,
                or_(Subscription.ended_at.is_(None), Subscription.ended_at > period.start),
            )
            .order_by(Subscription.tenant_id)
            .limit(_PAGE)
        )
        rows = session.execute(tenant_ids).all()
        plans: dict[str, set[str]] = {}
        for tenant_id, plan_id in rows:
            plans.setdefault(tenant_id, set()).add(plan_id)
        if len(rows) == _PAGE and len(plans) > 1:
            plans.popitem()  # the last tenant may have more plans on the next page
        if not plans:
            return
        after = max(plans)
        yield [
            DueInvoice(tenant_id, currency, period, cycle)
            for tenant_id, plan_ids in plans.items()
            for currency in currencies.of(plan_ids, with_planless=False)
        ]
