"""What an invoice would be: made by the very code that bills, in a savepoint that is rolled back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from svc_infra.billing.catalog import Catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.first_use import ready
from svc_infra.billing.invoices import get_invoice, invoice_lines
from svc_infra.billing.invoicing import InvoiceRequest, generate_invoices
from svc_infra.billing.models import Price, Subscription
from svc_infra.billing.periods import Period, local_day, month_bounds
from svc_infra.billing.tenants import zones_of
from svc_infra.db.tenant_isolation import as_owner
from svc_infra.exceptions import PeriodOverlap


@dataclass(frozen=True, slots=True)
class PreviewLine:
    """A line as it would be; ``quantity`` is not money, ``amount`` is, in minor units."""

    kind: str
    metric: str | None
    description: str
    period: Period
    quantity: Decimal
    amount: int


@dataclass(frozen=True, slots=True)
class InvoicePreview:
    """An invoice as it would be made now for the whole period, from the usage recorded so far."""

    tenant_id: str
    currency: str
    period: Period
    total_amount: int
    lines: tuple[PreviewLine, ...]


def preview_invoices(
    session: Session,
    tenant_id: str,
    *,
    now: datetime,
    month: tuple[int, int] | None = None,
    catalog: Catalog | None = None,
) -> list[InvoicePreview]:
    """What a tenant's invoices of a calendar month would be, one for each currency of its prices.

    ``month`` is (year, month), the one that ``now`` falls in unless given. With ``catalog`` they are as if
    that held from the beginning of the month. Nothing is kept: everything happens in a savepoint that is
    rolled back. It holds the tenant's lock until then, as billing does.

    Raises:
        PeriodOverlap: the month was invoiced already.
        InvalidCatalog, AmbiguousPrice, AmountTooLarge and what else billing it would raise.
    """
    ready(session)
    session.flush()
    zone = zones_of(session, [tenant_id])[tenant_id]
    today = local_day(now, zone)
    period = month_bounds(*(month or (today.year, today.month)), zone)
    savepoint = session.begin_nested()
    try:
        if catalog is not None:
            from_start = local_day(period.start, zone)
            with as_owner(session):
                apply_catalog(session, catalog, now=now, effective_on=from_start, is_retroactive=True)
        return [
            _preview(session, InvoiceRequest(tenant_id, period.start, period.end, currency), now)
            for currency in _currencies(session, tenant_id, period)
        ]
    finally:
        savepoint.rollback()


def _preview(session: Session, request: InvoiceRequest, now: datetime) -> InvoicePreview:
    # Not before the period has ended: a grace after it would make a draft without what waits for an invoice.
    [result] = generate_invoices(session, [request], now=max(now, request.period_end))
    if result.error is not None:
        raise result.error
    if not result.is_new or result.invoice_id is None:
        raise PeriodOverlap(
            f"tenant {request.tenant_id!r} is invoiced in {request.currency} for this month already; "
            f"'worker.py invoices explain {result.invoice_id}' says how"
        )
    invoice = get_invoice(session, request.tenant_id, result.invoice_id)
    lines = [
        PreviewLine(
            line.kind,
            line.metric,
            line.description,
            Period(line.period_start, line.period_end),
            line.quantity,
            line.amount,
        )
        for line in invoice_lines(session, request.tenant_id, result.invoice_id)
    ]
    period = Period(request.period_start, request.period_end)
    return InvoicePreview(request.tenant_id, invoice.currency, period, invoice.total_amount, tuple(lines))


def _currencies(session: Session, tenant_id: str, period: Period) -> list[str]:
    """The currencies of the prices that apply to a tenant in a period."""
    plans = select(Subscription.plan_id).where(
        Subscription.tenant_id == tenant_id,
        Subscription.effective_at < period.end,
        or_(Subscription.ended_at.is_(None), Subscription.ended_at > period.start),
    )
    applying = or_(Price.plan_id.is_(None), Price.plan_id.in_(plans))
    return list(session.scalars(select(Price.currency).where(applying).distinct().order_by(Price.currency)))
