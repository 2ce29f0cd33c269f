"""Notes of recomputed months: left by every recompute, consumed by invoicing (``models.UsageChange``)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    Date,
    Delete,
    Executable,
    Select,
    delete,
    exists,
    literal,
    select,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from svc_infra.billing.columns import MetricText, TenantText
from svc_infra.billing.invoice_models import UsageChange
from svc_infra.db.base import Base
from svc_infra.db.rowset import Rowset

_NOTES = Rowset("notes", tenant_id=TenantText, metric=MetricText, month=Date)
_TENANTS = Rowset("noted_tenants", tenant_id=TenantText)
_changes = Base.metadata.tables[UsageChange.__tablename__]


class Note(NamedTuple):
    """Some day of a UTC month (its first day) of a metric was recomputed."""

    tenant_id: str
    metric: str
    month: date


def note_of(key: Any) -> Note:
    """The note of a recomputed day (an ``aggregation.DayKey``)."""
    return Note(key.tenant_id, key.metric, key.day.start.astimezone(UTC).date().replace(day=1))


def leave_notes(connection: Connection, keys: Iterable[Any]) -> None:
    """Note the months of recomputed days, in the transaction of the recompute.

    It waits for an invoicing that is consuming the same note, and is then a note of its own.
    """
    put_notes(connection, {note_of(key) for key in keys})


def put_notes(connection: Connection, notes: Iterable[Note]) -> None:
    """Leave notes, or leave them again, in key order."""
    dialect = connection.dialect.name
    connection.execute(_leave(dialect), _NOTES.parameters(dialect, sorted(set(notes))))


def take_notes(session: Session, tenant_ids: Iterable[str]) -> set[Note]:
    """Consume the notes of tenants; a recompute under way is waited for."""
    connection = session.connection()
    dialect = connection.dialect.name
    parameters = _TENANTS.parameters(dialect, [(tenant_id,) for tenant_id in sorted(set(tenant_ids))])
    found = [tuple(row) for row in connection.execute(_lock(dialect), parameters)]
    if found:
        # These and no others: a note that was left since is of a recompute that nobody has looked at.
        connection.execute(_take(dialect), _NOTES.parameters(dialect, found))
    return {Note(*row) for row in found}


@cache
def _leave(dialect: str) -> Executable:
    notes = _NOTES.table(dialect)
    # SQLite's grammar needs the WHERE to tell ON CONFLICT from a join's ON.
    rows = select(*notes.c, literal(1, BigInteger)).where(true()).order_by(*notes.c)
    upsert = postgresql.insert(_changes) if dialect == "postgresql" else sqlite.insert(_changes)
    statement: Executable = upsert.from_select(["tenant_id", "metric", "month", "changes"], rows)
    return statement.on_conflict_do_update(  # type: ignore[attr-defined,no-any-return]
        index_elements=["tenant_id", "metric", "month"], set_={"changes": _changes.c.changes + 1}
    )


@cache
def _lock(dialect: str) -> Select[Any]:
    asked = _TENANTS.table(dialect)
    return (
        select(_changes.c.tenant_id, _changes.c.metric, _changes.c.month)
        .join(asked, asked.c.tenant_id == _changes.c.tenant_id)
        # In key order, like those who leave them: nobody waits for another in a circle.
        .order_by(_changes.c.tenant_id, _changes.c.metric, _changes.c.month)
        .with_for_update(of=_changes)
    )


@cache
def _take(dialect: str) -> Delete:
    taken = _NOTES.table(dialect)
    is_taken = (
        (taken.c.tenant_id == _changes.c.tenant_id)
        & (taken.c.metric == _changes.c.metric)
        & (taken.c.month == _changes.c.month)
    )
    if dialect == "postgresql":
        return delete(_changes).where(is_taken)
    return delete(_changes).where(exists(select(taken.c.month).where(is_taken).correlate(_changes)))
