"""Why a line costs what it costs: its price, tier by tier, and the usage that it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from functools import cache

from sqlalchemy import Executable, Integer, bindparam, func, literal, select, union_all
from sqlalchemy.orm import Session

from svc_infra.billing.columns import MetricText
from svc_infra.billing.invoices import get_invoice, invoice_lines
from svc_infra.billing.models import Invoice, InvoiceLine, UsageAggregate
from svc_infra.billing.rating import PriceTerms, TierCharge, rate
from svc_infra.billing.usage_models import RECORDED, ArchivedUsage
from svc_infra.db.base import UtcDateTime
from svc_infra.db.rowset import Rowset

_LINES = Rowset(
    "explained", position=Integer, metric=MetricText, period_start=UtcDateTime, period_end=UtcDateTime
)


@dataclass(frozen=True, slots=True)
class ExplainedLine:
    """A line with what entered it.

    ``tiers`` are exact and stand before the ``ratio`` of a prorated price and before a minimum or maximum of
    its ``terms``; none for a line that its price alone does not explain (an adjustment, a credit, a price by
    the event). ``days`` are the stored totals of the metric in the line's period, ``events`` how many were
    recorded in it, the first and last by the instant of use; ``archived_events`` of them were archived since.
    """

    line: InvoiceLine
    terms: PriceTerms | None
    tiers: tuple[TierCharge, ...]
    ratio: Fraction
    days: tuple[tuple[datetime, Decimal], ...]
    events: int
    archived_events: int
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
    used = _usage_of(session, tenant_id, lines)
    return Explanation(invoice, tuple(_explained(line, used.get(line.position, _Used())) for line in lines))


@dataclass(slots=True)
class _Used:
    days: list[tuple[datetime, Decimal]] = field(default_factory=list)
    events: int = 0
    archived: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None


def _explained(line: InvoiceLine, used: _Used) -> ExplainedLine:
    terms = None if line.price_snapshot is None else PriceTerms.from_snapshot(line.price_snapshot)
    details = line.details or {}
    tiers: tuple[TierCharge, ...] = ()
    if terms is not None and line.kind in ("fixed", "usage", "unused") and terms.per_event is None:
        tiers = rate(terms, line.quantity).breakdown
    ratio = Fraction(details.get("ratio", 1))
    return ExplainedLine(
        *(line, terms, tiers, ratio, tuple(used.days)),
        *(used.events, used.archived, used.first_at, used.last_at),
    )


def _usage_of(session: Session, tenant_id: str, lines: Iterable[InvoiceLine]) -> dict[int, _Used]:
    """The days and events in the periods of lines with a metric, by the lines' positions."""
    rows = [
        (line.position, line.metric, line.period_start, line.period_end)
        for line in lines
        if line.metric is not None
    ]
    used = {position: _Used() for position, *_ in rows}
    if rows:
        dialect = session.get_bind().dialect.name
        asked = {**_LINES.parameters(dialect, rows), "tenant_id": tenant_id}
        for position, day_start, total in session.execute(_days(dialect), asked):
            used[position].days.append((day_start, total))
        for position, is_archived, count, first_at, last_at in session.execute(_events(dialect), asked):
            each = used[position]
            each.events += count
            each.archived += count if is_archived else 0
            each.first_at = min(first_at, each.first_at or first_at)
            each.last_at = max(last_at, each.last_at or last_at)
    return used


@cache
def _days(dialect: str) -> Executable:
    line, day = _LINES.table(dialect).c, UsageAggregate
    return (
        select(line.position, day.period_start, day.total)
        .where(
            day.tenant_id == bindparam("tenant_id"),
            day.metric == line.metric,
            day.granularity == "day",
            day.period_start >= line.period_start,
            day.period_start < line.period_end,
        )
        .order_by(line.position, day.period_start)
    )


@cache
def _events(dialect: str) -> Executable:
    """(position, is archived, how many, first, last), in one statement: an event is in one of the two."""
    line = _LINES.table(dialect).c
    return union_all(
        *(
            select(
                line.position,
                literal(event is ArchivedUsage),
                func.count(),
                func.min(event.at_ts),
                func.max(event.at_ts),
            )
            .where(
                event.tenant_id == bindparam("tenant_id"),
                event.metric == line.metric,
                event.at_ts >= line.period_start,
                event.at_ts < line.period_end,
            )
            .group_by(line.position)
            for event in RECORDED
        )
    )
