"""Storing drafts: numbers, lines and invoices of a batch in a handful of statements.

The lines are written before their invoice: it is issued with a total that is their sum, which the database
checks at that instant, and nothing is added to it afterwards. Numbers are taken after everything that can be
refused, so a series has no gaps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from svc_infra.billing import invoice_statements as statements
from svc_infra.billing.invoice_draft import Draft, execute
from svc_infra.billing.invoice_lines import CREDIT, UNUSED, Line, LinePlan
from svc_infra.billing.invoice_models import Invoice, InvoiceLine, PendingLine
from svc_infra.billing.late import settle
from svc_infra.canonical import compact_json
from svc_infra.db.base import new_id
from svc_infra.exceptions import AmountTooLarge

_DESCRIPTION_LENGTH = 300


def write(session: Session, drafts: Sequence[Draft], now: datetime) -> None:
    """Number and store what ``is_issued``, store the others as drafts; what fits no column keeps an error.

    An issued invoice takes the pending lines of its tenant, cycle and currency with it.
    """
    issued = [draft for draft in drafts if draft.is_issued]
    _take_pending(session, issued)
    carried = [line for draft in issued if (line := _settle(draft, now)) is not None]
    drafts = [draft for draft in drafts if draft.error is None]
    issued = [draft for draft in drafts if draft.is_issued]
    if not drafts:
        return
    numbers = dict(zip(map(id, issued), _take_numbers(session, issued), strict=True))
    rows = _Rows()
    for draft in drafts:
        if draft.invoice_id is None:
            draft.invoice_id, draft.is_new, draft.created_at = new_id(), True, now
        rows.add(draft, numbers.get(id(draft)), now)
    rows.execute(session, now)
    _delete_pending(session, [line for draft in issued for line in draft.pending if line not in carried])
    waiting = [line for line in carried if line.amount < 0]
    session.add_all(waiting)
    session.flush()


def delete_drafts(session: Session, drafts: Sequence[Draft]) -> None:
    """Take stored drafts away, to write them anew under the same ids."""
    keys = [(draft.tenant_id, draft.invoice_id) for draft in drafts]
    for table, key in ((InvoiceLine, InvoiceLine.invoice_id), (Invoice, Invoice.id)):
        gone = delete(table).where(tuple_(table.tenant_id, key).in_(keys))
        session.execute(gone.execution_options(synchronize_session=False))
    session.expire_all()


def take_numbers(session: Session, counts: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """Take so many numbers of each (tenant, series), in key order; return the one before the first taken."""
    rows = sorted((*key, count) for key, count in counts.items())
    taken = execute(session, statements.take_numbers, statements.COUNTS, rows)
    return {(tenant_id, series): last - counts[tenant_id, series] for tenant_id, series, last in taken}


class _Rows:
    """The rows of a batch: what the lines of one price have in common is sent once."""

    def __init__(self) -> None:
        self.invoices: list[tuple[Any, ...]] = []
        self.lines: list[tuple[Any, ...]] = []
        self.terms: dict[str, tuple[Any, ...]] = {}

    def add(self, draft: Draft, number: int | None, now: datetime) -> None:
        """Add a draft with its lines; one with a number is issued."""
        period, tenant = draft.period, draft.tenant
        is_issued = number is not None
        self.invoices.append(
            (
                *(draft.invoice_id, draft.tenant_id, draft.cycle.name, draft.kind, draft.currency),
                *(period.start, period.end, "finalized" if is_issued else "draft"),
                *(tenant.number_series, number, draft.total, draft.created_at),
                None if is_issued else draft.finalize_after,
                now if is_issued else None,
                now + timedelta(days=tenant.due_days) if is_issued else None,
            )
        )
        for position, line in enumerate(draft.lines, start=1):
            self._add_line(draft, position, line)
        for position, waiting in enumerate(draft.pending, start=len(draft.lines) + 1):
            self._add_pending(draft, position, waiting)

    def _add_line(self, draft: Draft, position: int, line: Line) -> None:
        plan = line.plan
        terms_id = f"{plan.price.id} {plan.kind} {compact_json(list(line.group)) if line.group else ''}"
        if terms_id not in self.terms:
            self.terms[terms_id] = _terms_row(terms_id, plan, line.group)
        details = None if line.details is None else compact_json(line.details)
        self.lines.append(
            (
                *(new_id(), draft.tenant_id, draft.invoice_id, position, terms_id, plan.subscription_id),
                *(plan.period.start, plan.period.end, line.quantity, line.amount, details, None),
            )
        )

    def _add_pending(self, draft: Draft, position: int, line: PendingLine) -> None:
        snapshot = None if line.price_snapshot is None else compact_json(line.price_snapshot)
        self.terms[line.id] = (line.id, line.price_id, line.kind, line.metric, line.description, snapshot)
        details = None if line.details is None else compact_json(line.details)
        self.lines.append(
            (
                *(line.id, draft.tenant_id, draft.invoice_id, position, line.id, line.subscription_id),
                *(line.period_start, line.period_end, line.quantity, line.amount, details),
                line.adjusts_invoice_id,
            )
        )

    def execute(self, session: Session, now: datetime) -> None:
        """Write everything, the lines first."""
        if self.lines:
            dialect = session.get_bind().dialect.name
            terms = statements.LINE_TERMS.parameters(dialect, self.terms.values())
            execute(session, statements.insert_lines, statements.LINES, self.lines, **terms, now=now)
        execute(session, statements.insert_invoices, statements.INVOICES, self.invoices)


def _terms_row(terms_id: str, plan: LinePlan, group: tuple[str | None, ...]) -> tuple[Any, ...]:
    terms = plan.price.terms
    description = terms.key
    if plan.kind == UNUSED:
        description += " (unused)"
    if group:
        values = ", ".join("none" if value is None else value for value in group)
        description = f"{description} ({values})"[:_DESCRIPTION_LENGTH]
    return (
        terms_id,
        plan.price.id or None,
        plan.kind,
        terms.metric,
        description,
        compact_json(plan.price.snapshot),
    )


def _take_pending(session: Session, drafts: Sequence[Draft]) -> None:
    """Give each draft what waits for it; of several of a tenant, cycle and currency, to the earliest."""
    if not drafts:
        return
    ordered = sorted(drafts, key=lambda draft: draft.period.start)
    takers: dict[tuple[str, str, str], Draft] = {}
    for draft in ordered:
        takers.setdefault((draft.tenant_id, draft.cycle.name, draft.currency), draft)
    found = execute(session, statements.waiting_ids, statements.TAKERS, list(takers)).all()
    if found:
        keys = [(tenant_id, pending_id) for tenant_id, pending_id in found]
        waiting = select(PendingLine).where(tuple_(PendingLine.tenant_id, PendingLine.id).in_(keys))
        for line in session.scalars(waiting.order_by(PendingLine.id)):
            takers[line.tenant_id, line.cycle, line.currency].pending.append(line)


def _settle(draft: Draft, now: datetime) -> PendingLine | None:
    """Add up a draft; a negative balance becomes a credit that is carried to the next invoice.

    Returns the line that waits for that invoice. The one on this invoice mirrors it, so its total is 0.
    """
    try:
        due, credit = settle([*(line.amount for line in draft.lines), *(p.amount for p in draft.pending)])
    except AmountTooLarge as error:
        draft.error = AmountTooLarge(f"{draft}: {error}")
        return None
    draft.total = due
    if not credit:
        return None
    here, carried = _credit(draft, credit, now), _credit(draft, -credit, now)
    here.description = "credit carried to the next invoice"
    draft.pending.append(here)
    return carried


def _credit(draft: Draft, amount: int, now: datetime) -> PendingLine:
    return PendingLine(
        id=new_id(),
        tenant_id=draft.tenant_id,
        cycle=draft.cycle.name,
        currency=draft.currency,
        kind=CREDIT,
        description="credit carried from an earlier invoice",
        period_start=draft.period.start,
        period_end=draft.period.end,
        quantity=Decimal(1),
        amount=amount,
        created_at=now,
    )


def _delete_pending(session: Session, lines: Sequence[PendingLine]) -> None:
    for line in lines:
        if line in session:
            session.delete(line)
    session.flush()


def _take_numbers(session: Session, drafts: Sequence[Draft]) -> list[int]:
    """The next numbers of each tenant's series, the earlier period first."""
    if not drafts:
        return []
    upcoming = take_numbers(
        session, Counter((draft.tenant_id, draft.tenant.number_series) for draft in drafts)
    )
    numbers = [0] * len(drafts)
    for at in sorted(range(len(drafts)), key=lambda at: drafts[at].period.start):
        key = (drafts[at].tenant_id, drafts[at].tenant.number_series)
        upcoming[key] += 1
        numbers[at] = upcoming[key]
    return numbers
