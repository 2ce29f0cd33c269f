"""The statements of invoicing: each serves a whole batch, with a text that does not depend on its size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
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
    func,
    insert,
    literal,
    or_,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from svc_infra.billing.columns import CYCLE_LENGTH, MetricText, TenantText
from svc_infra.billing.invoice_draft import PERIOD_KIND
from svc_infra.db.base import Base, IdText, Quantity, UtcDateTime
from svc_infra.db.rowset import Rowset

REQUESTS = Rowset(
    "requests",
    position=Integer,
    tenant_id=TenantText,
    cycle=String(CYCLE_LENGTH),
    currency=String(3),
    period_start=UtcDateTime,
    period_end=UtcDateTime,
)
TAKERS = Rowset("takers", tenant_id=TenantText, cycle=String(CYCLE_LENGTH), currency=String(3))
NOTED = Rowset("noted", tenant_id=TenantText, since=UtcDateTime)
BOUNDED = Rowset("bounded", tenant_id=TenantText)
COUNTS = Rowset("counts", tenant_id=TenantText, series=String(40), invoices=BigInteger)
INVOICES = Rowset(
    "new_invoices",
    id=IdText,
    tenant_id=TenantText,
    cycle=String(CYCLE_LENGTH),
    kind=String(20),
    currency=String(3),
    period_start=UtcDateTime,
    period_end=UtcDateTime,
    status=String(16),
    series=String(40),
    number=BigInteger,
    total_amount=BigInteger,
    created_at=UtcDateTime,
    finalize_after=UtcDateTime,
    issued_at=UtcDateTime,
    due_at=UtcDateTime,
)
LINES = Rowset(
    "new_lines",
    id=IdText,
    tenant_id=TenantText,
    invoice_id=IdText,
    position=Integer,
    terms_id=Text,
    subscription_id=IdText,
    period_start=UtcDateTime,
    period_end=UtcDateTime,
    quantity=Quantity(50),
    amount=BigInteger,
    details=Text,
    adjusts_invoice_id=IdText,
)
# What the lines of one price have in common is sent once.
LINE_TERMS = Rowset(
    "line_terms",
    terms_id=Text,
    price_id=IdText,
    kind=String(20),
    metric=MetricText,
    description=String(300),
    snapshot=Text,
)

_tables = Base.metadata.tables
_invoices: Table = _tables["invoices"]
_lines: Table = _tables["invoice_lines"]
_counters: Table = _tables["invoice_counters"]
_subscriptions: Table = _tables["subscriptions"]
_pending: Table = _tables["pending_lines"]


@cache
def overlapping_invoices(dialect: str) -> Executable:
    """(position, invoice id, start, end) of the period invoices that share an instant with a request."""
    wanted, found = REQUESTS.table(dialect), _invoices.c
    overlaps = and_(
        found.tenant_id == wanted.c.tenant_id,
        found.cycle == wanted.c.cycle,
        found.kind == PERIOD_KIND,
        found.currency == wanted.c.currency,
        found.status != "void",
        found.period_start < wanted.c.period_end,
        found.period_end > wanted.c.period_start,
    )
    columns = [found.id, found.period_start, found.period_end]
    return _search(dialect, wanted, [wanted.c.position], columns, overlaps)


@cache
def issued_invoices(dialect: str) -> Executable:
    """(tenant, id, cycle, currency, start, end) of the issued period invoices that end after ``since``."""
    wanted, found = NOTED.table(dialect), _invoices.c
    is_issued = and_(
        found.tenant_id == wanted.c.tenant_id,
        found.kind == PERIOD_KIND,
        found.status.not_in(["draft", "void"]),
        found.period_end > wanted.c.since,
    )
    columns = [found.id, found.cycle, found.currency, found.period_start, found.period_end]
    return _search(dialect, wanted, [wanted.c.tenant_id], columns, is_issued)


@cache
def made_since(dialect: str) -> Executable:
    """(tenant, invoice id, number of lines) of the invoices of these tenants that were made since then."""
    wanted, found = BOUNDED.table(dialect), _invoices.c
    is_new = and_(
        found.tenant_id == wanted.c.tenant_id, found.created_at >= bindparam("since", type_=UtcDateTime)
    )
    lines = (
        select(func.count())
        .where(_lines.c.tenant_id == found.tenant_id, _lines.c.invoice_id == found.id)
        .correlate(_invoices)
        .scalar_subquery()
    )
    return _search(dialect, wanted, [wanted.c.tenant_id], [found.id, lines.label("lines")], is_new)


@cache
def active_subscriptions(dialect: str) -> Executable:
    """(position, id, plan, start, end, seats, trial end, anchor) of a request's cycle and period.

    Those that ended where the period begins are among them: what they were charged in advance is given back.
    """
    wanted, held = REQUESTS.table(dialect), _subscriptions.c
    is_active = and_(
        held.tenant_id == wanted.c.tenant_id,
        held.cycle == wanted.c.cycle,
        held.effective_at < wanted.c.period_end,
        or_(held.ended_at.is_(None), held.ended_at >= wanted.c.period_start),
    )
    columns = [held.id, held.plan_id, held.effective_at, held.ended_at]
    columns += [held.quantity, held.trial_ends_at, held.anchor_on]
    return _search(dialect, wanted, [wanted.c.position], columns, is_active)


@cache
def waiting_ids(dialect: str) -> Executable:
    """(tenant, id) of the pending lines of each tenant, cycle and currency."""
    wanted, waiting = TAKERS.table(dialect), _pending.c
    waits = and_(
        waiting.tenant_id == wanted.c.tenant_id,
        waiting.cycle == wanted.c.cycle,
        waiting.currency == wanted.c.currency,
    )
    return _search(dialect, wanted, [wanted.c.tenant_id], [waiting.id], waits)


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
    """Write ``INVOICES``."""
    new = INVOICES.table(dialect)
    given = [new.c[name] for name in INVOICES.columns]
    return insert(_invoices).from_select([*INVOICES.columns, "credited_amount"], select(*given, literal(0)))


@cache
def insert_lines(dialect: str) -> Executable:
    """Write ``LINES``, each with what ``LINE_TERMS`` says of its price."""
    new, common = LINES.table(dialect), _line_terms(dialect)
    given = [name for name in LINES.columns if name not in ("terms_id", "details")]
    of_terms = ["price_id", "kind", "metric", "description", "price_snapshot"]
    columns = [*given, *of_terms, "details", "created_at"]
    rows = select(
        *(new.c[name] for name in given),
        *(common.c[name] for name in of_terms),
        _json(dialect, new.c.details),
        bindparam("now", type_=UtcDateTime),
    ).join(common, common.c.terms_id == new.c.terms_id)
    return insert(_lines).from_select(columns, rows)


def _line_terms(dialect: str) -> FromClause:
    """``LINE_TERMS`` with their snapshots read as JSON once, and not again for every line."""
    terms = LINE_TERMS.table(dialect)
    given = [terms.c[name] for name in LINE_TERMS.columns if name != "snapshot"]
    snapshot = _json(dialect, terms.c.snapshot).label("price_snapshot")
    return select(*given, snapshot).cte("common_terms").prefix_with("MATERIALIZED")


def _json(dialect: str, written: Any) -> Any:
    # A CAST to JSON means a number on SQLite, which stores JSON as the text that it is.
    return type_coerce(cast(written, JSON) if dialect == "postgresql" else written, JSON)


def _search(
    dialect: str,
    wanted: FromClause,
    kept: Sequence[ColumnElement[Any]],
    columns: Sequence[ColumnElement[Any]],
    condition: ColumnElement[bool],
) -> Executable:
    """Select what is kept of each wanted row beside what its own search through the index finds."""
    if dialect != "postgresql":
        return select(*kept, *columns).select_from(wanted).join(_table_of(columns[0]), condition)
    # A plan made while the table was new would read all of it for every batch until the next ANALYZE. With an
    # OFFSET the sub-query cannot be merged into a join, and for one tenant the index is the cheapest way.
    found = select(*columns).where(condition).offset(0).lateral("found")
    return select(*kept, *found.c).select_from(wanted).join(found, true())


def _table_of(column: Any) -> Table:
    table: Table = column.table
    return table
