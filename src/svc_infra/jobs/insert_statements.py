"""The SQL that writes new jobs, for both databases; executed in ``svc_infra.jobs.enqueueing``."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    Float,
    Integer,
    Select,
    String,
    Text,
    bindparam,
    cast,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.elements import ColumnElement

from svc_infra.db.base import IdText, UtcDateTime
from svc_infra.db.rowset import Rowset
from svc_infra.jobs.job import JobState
from svc_infra.jobs.models import HOLDS_ITS_KEY
from svc_infra.jobs.statements import JOB_COLUMNS, jobs

NEW_JOBS = Rowset(
    "new_jobs",
    id=IdText,
    name=String,
    queue=String,
    tenant_id=String,
    payload=Text,
    priority=Integer,
    max_attempts=Integer,
    run_at=UtcDateTime,
)
NEW_FULL_JOBS = Rowset(
    "new_jobs",
    **NEW_JOBS.columns,
    unique_key=String(64),
    unique_states=Integer,
    payload_version=Integer,
    meta=Text,
    trace_context=String,
    timeout_seconds=Float,
    limit_key=String,
    limit_slots=Integer,
    rate_starts=Integer,
    rate_seconds=Float,
    group_id=IdText,
    waits_for=IdText,
)
KEYS = Rowset("keys", key=String(64))


@cache
def new_jobs(varying: tuple[str, ...]) -> Rowset:
    """The columns of new jobs that differ between the jobs of a batch; ``id`` always does."""
    return Rowset("new_jobs", **{name: NEW_JOBS.columns[name] for name in varying})


@cache
def insert_statement(dialect: str, varying: tuple[str, ...]) -> Insert:
    """Insert jobs; the columns that are not ``varying`` are parameters of their names."""
    new = new_jobs(varying).table(dialect)
    same = {name: bindparam(name, type_=kind) for name, kind in NEW_JOBS.columns.items()}
    values = _new_values({**same, **{name: new.c[name] for name in varying}}, dialect)
    values["payload_version"] = literal_column("1", Integer)
    return insert(jobs).from_select(list(values), select(*values.values()))


@cache
def insert_full_statement(dialect: str, has_notice: bool = False) -> Any:
    """Insert what has no key or a key that is free; of those with the same key the first.

    With ``has_notice``, for PostgreSQL, it notifies ``channel`` of ``notice``, once however many rows.
    """
    new = NEW_FULL_JOBS.table(dialect)
    values = {
        **_new_values(new.c, dialect),
        "unique_key": new.c.unique_key,
        "unique_states": new.c.unique_states,
        "payload_version": new.c.payload_version,
        "meta": _json(new.c.meta, dialect),
        "trace_context": new.c.trace_context,
        "timeout_seconds": new.c.timeout_seconds,
        "limit_key": new.c.limit_key,
        "limit_slots": new.c.limit_slots,
        "rate_starts": new.c.rate_starts,
        "rate_seconds": new.c.rate_seconds,
        "group_id": new.c.group_id,
        "waits_for": new.c.waits_for,
    }
    insert_into = sqlite.insert if dialect == "sqlite" else postgresql.insert
    # Without a WHERE, SQLite would read ON CONFLICT as the ON of a join.
    rows = select(*values.values()).where(new.c.id.is_not(None))
    inserted = insert_into(jobs).from_select(list(values), rows).on_conflict_do_nothing()
    if not has_notice:
        return inserted.returning(jobs.c.id)
    notify = func.pg_notify(bindparam("channel", type_=String), bindparam("notice", type_=String))
    return inserted.returning(jobs.c.id, notify)


@cache
def existing_statement(dialect: str) -> Select[Any]:
    """The jobs that hold these keys, with their keys."""
    keys = KEYS.table(dialect)
    return (
        select(*JOB_COLUMNS, jobs.c.unique_key)
        .join(keys, jobs.c.unique_key == keys.c.key)
        .where(HOLDS_ITS_KEY)
    )


def _json(text: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    # SQLite keeps JSON as the text that it is: a cast there would mean "to a number", and a parameter that is
    # said to be JSON would be written as JSON once more.
    return text if dialect == "sqlite" else cast(text, JSON)


def _new_values(new: Any, dialect: str) -> dict[str, ColumnElement[Any]]:
    return {
        **{name: new[name] for name in NEW_JOBS.columns},
        "payload": _json(new["payload"], dialect),
        "state": literal_column(f"'{JobState.AVAILABLE.value}'", String),
        "attempt": literal_column("0", Integer),
        "rescues": literal_column("0", Integer),
        "created_at": bindparam("now", type_=UtcDateTime),
    }
