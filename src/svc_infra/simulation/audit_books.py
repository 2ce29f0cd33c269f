"""Reading what is stored of a page of tenants, as the audit compares it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Executable, select
from sqlalchemy.orm import Session

from svc_infra.billing.invoice_models import (
    CreditNote,
    CreditNoteLine,
    Invoice,
    InvoiceLine,
    PendingLine,
    UsageChange,
)
from svc_infra.billing.models import (
    CALENDAR_CYCLE,
    Price,
    Subscription,
    Tenant,
    UsageAggregate,
    UsageDirtyDay,
)
from svc_infra.canonical import canonical_decimal
from svc_infra.simulation.audit_oracle import Priced
from svc_infra.simulation.audit_records import (
    StoredInvoice,
    StoredLine,
    StoredNote,
    StoredPrice,
    StoredSubscription,
    Unsettled,
)

_ZONES = timedelta(hours=15)
_ALWAYS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


@dataclass
class Books:
    """What is stored of one tenant; ``prices`` are those of its plans and those without a plan."""

    invoices: dict[str, StoredInvoice] = field(default_factory=dict)
    lines: list[StoredLine] = field(default_factory=list)
    notes: list[StoredNote] = field(default_factory=list)
    days: list[tuple[str, tuple[datetime, datetime], Fraction]] = field(default_factory=list)
    subscriptions: dict[str, StoredSubscription] = field(default_factory=dict)
    prices: list[StoredPrice] = field(default_factory=list)
    unsettled: Unsettled = field(default_factory=Unsettled)
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))

    def priced(self) -> Iterator[Priced]:
        """Each price of a metric with every span in which it may apply."""
        for price in self.prices:
            if price.metric is not None and price.plan_id is None:
                yield Priced(CALENDAR_CYCLE, _ALWAYS, price)
            for held in self.subscriptions.values():
                if price.metric is not None and price.plan_id == held.plan_id:
                    yield Priced(held.cycle, (held.effective_at, held.ended_at or _ALWAYS[1]), price)


def read_books(session: Session, tenant_ids: Sequence[str]) -> dict[str, Books]:
    """What is stored of each of these tenants."""
    books: dict[str, Books] = defaultdict(Books)
    for row in _rows(session, select(Invoice.__table__).where(Invoice.tenant_id.in_(tenant_ids))):
        books[row.tenant_id].invoices[row.id] = _invoice(row)
    for table in (InvoiceLine, PendingLine):
        for row in _rows(session, select(table.__table__).where(table.tenant_id.in_(tenant_ids))):
            books[row.tenant_id].lines.append(_line(row, books[row.tenant_id].invoices))
    _read_notes(session, tenant_ids, books)
    _read_usage(session, tenant_ids, books)
    _read_prices(session, tenant_ids, books)
    zones = select(Tenant.tenant_id, Tenant.timezone).where(Tenant.tenant_id.in_(tenant_ids))
    for row in _rows(session, zones):
        books[row.tenant_id].zone = ZoneInfo(row.timezone)
    return books


def _read_notes(session: Session, tenant_ids: Sequence[str], books: dict[str, Books]) -> None:
    parts: dict[str, dict[str, int]] = defaultdict(dict)
    lines = select(CreditNoteLine.__table__).where(CreditNoteLine.tenant_id.in_(tenant_ids))
    for row in _rows(session, lines):
        parts[row.credit_note_id][row.invoice_line_id] = row.amount
    for row in _rows(session, select(CreditNote.__table__).where(CreditNote.tenant_id.in_(tenant_ids))):
        note = StoredNote(
            row.invoice_id, row.series, row.number, row.currency, row.total_amount, parts[row.id]
        )
        books[row.tenant_id].notes.append(note)


def _read_usage(session: Session, tenant_ids: Sequence[str], books: dict[str, Books]) -> None:
    day, mark = UsageAggregate, UsageDirtyDay
    totals = select(day.tenant_id, day.metric, day.period_start, day.period_end, day.total)
    for row in _rows(session, totals.where(day.tenant_id.in_(tenant_ids), day.granularity == "day")):
        span = (row.period_start, row.period_end)
        books[row.tenant_id].days.append((row.metric, span, Fraction(row.total)))
    marks = select(mark.tenant_id, mark.metric, mark.day_start, mark.day_end)
    for row in _rows(session, marks.where(mark.tenant_id.in_(tenant_ids)).distinct()):
        books[row.tenant_id].unsettled.add(row.metric, (row.day_start, row.day_end))
    notes = select(UsageChange.__table__).where(UsageChange.tenant_id.in_(tenant_ids))
    for row in _rows(session, notes):
        books[row.tenant_id].unsettled.add(row.metric, _around(row.month))


def _read_prices(session: Session, tenant_ids: Sequence[str], books: dict[str, Books]) -> None:
    held = Subscription
    for row in _rows(session, select(held.__table__).where(held.tenant_id.in_(tenant_ids))):
        books[row.tenant_id].subscriptions[row.id] = StoredSubscription(
            *(row.id, row.plan_id, row.cycle, row.effective_at, row.ended_at, row.quantity),
            *(row.trial_ends_at, row.anchor_on, row.created_at),
        )
    prices = [_price(row) for row in _rows(session, select(Price.__table__))]
    for tenant_id in tenant_ids:
        plans = {None, *(each.plan_id for each in books[tenant_id].subscriptions.values())}
        books[tenant_id].prices = [price for price in prices if price.plan_id in plans]


def _price(row: Any) -> StoredPrice:
    snapshot = row.terms or {
        "key": row.key,
        "currency": row.currency,
        "model": row.model,
        "unit_amount": canonical_decimal(row.unit_amount),
    }
    return StoredPrice(
        *(row.plan_id, row.currency, row.metric, snapshot),
        *(row.effective_on, row.ended_on, row.created_at),
    )


def _invoice(row: Any) -> StoredInvoice:
    return StoredInvoice(
        *(row.id, row.kind, row.cycle, row.currency, (row.period_start, row.period_end), row.status),
        *(row.series, row.number, row.total_amount, row.credited_amount, row.created_at),
    )


def _line(row: Any, invoices: dict[str, StoredInvoice]) -> StoredLine:
    """A line with the cycle and currency of its invoice; one that waits has its own."""
    invoice_id = getattr(row, "invoice_id", None) or ""
    account = invoices.get(invoice_id, row)
    return StoredLine(
        *(row.id, invoice_id, getattr(account, "cycle", ""), getattr(account, "currency", "")),
        *(getattr(row, "position", 0), row.kind, row.metric, row.subscription_id),
        *((row.period_start, row.period_end), Fraction(row.quantity), row.amount),
        *(row.price_snapshot, row.details or {}, row.adjusts_invoice_id),
    )


def _around(month: date) -> tuple[datetime, datetime]:
    """A note names a month of UTC; the tenant's own may begin 15 hours earlier or end as much later."""
    start = datetime(month.year, month.month, 1, tzinfo=UTC)
    end = datetime(month.year + month.month // 12, month.month % 12 + 1, 1, tzinfo=UTC)
    return start - _ZONES, end + _ZONES


def _rows(session: Session, statement: Executable) -> Iterator[Any]:
    return iter(session.execute(statement))
