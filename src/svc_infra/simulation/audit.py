"""The audit: every stored invoice held against raw events by a second, simple implementation.

It reads page by page of tenants, each page as of one instant, so it may run beside a working worker, and its
memory is bounded by the tenants of a page: events are added up, or metered, as they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from heapq import merge

from sqlalchemy import ColumnElement, exists, select, union
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.billing.invoice_models import Invoice
from svc_infra.billing.models import ArchivedUsage, UsageAggregate, UsageEvent
from svc_infra.billing.periods import Period
from svc_infra.billing.usage_models import RECORDED, UsageCorrection, UsageMeter
from svc_infra.simulation.audit_books import Books, read_books
from svc_infra.simulation.audit_lines import LineAudit
from svc_infra.simulation.audit_oracle import (
    check_coverage,
    check_invoices,
    check_notes,
    check_totals,
)
from svc_infra.simulation.audit_records import Finding
from svc_infra.simulation.audit_usage import Event, Events, Meter

PAGE = 50
MAX_KEPT = 1_000
_EVENTS_AT_A_TIME = 5_000


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

    ``archived`` of the ``events`` were archived. ``recomputed`` counts lines; ``unknown`` are lines without
    terms that it could recompute; ``waiting`` are prices of a period of which late usage is recorded and not
    settled yet.
    """

    tenants: int = 0
    invoices: int = 0
    lines: int = 0
    events: int = 0
    archived: int = 0
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
    books = read_books(session, tenant_ids)
    meters: dict[str, Meter] = {
        metric: definition
        for metric, definition in session.execute(select(UsageMeter.metric, UsageMeter.definition))
    }
    for tenant_id in tenant_ids:
        own = books[tenant_id]
        events = _added_up(session, tenant_id, own, report)
        findings = _audit_tenant(session, tenant_id, own, events, meters, report)
        if period is not None:
            within = {
                each.id
                for each in own.invoices.values()
                if period.start <= each.span[0] and each.span[1] <= period.end
            }
            findings = [each for each in findings if each.invoice_id in within]
        report.add(tenant_id, findings)


def _audit_tenant(
    session: Session,
    tenant_id: str,
    own: Books,
    events: dict[str, Events],
    meters: dict[str, Meter],
    report: AuditReport,
) -> list[Finding]:
    def read(metric: str, start: datetime | None, end: datetime) -> Iterator[Event]:
        return _events(session, tenant_id, metric, start, end)

    invoices, lines = own.invoices.values(), own.lines
    audited = LineAudit(own.invoices, own.subscriptions, events, read, own.unsettled, meters, own.zone).check(
        lines, [price for price in own.prices if price.metric is None]
    )
    report.tenants += 1
    report.invoices += len(own.invoices)
    report.lines += len(lines)
    report.recomputed += audited.recomputed
    report.unknown += audited.unknown
    report.waiting += audited.waiting
    return [
        *check_invoices(invoices, lines, own.notes),
        *check_notes(own.invoices, lines, own.notes),
        *audited.findings,
        *check_totals(own.days, events, read, own.unsettled, meters),
        *check_coverage(invoices, lines, own.priced(), events, read, own.unsettled, own.zone),
    ]


def _added_up(session: Session, tenant_id: str, own: Books, report: AuditReport) -> dict[str, Events]:
    """A tenant's raw events, added up by metric and day as they are read."""
    found: dict[str, Events] = {}
    for table in RECORDED:
        rows = session.execute(
            select(table.metric, table.at_ts, table.amount)
            .where(table.tenant_id == tenant_id, ~_is_corrected(table))
            .order_by(table.metric, table.at_ts)
            .execution_options(yield_per=_EVENTS_AT_A_TIME)
        )
        for metric, at, amount in rows:
            if metric not in found:
                found[metric] = Events(own.zone)
            found[metric].add(at, amount)
            report.events += 1
            report.archived += table is ArchivedUsage
    return found


def _events(
    session: Session, tenant_id: str, metric: str, start: datetime | None, end: datetime
) -> Iterator[Event]:
    """The counted events of a metric, in time order, and of one instant in the order they were recorded."""
    streams = []
    for event in RECORDED:
        asked = select(event.at_ts, event.id, event.amount, event.metadata_json).where(
            event.tenant_id == tenant_id, event.metric == metric, event.at_ts < end, ~_is_corrected(event)
        )
        if start is not None:
            asked = asked.where(event.at_ts >= start)
        ordered = asked.order_by(event.at_ts, event.id).execution_options(yield_per=_EVENTS_AT_A_TIME)
        streams.append(session.execute(ordered))
    for at, _, amount, metadata_json in merge(*streams):
        yield Event(at, amount, metadata_json)


def _is_corrected(event: type[UsageEvent | ArchivedUsage]) -> ColumnElement[bool]:
    """A voided or amended event; what replaces it is an event of its own."""
    corrected = UsageCorrection
    return exists().where(corrected.tenant_id == event.tenant_id, corrected.event_id == event.id)
