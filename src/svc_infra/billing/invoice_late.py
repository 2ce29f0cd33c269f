"""Late usage: what recomputed days change about issued invoices becomes a pending line of the next one.

Every recompute leaves a note of its tenant, metric and month, in its own transaction. Invoicing consumes the
notes of its tenants under their lock and compares every issued invoice of those months with what its period
comes to now: rate(new total of the period) less everything billed for it. An event that commits later leaves
a note of its own, so nothing is missed and nothing is adjusted twice, whatever the order of the jobs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.billing import invoice_statements as statements
from svc_infra.billing.aggregation import consume_marks_of
from svc_infra.billing.cycles import parse_cycle
from svc_infra.billing.invoice_draft import Draft, execute
from svc_infra.billing.invoice_lines import ADJUSTMENT, FIXED, TRUE_UP, USAGE, Line, LinePlan
from svc_infra.billing.invoice_models import InvoiceLine, PendingLine
from svc_infra.billing.invoice_rating import plan, rate_drafts
from svc_infra.billing.invoices import adjustments_of
from svc_infra.billing.money import MONEY_CONTEXT
from svc_infra.billing.periods import Period, month_bounds
from svc_infra.billing.price_list import PlanPrice
from svc_infra.billing.rating import PriceTerms
from svc_infra.billing.tenant_lock import LockedTenant
from svc_infra.billing.usage_changes import Note, note_of, put_notes, take_notes
from svc_infra.db.base import new_id
from svc_infra.exceptions import SvcInfraError

# Wider than any zone is from UTC: a note names a month of UTC, an invoice a period of its tenant's zone.
_ZONES = timedelta(hours=15)
_EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)

# A line and its adjustments are told by price key, subscription, start and group.
_Key: TypeAlias = tuple[str, str | None, datetime, tuple[str | None, ...]]


class _Billed(NamedTuple):
    quantity: Decimal
    amount: int


@dataclass(slots=True)
class _Issued:
    """An issued invoice, the draft that its period comes to now, and what was billed for it so far."""

    draft: Draft
    stands: list[Line] = field(default_factory=list)
    billed: dict[_Key, _Billed] = field(default_factory=dict)


def settle_late_usage(
    session: Session, tenants: dict[str, LockedTenant], until: datetime, *, now: datetime
) -> dict[str, SvcInfraError]:
    """Count all usage of locked tenants before ``until``, and make pending lines of what it changes.

    Returns the tenants of whom an earlier invoice cannot be rated again (a price became ambiguous, an amount
    too large), and why. Nothing is settled of them, and their notes stay.
    """
    counted = consume_marks_of(session, tenants, Period(_EARLIEST, until), now=now, leaves_notes=False)
    notes = take_notes(session, tenants) | {note_of(day.key) for day in counted}
    issued = _issued_of(session, notes, tenants)
    if not issued:
        return {}
    plan(session, [each.draft for each in issued])
    _read_billed(session, issued)
    rate_drafts(session, [each.draft for each in issued], issued=[each.stands for each in issued])
    failed = {each.draft.tenant_id: each.draft.error for each in issued if each.draft.error is not None}
    for each in issued:
        if each.draft.tenant_id not in failed:
            session.add_all(_differences(each, now))
    session.flush()
    if failed:
        put_notes(session.connection(), [note for note in notes if note.tenant_id in failed])
    return failed


def _issued_of(session: Session, notes: Iterable[Note], tenants: dict[str, LockedTenant]) -> list[_Issued]:
    """The issued invoices of periods that end after the beginning of the earliest month with a note.

    Later ones too: of a weighted sum, the level that they began with may have changed.
    """
    months: dict[str, date] = {}
    for note in notes:
        months[note.tenant_id] = min(note.month, months.get(note.tenant_id, note.month))
    rows = [
        (tenant_id, month_bounds(month.year, month.month, UTC).start - _ZONES)
        for tenant_id, month in sorted(months.items())
    ]
    if not rows:
        return []
    return [
        _Issued(
            Draft(
                tenant_id,
                currency,
                parse_cycle(cycle),
                Period(start, end),
                tenants[tenant_id],
                invoice_id=invoice_id,
            )
        )
        for tenant_id, invoice_id, cycle, currency, start, end in execute(
            session, statements.issued_invoices, statements.NOTED, rows
        )
    ]


def _read_billed(session: Session, issued: Sequence[_Issued]) -> None:
    """Read what was billed; plan the stored lines with the terms they keep, the others as they apply."""
    by_id = {each.draft.invoice_id: each for each in issued}
    stored: dict[str, dict[tuple[Any, ...], LinePlan]] = defaultdict(dict)
    for line in _lines_of(session, issued):
        own = line.adjusts_invoice_id or line.invoice_id
        each = by_id[own]
        price = PlanPrice(line.price_id or "", None, PriceTerms.from_snapshot(line.price_snapshot or {}))
        kind = _kind_of(line, price.terms)
        period = Period(line.period_start, line.period_end)
        planned = LinePlan(kind, price, line.subscription_id, period, grid=each.draft.cycle.monthly)
        if kind == FIXED:
            each.stands.append(Line(planned, line.quantity, line.amount))
            continue
        _add_billed(each, line, price.terms.key)
        stored[own].setdefault(_plan_key(planned), planned)
    for each in issued:
        known = stored[each.draft.invoice_id or ""]
        new = [p for p in each.draft.plans if p.kind in (USAGE, TRUE_UP) and _plan_key(p) not in known]
        plans = [*known.values(), *new]
        each.draft.plans = sorted(plans, key=lambda planned: planned.kind == TRUE_UP)


def _kind_of(line: InvoiceLine | PendingLine, terms: PriceTerms) -> str:
    if terms.metric is not None:
        return USAGE
    return TRUE_UP if terms.is_commitment else FIXED


def _plan_key(planned: LinePlan) -> tuple[Any, ...]:
    return (planned.price.terms.key, planned.subscription_id, planned.period.start)


def _add_billed(each: _Issued, line: InvoiceLine | PendingLine, price_key: str) -> None:
    group = tuple((line.details or {}).get("group", ()))
    key = (price_key, line.subscription_id, line.period_start, group)
    before = each.billed.get(key, _Billed(Decimal(0), 0))
    quantity = MONEY_CONTEXT.add(before.quantity, line.quantity)
    each.billed[key] = _Billed(quantity, before.amount + line.amount)


def _lines_of(session: Session, issued: Sequence[_Issued]) -> list[Any]:
    """The lines of these invoices that bill a price, and every adjustment of them, billed or pending."""
    ids = [each.draft.invoice_id or "" for each in issued]
    tenant_ids = sorted({each.draft.tenant_id for each in issued})
    own = select(InvoiceLine).where(
        InvoiceLine.tenant_id.in_(tenant_ids),
        InvoiceLine.invoice_id.in_(ids),
        InvoiceLine.kind.in_([FIXED, USAGE, TRUE_UP]),
    )
    waiting = select(PendingLine).where(
        PendingLine.tenant_id.in_(tenant_ids), PendingLine.adjusts_invoice_id.in_(ids)
    )
    return [
        *session.scalars(own),
        *session.scalars(adjustments_of(tenant_ids, ids)),
        *session.scalars(waiting),
    ]


def _differences(each: _Issued, now: datetime) -> list[PendingLine]:
    """A pending line for every line that its period would have differently today."""
    draft = each.draft
    now_billed = {_line_key(line): line for line in draft.lines}
    planned = {_plan_key(line_plan): line_plan for line_plan in draft.plans}
    found = []
    for key in sorted({*now_billed, *each.billed}, key=repr):
        line, before = now_billed.get(key), each.billed.get(key, _Billed(Decimal(0), 0))
        quantity = MONEY_CONTEXT.subtract(Decimal(0) if line is None else line.quantity, before.quantity)
        amount = (0 if line is None else line.amount) - before.amount
        line_plan = planned[key[:3]]
        if line_plan.kind == TRUE_UP:
            quantity = Decimal(0)
        if quantity or amount:
            found.append(_pending(draft, line_plan, key[3], quantity, amount, now))
    return found


def _line_key(line: Line) -> _Key:
    return (*_plan_key(line.plan), line.group)


def _pending(
    draft: Draft,
    planned: LinePlan,
    group: tuple[str | None, ...],
    quantity: Decimal,
    amount: int,
    now: datetime,
) -> PendingLine:
    terms = planned.price.terms
    return PendingLine(
        id=new_id(),
        tenant_id=draft.tenant_id,
        cycle=draft.cycle.name,
        currency=draft.currency,
        kind=ADJUSTMENT,
        price_id=planned.price.id or None,
        subscription_id=planned.subscription_id,
        metric=terms.metric,
        description=f"{terms.key}, late usage",
        period_start=planned.period.start,
        period_end=planned.period.end,
        quantity=quantity,
        amount=amount,
        price_snapshot=planned.price.snapshot,
        details={"group": list(group)} if group else None,
        adjusts_invoice_id=draft.invoice_id,
        created_at=now,
    )
