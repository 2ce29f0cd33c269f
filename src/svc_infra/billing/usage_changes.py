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
    Executable,
    and_,
    delete,
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
    return {Note(*row) for row in connection.execute(_take(dialect), parameters)}


@cache
def _leave(dialect: str) -> Executable:
    notes = _NOTES.table(dialect)
    # SQLite's grammar needs the WHERE to tell ON CONFLICT from a join's ON.
    rows = select(*notes.c, literal(1, BigInteger)).where(true()).order_by(*notes.c)
    upsert = postgresql.insert(_changes) if dialect == "postgresql" else sqlite.insert(_changes)
    return upsert.from_select(["tenant_id", "metric", "month", "changes"], rows).on_conflict_do_update(
        index_elements=["tenant_id", "metric", "month"], set_={"changes": _changes.c.changes + 1}
    )


@cache
def _take(dialect: str) -> Executable:
    asked, key = _TENANTS.table(dialect), (_changes.c.tenant_id, _changes.c.metric, _changes.c.month)
    if dialect != "postgresql":
        return delete(_changes).where(_changes.c.tenant_id.in_(select(asked.c.tenant_id))).returning(*key)
    # Locked in key order first, like those who leave them: nobody waits for another in a circle. These and no
    # others are deleted: a note that was left since is of a recompute that nobody has looked at.
    locked = (
        select(*key)
        .join(asked, asked.c.tenant_id == _changes.c.tenant_id)
        .order_by(*key)
        .with_for_update(of=_changes)
        .cte("locked")
        .prefix_with("MATERIALIZED")
    )
    taken = and_(*(column == locked.c[column.name] for column in key))
    return delete(_changes).where(taken).returning(*key)
