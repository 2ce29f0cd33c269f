"""Leased rows: the one mechanism by which workers share a table of due work without a leader.

A row is due, or it is leased (``lease_id``, ``lease_until``) to one claim, or it is finished. Every write of
a leased row names its ``lease_id``, so a worker whose lease was rescued changes nothing. Jobs and webhook
deliveries are both such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    Float,
    Integer,
    Select,
    String,
    Table,
    Update,
    and_,
    any_,
    bindparam,
    literal_column,
    select,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import FromClause, TableValuedAlias
from sqlalchemy.sql.visitors import InternalTraversal

from svc_infra.db.base import IdText, UtcDateTime
from svc_infra.db.rowset import Rowset

CLAIMS = Rowset("claims", id=IdText, lease_id=IdText)
"""The rows that a worker holds: their ids, each with the lease it was claimed under."""


class LeasedRow:
    """The columns that make a table one of leased rows."""

    state: Mapped[str] = mapped_column(String(16))
    run_at: Mapped[datetime] = mapped_column(UtcDateTime)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    rescues: Mapped[int] = mapped_column(Integer, default=0)
    lease_id: Mapped[str | None] = mapped_column(IdText)
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)


class wall_time(FunctionElement[datetime]):  # reads as the SQL function that it is
    """The database's own time plus some seconds; never a worker's clock, which may be wrong."""

    name = "wall_time"
    inherit_cache = True
    type = UtcDateTime()

    def __init__(self, plus_seconds: ColumnElement[Any] | None = None) -> None:
        super().__init__(*([] if plus_seconds is None else [plus_seconds]))


@compiles(wall_time, "postgresql")
def _wall_time_postgresql(element: wall_time, compiler: Any, **kw: Any) -> str:
    # Not now(): that stands still for as long as a transaction is open.
    seconds = compiler.process(element.clauses, **kw)
    return f"(clock_timestamp() + make_interval(secs => {seconds}))" if seconds else "clock_timestamp()"


@compiles(wall_time, "sqlite")
def _wall_time_sqlite(element: wall_time, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    modifier = f", ({seconds}) || ' seconds'" if seconds else ""
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now'{modifier})"


def in_state(table: FromClause, state: str) -> ColumnElement[bool]:
    """Compare the state with a literal: with a parameter no planner could use a partial index on it."""
    return table.c.state == literal_column(f"'{state}'", String)


class is_among(ColumnElement[bool]):  # reads as the SQL condition that it is
    """``column`` is one of the few values that ``chosen`` selects."""

    inherit_cache = True
    _traverse_internals = [  # noqa: RUF012  # SQLAlchemy declares it so
        ("column", InternalTraversal.dp_clauseelement),
        ("chosen", InternalTraversal.dp_clauseelement),
    ]
    type = Boolean()

    def __init__(self, column: ColumnElement[Any], chosen: Select[Any]) -> None:
        self.column = column
        self.chosen = chosen.scalar_subquery()

    def self_group(self, against: Any = None) -> is_among:
        # The base class would render "(… IN …) = 1" on SQLite, which then uses no index.
        return self


@compiles(is_among)
def _is_among(element: is_among, compiler: Any, **kw: Any) -> str:
    return f"{compiler.process(element.column, **kw)} IN {compiler.process(element.chosen, **kw)}"


@compiles(is_among, "postgresql")
def _is_among_postgresql(element: is_among, compiler: Any, **kw: Any) -> str:
    # The planner cannot know how few rows a LIMIT with a parameter lets through, and for many it would read
    # the whole table. Of an array it expects few elements, and looks each up in the index.
    return f"{compiler.process(element.column, **kw)} = ANY(ARRAY{compiler.process(element.chosen, **kw)})"


def claim_statement(
    table: Table,
    candidates: Select[Any],
    *,
    running: str,
    columns: Sequence[ColumnElement[Any]] | None = None,
    choose: Callable[[CTE], Select[Any]] | None = None,
    also: Mapping[str, ColumnElement[Any]] | None = None,
) -> Update:
    """Lease what ``candidates`` (a select of ids, ordered, limited) finds, and return the rows.

    ``choose`` may select the ids of only some of the candidates, ``also`` are further columns to set. The CTE
    is materialized because the planner may otherwise run a sub-select once per joined row and lease more rows
    than its LIMIT. Rows that others are claiming are skipped, not waited for. Parameters: ``lease_id``,
    ``lease_seconds``. RETURNING (of ``columns``, else of all) promises no order: the caller sorts.
    """
    due = (
        candidates.with_for_update(skip_locked=True, of=table)
        .cte("due")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    chosen = select(due.c.id) if choose is None else choose(due)
    return (
        update(table)
        .where(is_among(table.c.id, chosen))
        .values(
            state=running,
            attempt=table.c.attempt + 1,
            lease_id=bindparam("lease_id", type_=IdText),
            lease_until=wall_time(_lease_seconds()),
            **(also or {}),
        )
        .returning(*(table.c if columns is None else columns))
    )


def extend_statement(table: Table, dialect: str, *, running: str) -> Update:
    """Extend the leases in ``CLAIMS`` that are still held, and return their ids.

    Rows that are locked are skipped: a finish holds its row until its commit, and waiting for it would let
    the worker's other leases run out. Parameters: those of ``CLAIMS`` and ``lease_seconds``.
    """
    claims = CLAIMS.table(dialect)
    held = (
        select(table.c.id)
        .select_from(table.join(claims, table.c.id == claims.c.id))
        .where(is_held(table, claims, running=running))
        .with_for_update(skip_locked=True, of=table)
        .cte("held")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return (
        update(table)
        .where(is_among(table.c.id, select(held.c.id)))
        .values(lease_until=wall_time(_lease_seconds()))
        .returning(table.c.id)
    )


def expired(
    table: Table, *, running: str, limit: int | ColumnElement[int], since: ColumnElement[Any] | None = None
) -> Select[Any]:
    """Select the ids of rows whose lease has run out and that nobody is finishing at this moment.

    ``since`` leaves out those that ran out more than so many seconds ago.
    """
    is_recent = [] if since is None else [table.c.lease_until >= wall_time(-since)]
    return (
        select(table.c.id)
        .where(in_state(table, running), table.c.lease_until < wall_time(), *is_recent)
        .order_by(table.c.lease_until)
        .limit(limit)
        .with_for_update(skip_locked=True, of=table)
    )


def is_held(table: Table, claims: FromClause, *, running: str) -> ColumnElement[bool]:
    """The fence: this row is still leased under the lease that the claim was given.

    ``claims`` is a rowset whose first columns are ``id`` and ``lease_id``. PostgreSQL would read all of the
    index of leased rows, with every dead entry that a long transaction keeps in it, because it expects few;
    the ids as an array make it look each row up. That a leased row is ``running`` is there said by a check
    constraint of the table, and not by a condition that would offer that index.
    """
    is_same = and_(table.c.id == claims.c.id, table.c.lease_id == claims.c.lease_id)
    if isinstance(claims, TableValuedAlias):
        unnest: Any = claims.element
        ids: ColumnElement[Any] = next(iter(unnest.clauses))
        return and_(table.c.id == any_(ids), is_same)
    return and_(is_same, in_state(table, running))


def _lease_seconds() -> ColumnElement[Any]:
    return bindparam("lease_seconds", type_=Float)
