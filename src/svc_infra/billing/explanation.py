"""Why a line costs what it costs: its price, tier by tier, and the usage that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from svc_infra.billing.invoices import get_invoice, invoice_lines
from svc_infra.billing.models import Invoice, InvoiceLine, UsageAggregate, UsageEvent
from svc_infra.billing.rating import PriceTerms, TierCharge, rate


@dataclass(frozen=True, slots=True)
class ExplainedLine:
    """A line with what entered it.

    ``tiers`` are exact and stand before the ``ratio`` of a prorated price and before a minimum or maximum of
    its ``terms``; none for a line that its price alone does not explain (an adjustment, a credit, a price by
    the event). ``days`` are the stored totals of the metric in the line's period, ``events`` how many were
    recorded in it, the first and last by the instant of use.
    """

    line: InvoiceLine
    terms: PriceTerms | None
    tiers: tuple[TierCharge, ...]
    ratio: Fraction
    days: tuple[tuple[datetime, Decimal], ...]
    events: int
    first_event_at: datetime | None
    last_event_at: datetime | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """An invoice with its lines explained."""

    invoice: Invoice
    lines: tuple[ExplainedLine, ...]


def explain_invoice(session: Session, tenant_id: str, invoice_id: str) -> Explanation:
    """Explain an invoice from what its lines keep and from the usage as it is recorded now.

    Raises:
        NotFound: the tenant has no such invoice.
    """
    invoice = get_invoice(session, tenant_id, invoice_id)
    lines = invoice_lines(session, tenant_id, invoice_id)
    return Explanation(invoice, tuple(_explained(session, line) for line in lines))


def _explained(session: Session, line: InvoiceLine) -> ExplainedLine:
    terms = None if line.price_snapshot is None else PriceTerms.from_snapshot(line.price_snapshot)
    details = line.details or {}
    tiers: tuple[TierCharge, ...] = ()
    if terms is not None and line.kind in ("fixed", "usage", "unused") and terms.per_event is None:
        tiers = rate(terms, line.quantity).breakdown
    days: tuple[tuple[datetime, Decimal], ...] = ()
    count, first, last = 0, None, None
    if line.metric is not None:
        days = _days(session, line)
        event = UsageEvent
        count, first, last = session.execute(
            select(func.count(), func.min(event.at_ts), func.max(event.at_ts)).where(
                event.tenant_id == line.tenant_id,
                event.metric == line.metric,
                event.at_ts >= line.period_start,
                event.at_ts < line.period_end,
            )
        ).one()
    return ExplainedLine(line, terms, tiers, Fraction(details.get("ratio", 1)), days, count, first, last)


def _days(session: Session, line: InvoiceLine) -> tuple[tuple[datetime, Decimal], ...]:
    day = UsageAggregate
    rows = session.execute(
        select(day.period_start, day.total)
        .where(
            day.tenant_id == line.tenant_id,
            day.metric == line.metric,
            day.granularity == "day",
            day.period_start >= line.period_start,
            day.period_start < line.period_end,
        )
        .order_by(day.period_start)
    )
    return tuple((row.period_start, row.total) for row in rows)
