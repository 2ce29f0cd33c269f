"""The audit: every stored invoice held against raw events by a second, simple implementation.

It reads page by page of tenants, each page as of one instant, so it may run beside a working worker, and its
memory is bounded by the tenants of a page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, Executable, exists, select, union
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.billing.invoice_models import Invoice, InvoiceLine, PendingLine, UsageChange
from svc_infra.billing.models import (
    CALENDAR_CYCLE,
    Price,
    Subscription,
    Tenant,
    UsageAggregate,
    UsageDirtyDay,
    UsageEvent,
)
from svc_infra.billing.periods import Period
from svc_infra.billing.usage_models import UsageCorrection, UsageMeter
from svc_infra.simulation.audit_oracle import (
    Events,
    Finding,
    Priced,
    StoredInvoice,
    StoredLine,
    Unsettled,
    check_coverage,
    check_invoices,
    check_lines,
    check_totals,
)

PAGE = 50
MAX_KEPT = 1_000
_EVENTS_AT_A_TIME = 5_000
_ZONES = timedelta(hours=15)
_EVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it must be."""

    tenant_id: str
    kind: str
    invoice_id: str | None
    text: str


@dataclass
class AuditReport:
    """What was compared. ``differences`` are the first 1,000 of ``difference_count``.

    ``recomputed`` counts lines; ``unknown`` are lines whose price or meter the recomputation does not know;
    ``waiting`` are prices of a period of which late usage is recorded and not settled yet.
    """

    tenants: int = 0
    invoices: int = 0
    lines: int = 0
    events: int = 0
    recomputed: int = 0
    unknown: int = 0
    waiting: int = 0
    difference_count: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether everything that was compared is as it must be."""
        return self.difference_count == 0

    def add(self, tenant_id: str, findings: Sequence[Finding]) -> None:
        """Take up what was found about a tenant."""
        self.difference_count += len(findings)
        for each in findings[: MAX_KEPT - len(self.differences)]:
            self.differences.append(Difference(tenant_id, each.kind, each.invoice_id, each.text))


@dataclass
class _Books:
    """What is stored of one tenant."""

    invoices: list[StoredInvoice] = field(default_factory=list)
    lines: list[StoredLine] = field(default_factory=list)
    days: list[tuple[str, tuple[datetime, datetime], Fraction]] = field(default_factory=list)
    priced: list[Priced] = field(default_factory=list)
    unsettled: Unsettled = field(default_factory=Unsettled)
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))


async def audit(
    session_factory: async_sessionmaker[AsyncSession],
    *,
    tenant_id: str | None = None,
    period: Period | None = None,
    on_page: Callable[[AuditReport], None] | None = None,
) -> AuditReport:
    """Audit all tenants or one; with ``period``, tell only of invoices whose own period lies within it."""
    report = AuditReport()
    after = ""
    while True:
        async with session_factory() as session:
            # One page is one picture of the data, however much is billed meanwhile.
            is_postgres = session.get_bind().dialect.name == "postgresql"
            options = {"isolation_level": "REPEATABLE READ"} if is_postgres else {}
            await session.connection(execution_options=options)
            page = [tenant_id] if tenant_id else await session.run_sync(_tenants_after, after)
            if page:
                await session.run_sync(_audit_page, page, period, report)
            await session.rollback()
        if on_page is not None:
            on_page(report)
        if tenant_id or len(page) < PAGE:
            return report
        after = page[-1]


def _tenants_after(session: Session, after: str) -> list[str]:
    sources = [
        select(table.tenant_id.label("tenant_id"))
        .where(table.tenant_id > after)
        .distinct()
        .order_by(table.tenant_id)
        .limit(PAGE)
        .subquery()
        for table in (Invoice, UsageAggregate)
    ]
    found = union(*(select(source.c.tenant_id) for source in sources)).subquery()
    return list(session.scalars(select(found.c.tenant_id).order_by(found.c.tenant_id).limit(PAGE)))


def _audit_page(
    session: Session, tenant_ids: Sequence[str], period: Period | None, report: AuditReport
) -> None:
    books = _read_books(session, tenant_ids)
    # Meters that are no plain sums.
    opaque = set(session.scalars(select(UsageMeter.metric)))
    for tenant_id, events in _events_of(session, tenant_ids, books, report):
        own = books[tenant_id]
        zone = own.zone
        checked = check_lines(own.invoices, own.lines, events, own.unsettled, opaque, zone)
        findings = [
            *check_invoices(own.invoices, own.lines),
            *checked.findings,
            *check_totals(own.days, events, own.unsettled, opaque),
            *check_coverage(own.invoices, own.lines, own.priced, events, own.unsettled, zone),
        ]
        report.tenants += 1
        report.invoices += len(own.invoices)
        report.lines += len(own.lines)
        report.recomputed += checked.recomputed
        report.unknown += checked.unknown
        report.waiting += checked.waiting
        if period is not None:
            within = {
                each.id
                for each in own.invoices
                if period.start <= each.span[0] and each.span[1] <= period.end
            }
            findings = [each for each in findings if each.invoice_id in within]
        report.add(tenant_id, findings)


def _read_books(session: Session, tenant_ids: Sequence[str]) -> dict[str, _Books]:
    books: dict[str, _Books] = defaultdict(_Books)
    for row in _rows(session, select(Invoice.__table__).where(Invoice.tenant_id.in_(tenant_ids))):
        books[row.tenant_id].invoices.append(
            StoredInvoice(
                row.id,
                row.kind,
                row.cycle,
                row.currency,
                (row.period_start, row.period_end),
                row.status,
                row.series,
                row.number,
                row.total_amount,
            )
        )
    for table in (InvoiceLine, PendingLine):
        for row in _rows(session, select(table.__table__).where(table.tenant_id.in_(tenant_ids))):
            books[row.tenant_id].lines.append(_line(row))
    day = UsageAggregate
    for row in _rows(
        session,
        select(day.tenant_id, day.metric, day.period_start, day.period_end, day.total).where(
            day.tenant_id.in_(tenant_ids), day.granularity == "day"
        ),
    ):
        books[row.tenant_id].days.append(
            (row.metric, (row.period_start, row.period_end), Fraction(row.total))
        )
    mark, change = UsageDirtyDay, UsageChange
    for row in _rows(
        session,
        select(mark.tenant_id, mark.metric, mark.day_start, mark.day_end)
        .where(mark.tenant_id.in_(tenant_ids))
        .distinct(),
    ):
        books[row.tenant_id].unsettled.add(row.metric, (row.day_start, row.day_end))
    for row in _rows(session, select(change).where(change.tenant_id.in_(tenant_ids))):
        note: UsageChange = row[0]
        books[note.tenant_id].unsettled.add(note.metric, _around(note.month))
    zones = select(Tenant.tenant_id, Tenant.timezone).where(Tenant.tenant_id.in_(tenant_ids))
    for row in _rows(session, zones):
        books[row.tenant_id].zone = ZoneInfo(row.timezone)
    _read_prices(session, tenant_ids, books)
    return books


def _read_prices(session: Session, tenant_ids: Sequence[str], books: dict[str, _Books]) -> None:
    price, held = Price, Subscription
    columns = (price.currency, price.metric, price.effective_on, price.ended_on)
    for row in _rows(
        session,
        select(held.tenant_id, held.cycle, held.effective_at, held.ended_at, *columns)
        .join(price, price.plan_id == held.plan_id)
        .where(held.tenant_id.in_(tenant_ids), price.metric.is_not(None)),
    ):
        span = (row.effective_at, row.ended_at or _EVER)
        books[row.tenant_id].priced.append(
            Priced(row.cycle, row.currency, row.metric, span, row.effective_on, row.ended_on)
        )
    ever = (datetime.min.replace(tzinfo=UTC), _EVER)
    for row in _rows(session, select(*columns).where(price.plan_id.is_(None), price.metric.is_not(None))):
        for tenant_id in tenant_ids:
            books[tenant_id].priced.append(
                Priced(CALENDAR_CYCLE, row.currency, row.metric, ever, row.effective_on, row.ended_on)
            )


def _events_of(
    session: Session, tenant_ids: Sequence[str], books: dict[str, _Books], report: AuditReport
) -> Iterator[tuple[str, dict[str, Events]]]:
    """Each tenant with its raw events, added up by day as they are read."""
    event = UsageEvent
    for tenant_id in tenant_ids:
        zone = books[tenant_id].zone
        found: dict[str, Events] = {}
        rows = session.execute(
            select(event.metric, event.at_ts, event.amount)
            .where(event.tenant_id == tenant_id, ~_is_corrected())
            .order_by(event.metric, event.at_ts)
            .execution_options(yield_per=_EVENTS_AT_A_TIME)
        )
        for metric, at, amount in rows:
            if metric not in found:
                found[metric] = Events(zone)
            found[metric].add(at, amount)
            report.events += 1
        yield tenant_id, found


def _is_corrected() -> ColumnElement[bool]:
    """A voided or amended event; what replaces it is an event of its own."""
    corrected = UsageCorrection
    return exists().where(corrected.tenant_id == UsageEvent.tenant_id, corrected.event_id == UsageEvent.id)


def _around(month: date) -> tuple[datetime, datetime]:
    """A note names a month of UTC; the tenant's own may begin 15 hours earlier or end as much later."""
    start = datetime(month.year, month.month, 1, tzinfo=UTC)
    end = datetime(month.year + month.month // 12, month.month % 12 + 1, 1, tzinfo=UTC)
    return start - _ZONES, end + _ZONES


def _line(row: Any) -> StoredLine:
    return StoredLine(
        getattr(row, "invoice_id", "") or "",
        getattr(row, "position", 0),
        row.kind,
        row.metric,
        row.subscription_id,
        (row.period_start, row.period_end),
        Fraction(row.quantity),
        row.amount,
        row.price_snapshot,
        row.details or {},
        row.adjusts_invoice_id,
    )


def _rows(session: Session, statement: Executable) -> Iterator[Any]:
    return iter(session.execute(statement))
