"""The statements of invoicing: each serves a whole batch, with a text that does not depend on its size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    String,
    Table,
    Text,
    and_,
    bindparam,
    cast,
    insert,
    literal,
    or_,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from svc_infra.billing.models import CALENDAR_CYCLE, MetricText, TenantText
from svc_infra.db.base import Base, IdText, Quantity, UtcDateTime
from svc_infra.db.exact import exact_sum
from svc_infra.db.rowset import Rowset

PERIOD_KIND = "period"

REQUESTS = Rowset(
    "requests",
    position=Integer,
    tenant_id=TenantText,
    currency=String(3),
    period_start=UtcDateTime,
    period_end=UtcDateTime,
)
SUMS = Rowset(
    "sums",
    position=Integer,
    tenant_id=TenantText,
    metric=MetricText,
    period_start=UtcDateTime,
    period_end=UtcDateTime,
)
COUNTS = Rowset("counts", tenant_id=TenantText, series=String(40), invoices=BigInteger)
INVOICES = Rowset(
    "new_invoices",
    id=IdText,
    tenant_id=TenantText,
    currency=String(3),
    period_start=UtcDateTime,
    period_end=UtcDateTime,
    series=String(40),
    number=BigInteger,
    total_amount=BigInteger,
    due_at=UtcDateTime,
)
LINES = Rowset(
    "new_lines",
    id=IdText,
    tenant_id=TenantText,
    invoice_id=IdText,
    position=Integer,
    price_id=IdText,
    subscription_id=IdText,
    period_start=UtcDateTime,
    period_end=UtcDateTime,
    quantity=Quantity(50),
    amount=BigInteger,
)
# What the lines of one price have in common is sent once.
LINE_PRICES = Rowset(
    "line_prices", id=IdText, kind=String(20), metric=MetricText, description=String(300), snapshot=Text
)

_tables = Base.metadata.tables
_invoices: Table = _tables["invoices"]
_lines: Table = _tables["invoice_lines"]
_counters: Table = _tables["invoice_counters"]
_subscriptions: Table = _tables["subscriptions"]
_aggregates: Table = _tables["usage_aggregates"]


@cache
def overlapping_invoices(dialect: str) -> Executable:
    """(position, invoice id, start, end) of the period invoices that share an instant with a request."""
    wanted, found = REQUESTS.table(dialect), _invoices.c
    overlaps = and_(
        found.tenant_id == wanted.c.tenant_id,
        found.cycle == CALENDAR_CYCLE,
        found.kind == PERIOD_KIND,
        found.status != "void",
        found.currency == wanted.c.currency,
        found.period_start < wanted.c.period_end,
        found.period_end > wanted.c.period_start,
    )
    return _search(dialect, wanted, [found.id, found.period_start, found.period_end], overlaps)


@cache
def active_subscriptions(dialect: str) -> Executable:
    """(position, subscription id, plan id, start, end or None) of those active within a request's period."""
    wanted, held = REQUESTS.table(dialect), _subscriptions.c
    is_active = and_(
        held.tenant_id == wanted.c.tenant_id,
        held.effective_at < wanted.c.period_end,
        or_(held.ended_at.is_(None), held.ended_at > wanted.c.period_start),
    )
    return _search(dialect, wanted, [held.id, held.plan_id, held.effective_at, held.ended_at], is_active)


@cache
def usage_sums(dialect: str) -> Executable:
    """(position, exact sum of the day totals or None) of a metric over whole days.

    A sub-query per row, not a join with GROUP BY: each is one short walk through the unique index.
    """
    wanted, day = SUMS.table(dialect), _aggregates.c
    total = select(exact_sum(day.total)).where(
        day.tenant_id == wanted.c.tenant_id,
        day.metric == wanted.c.metric,
        day.granularity == "day",
        day.period_start >= wanted.c.period_start,
        day.period_start < wanted.c.period_end,
    )
    return select(wanted.c.position, total.correlate(wanted).scalar_subquery())


@cache
def take_numbers(dialect: str) -> Executable:
    """(tenant id, series, last number) after as many numbers were taken as ``COUNTS`` asks for."""
    wanted = COUNTS.table(dialect)
    new = (
        select(wanted.c.tenant_id, wanted.c.series, wanted.c.invoices)
        # Without a WHERE, SQLite would read the ON of ON CONFLICT as a join condition.
        .where(wanted.c.invoices > 0)
        .order_by(wanted.c.tenant_id, wanted.c.series)
    )
    make: Any = postgresql_insert if dialect == "postgresql" else sqlite_insert
    counted = make(_counters).from_select(["tenant_id", "series", "last_number"], new)
    statement: Executable = counted.on_conflict_do_update(
        index_elements=["tenant_id", "series"],
        set_={"last_number": _counters.c.last_number + counted.excluded.last_number},
    ).returning(_counters.c.tenant_id, _counters.c.series, _counters.c.last_number)
    return statement


@cache
def insert_invoices(dialect: str) -> Executable:
    """Write ``INVOICES`` as finalized at ``now``."""
    new = INVOICES.table(dialect)
    now: Any = bindparam("now", type_=UtcDateTime)
    columns = [*INVOICES.columns, "credited_amount", "cycle", "kind", "status", "created_at", "issued_at"]
    given = [new.c[name] for name in INVOICES.columns]
    rows = select(
        *given, literal(0), literal(CALENDAR_CYCLE), literal(PERIOD_KIND), literal("finalized"), now, now
    )
    return insert(_invoices).from_select(columns, rows)


@cache
def insert_lines(dialect: str) -> Executable:
    """Write ``LINES``, each with what ``LINE_PRICES`` says of its price."""
    new, price = LINES.table(dialect), LINE_PRICES.table(dialect)
    columns = [*LINES.columns, "kind", "metric", "description", "price_snapshot", "created_at"]
    given = [new.c[name] for name in LINES.columns]
    # A CAST to JSON means a number on SQLite, which stores JSON as the text that it is.
    snapshot: Any = cast(price.c.snapshot, JSON) if dialect == "postgresql" else price.c.snapshot
    rows = select(
        *given,
        price.c.kind,
        price.c.metric,
        price.c.description,
        type_coerce(snapshot, JSON),
        bindparam("now", type_=UtcDateTime),
    ).join(price, price.c.id == new.c.price_id)
    return insert(_lines).from_select(columns, rows)


def _search(
    dialect: str, wanted: FromClause, columns: Sequence[Column[Any]], condition: ColumnElement[bool]
) -> Executable:
    """Select each wanted row's position beside what its own search through the index finds."""
    if dialect != "postgresql":
        return select(wanted.c.position, *columns).join(columns[0].table, condition)
    # A plan made while the table was new would read all of it for every batch until the next ANALYZE. With an
    # OFFSET the sub-query cannot be merged into a join, and for one tenant the index is the cheapest way.
    found = select(*columns).where(condition).offset(0).lateral("found")
    return select(wanted.c.position, *found.c).join(found, true())
