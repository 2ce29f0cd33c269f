"""What became of a usage event, derived from its day, its corrections and the invoices: never rewritten."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias

from sqlalchemy import and_, exists, select
from sqlalchemy.orm import Session

from svc_infra.billing.dimensions import DimensionFilter, filter_of
from svc_infra.billing.models import Invoice, InvoiceLine, UsageDirtyDay
from svc_infra.billing.periods import Period, day_bounds
from svc_infra.billing.tenants import zones_of
from svc_infra.billing.usage_corrections import correction_of, recorded_event, recorded_usage
from svc_infra.billing.usage_event import NewUsage
from svc_infra.billing.usage_models import UsageCorrection
from svc_infra.db.metadata_text import text_of

State: TypeAlias = Literal["waiting", "counted", "billed", "adjusted", "voided", "amended"]


@dataclass(frozen=True, slots=True)
class UsageLine:
    """An invoice line that the event is on. ``amount`` is money in minor units, of the whole line."""

    invoice_id: str
    invoice: str
    status: str
    line_id: str
    position: int
    kind: str
    period: Period
    quantity: Decimal
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class UsageState:
    """An event and what became of it.

    ``waiting``: its day has a mark, so the day's total may not count it yet. ``counted``: it is in the total
    of its day, and on no line. ``billed``: on a line of its period's invoice. ``adjusted``: it came after
    that invoice, and an adjustment line settled it. ``voided``, ``amended``: a correction took it out;
    ``lines`` are then those that had billed it, with the adjustments since. ``archived_at`` is when it was
    moved to the archive, which changes nothing of this.
    """

    event_id: str
    event: NewUsage
    recorded_at: datetime
    archived_at: datetime | None
    day: Period
    state: State
    lines: tuple[UsageLine, ...]
    correction: UsageCorrection | None


def usage_state(session: Session, tenant_id: str, event_id: str) -> UsageState:
    """Find out what became of a tenant's event; NotFound if it has none of this id."""
    event = recorded_usage(session, tenant_id, event_id)
    row = recorded_event(session, tenant_id, event_id)
    recorded_at, archived_at = row.created_at, getattr(row, "archived_at", None)
    day = day_bounds(event.at, zones_of(session, [tenant_id])[tenant_id])
    correction = correction_of(session, tenant_id, event_id)
    lines = _lines(session, event, recorded_at)
    state = _state(lines, correction, is_waiting=_has_mark(session, event, day))
    return UsageState(event_id, event, recorded_at, archived_at, day, state, tuple(lines), correction)


def _state(lines: list[UsageLine], correction: UsageCorrection | None, *, is_waiting: bool) -> State:
    if correction is not None:
        return "voided" if correction.kind == "void" else "amended"
    kinds = {line.kind for line in lines if line.status != "draft"}
    if "usage" in kinds:
        return "billed"
    if "adjustment" in kinds:
        return "adjusted"
    return "waiting" if is_waiting else "counted"


def _has_mark(session: Session, event: NewUsage, day: Period) -> bool:
    mark = exists().where(
        UsageDirtyDay.tenant_id == event.tenant_id,
        UsageDirtyDay.metric == event.metric,
        UsageDirtyDay.day_start == day.start,
    )
    return bool(session.scalar(select(mark)))


def _lines(session: Session, event: NewUsage, recorded_at: datetime) -> list[UsageLine]:
    """The lines whose price and period the event falls under, those of void invoices left out.

    An invoice issued before the event was recorded cannot have it on its usage line, and an adjustment made
    before that is not about it.
    """
    query = (
        select(InvoiceLine, Invoice)
        .join(
            Invoice,
            and_(Invoice.tenant_id == InvoiceLine.tenant_id, Invoice.id == InvoiceLine.invoice_id),
        )
        .where(
            InvoiceLine.tenant_id == event.tenant_id,
            InvoiceLine.metric == event.metric,
            InvoiceLine.period_start <= event.at,
            InvoiceLine.period_end > event.at,
            InvoiceLine.kind.in_(["usage", "adjustment"]),
            InvoiceLine.created_at >= recorded_at,
            Invoice.status != "void",
        )
        .order_by(InvoiceLine.created_at, InvoiceLine.position)
    )
    found = [(line, invoice) for line, invoice in session.execute(query)]
    filters: dict[str, set[DimensionFilter]] = defaultdict(set)
    for line, _ in found:
        filters[line.invoice_id].add(_filter(line))
    return [
        UsageLine(
            invoice.id,
            f"{invoice.series}-{invoice.number}" if invoice.number is not None else "draft",
            invoice.status,
            line.id,
            line.position,
            line.kind,
            Period(line.period_start, line.period_end),
            line.quantity,
            line.amount,
            invoice.currency,
        )
        for line, invoice in found
        if _is_for(event, line, filters[line.invoice_id])
    ]


def _filter(line: InvoiceLine) -> DimensionFilter:
    return DimensionFilter.of((line.price_snapshot or {}).get("filter", {}))


def _is_for(event: NewUsage, line: InvoiceLine, filters: Collection[DimensionFilter]) -> bool:
    """Whether the event falls under this line's filter, of those of the invoice, and under its group.

    The filter that an event falls under has a line on the invoice that billed the event.
    """
    keys = {key for each in filters for key in each.keys}
    values = {key: text_of(event.metadata_json, key) for key in keys}
    group = zip(
        (line.price_snapshot or {}).get("group_by", ()), (line.details or {}).get("group", ()), strict=False
    )
    return filter_of(values, filters) == _filter(line) and all(
        text_of(event.metadata_json, key) == text for key, text in group
    )
