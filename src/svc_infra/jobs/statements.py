"""The queue's SQL, for both databases.

Each statement is built once per dialect and takes any number of rows, so that it is compiled and prepared
once. What they are for is said in ``svc_infra.jobs.rows``, which executes them.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    Float,
    Integer,
    Select,
    String,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql.dml import Delete, ReturningDelete
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.sql.selectable import FromClause

from svc_infra.db.base import IdText, UtcDateTime
from svc_infra.db.leases import (
    CLAIMS,
    claim_statement,
    expired,
    extend_statement,
    in_state,
    is_among,
    is_held,
)
from svc_infra.db.rowset import Rowset
from svc_infra.jobs.job import JobState
from svc_infra.jobs.models import JobCancellationRow, JobRow, QueueRow
from svc_infra.jobs.uniqueness import STATE_BITS

jobs = JobRow.metadata.tables[JobRow.__tablename__]
cancellations = JobCancellationRow.metadata.tables[JobCancellationRow.__tablename__]
queues = QueueRow.metadata.tables[QueueRow.__tablename__]
_RUNNING = JobState.RUNNING.value
_RESCUED_ERROR = "the lease expired: the worker died, or it could not reach the database"

# In the order of rows.JOB_FIELDS. JSON as its text, which rows.job_from_row reads quicker than any driver.
JOB_COLUMNS = (
    jobs.c.id,
    jobs.c.name,
    cast(jobs.c.payload, Text).label("payload"),
    jobs.c.run_at,
    jobs.c.created_at,
    jobs.c.queue,
    jobs.c.tenant_id,
    jobs.c.priority,
    jobs.c.attempt,
    jobs.c.max_attempts,
    jobs.c.lease_id,
    jobs.c.rescues,
    jobs.c.last_error,
    jobs.c.payload_version,
    cast(jobs.c.meta, Text).label("meta"),
    jobs.c.trace_context,
    jobs.c.timeout_seconds,
    jobs.c.group_id,
    jobs.c.waits_for,
)

ENDED = Rowset(
    "ended",
    id=IdText,
    lease_id=IdText,
    state=String,
    run_at=UtcDateTime,
    attempt=Integer,
    error=Text,
    finished_at=UtcDateTime,
)
_NO_LEASE = {"lease_id": null(), "lease_until": null(), "slot": null()}


def _now() -> ColumnElement[datetime]:
    return bindparam("now", type_=UtcDateTime)


class ClaimFilters(NamedTuple):
    """By what a claim chooses, beside being due; the values are parameters."""

    is_by_name: bool = False
    is_by_queue: bool = False
    has_versions: bool = False


def is_claimable(filters: ClaimFilters, jobs: FromClause = jobs) -> list[ColumnElement[bool]]:
    """The conditions of a job that is due, in a queue that is not paused, and known to the claimer.

    ``jobs`` is the table, or a select of columns of it.
    """
    is_due = [in_state(jobs, JobState.AVAILABLE.value), jobs.c.run_at <= _now()]
    paused = select(queues.c.name).where(queues.c.paused_at.is_not(None))
    is_due.append(jobs.c.queue.not_in(paused))
    member = JobRow.metadata.tables[JobRow.__tablename__].alias("member")
    open_states = [JobState.AVAILABLE.value, JobState.RUNNING.value]
    unfinished = (
        select(member.c.id)
        .where(member.c.group_id == jobs.c.waits_for, member.c.state.in_(open_states))
        # A value and not EXISTS, for which PostgreSQL would read the whole table into a hash table.
        .limit(1)
        .scalar_subquery()
    )
    is_due.append(or_(jobs.c.waits_for.is_(None), unfinished.is_(None)))
    if filters.is_by_name:
        is_due.append(jobs.c.name.in_(bindparam("names", expanding=True)))
        is_known: ColumnElement[bool] = jobs.c.payload_version == literal_column("1")
        if filters.has_versions:
            newer: BindParameter[Any] = bindparam("versions", expanding=True)
            is_known = or_(is_known, tuple_(jobs.c.name, jobs.c.payload_version).in_(newer))
        is_due.append(is_known)
    if filters.is_by_queue:
        is_due.append(jobs.c.queue.in_(bindparam("queues", expanding=True)))
    return is_due


def any_due() -> Select[Any]:
    """A job that is due at ``now``, whoever may run it."""
    return select(jobs.c.id).where(in_state(jobs, JobState.AVAILABLE.value), jobs.c.run_at <= _now())


# A key that ends with the start is given up for good: the job may come back to available.
AT_START = {
    "unique_key": case(
        (jobs.c.unique_states == STATE_BITS[JobState.AVAILABLE], null()), else_=jobs.c.unique_key
    )
}


@cache
def claim_by(filters: ClaimFilters, has_start: bool = False) -> Update:
    """Claim jobs without a limit; those with one are claimed in ``limited_claim``.

    With ``has_start`` only from the place ``start_priority``, ``start_run_at``, ``start_id`` of the order on.
    """
    start = tuple_(
        bindparam("start_priority", type_=Integer),
        bindparam("start_run_at", type_=UtcDateTime),
        bindparam("start_id", type_=IdText),
    )
    is_after_start = [tuple_(jobs.c.priority, jobs.c.run_at, jobs.c.id) >= start] if has_start else []
    candidates = (
        select(jobs.c.id, jobs.c.priority, jobs.c.run_at, jobs.c.rescues)
        .where(*is_claimable(filters), jobs.c.limit_key.is_(None), *is_after_start)
        .order_by(jobs.c.priority, jobs.c.run_at, jobs.c.id)
        .limit(bindparam("limit", type_=Integer))
    )
    return claim_statement(
        jobs, candidates, running=_RUNNING, columns=JOB_COLUMNS, choose=_rescued_jobs_alone, also=AT_START
    )


def _rescued_jobs_alone(due: CTE) -> Select[Any]:
    """Choose the first job alone if it was rescued, and otherwise all that were not.

    A rescued job may be what killed its process: it shall burn its own attempts and not its neighbours'.
    """
    order = (due.c.priority, due.c.run_at, due.c.id)
    placed = select(
        due.c.id,
        due.c.rescues,
        func.row_number().over(order_by=order).label("place"),
        func.first_value(due.c.rescues).over(order_by=order).label("first_rescues"),
    ).subquery("placed")
    return select(placed.c.id).where(
        or_(
            and_(placed.c.first_rescues > 0, placed.c.place == 1),
            and_(placed.c.first_rescues == 0, placed.c.rescues == 0),
        )
    )


@cache
def complete_statement(dialect: str) -> Update:
    return (
        update(jobs)
        .where(is_held(jobs, CLAIMS.table(dialect), running=_RUNNING))
        .values(state=JobState.COMPLETED.value, finished_at=_now(), **_NO_LEASE)
        .returning(jobs.c.id)
    )


@cache
def finish_statement(dialect: str, is_fenced: bool) -> Update:
    ended = ENDED.table(dialect)
    is_mine = (
        is_held(jobs, ended, running=_RUNNING)
        if is_fenced
        else and_(jobs.c.id == ended.c.id, in_state(jobs, JobState.COMPLETED.value))
    )
    return (
        update(jobs)
        .where(is_mine)
        .values(
            state=ended.c.state,
            run_at=func.coalesce(ended.c.run_at, jobs.c.run_at),
            attempt=ended.c.attempt,
            last_error=func.coalesce(ended.c.error, jobs.c.last_error),
            finished_at=ended.c.finished_at,
            **_NO_LEASE,
        )
        .returning(jobs.c.id)
    )


@cache
def extend_leases(dialect: str) -> Update:
    return extend_statement(jobs, dialect, running=_RUNNING)


@cache
def release_statement(dialect: str) -> Update:
    return (
        update(jobs)
        .where(is_held(jobs, CLAIMS.table(dialect), running=_RUNNING))
        .values(state=JobState.AVAILABLE.value, attempt=jobs.c.attempt - 1, **_NO_LEASE)
        .returning(jobs.c.id)
    )


@cache
def rescue_statement(has_start: bool = False) -> Update:
    """With ``has_start`` only what expired in the last ``since_seconds``."""
    since = bindparam("since_seconds", type_=Float) if has_start else None
    lost = expired(jobs, running=_RUNNING, limit=bindparam("limit", type_=Integer), since=since).cte("lost")
    is_worn_out = jobs.c.attempt >= jobs.c.max_attempts
    return (
        update(jobs)
        .where(is_among(jobs.c.id, select(lost.prefix_with("MATERIALIZED", dialect="postgresql").c.id)))
        .values(
            state=case((is_worn_out, JobState.DISCARDED.value), else_=JobState.AVAILABLE.value),
            rescues=jobs.c.rescues + 1,
            last_error=literal(_RESCUED_ERROR),
            finished_at=case((is_worn_out, _now()), else_=null()),
            **_NO_LEASE,
        )
        .returning(jobs.c.state)
    )


@cache
def cancellations_statement(dialect: str) -> Select[Any]:
    claims = CLAIMS.table(dialect)
    return select(cancellations.c.job_id, cancellations.c.reason).join(
        claims, cancellations.c.job_id == claims.c.id
    )


@cache
def cancel_unstarted() -> Update:
    """End the jobs that are wanted cancelled and do not run any more, as of the wish."""
    waiting = (
        select(jobs.c.id)
        .join(cancellations, cancellations.c.job_id == jobs.c.id)
        .where(in_state(jobs, JobState.AVAILABLE.value))
        .with_for_update(skip_locked=True, of=jobs)
        .cte("unstarted")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    wish = cancellations.c.job_id == jobs.c.id
    return (
        update(jobs)
        .where(is_among(jobs.c.id, select(waiting.c.id)))
        .values(
            state=JobState.CANCELLED.value,
            last_error=select(cancellations.c.reason).where(wish).scalar_subquery(),
            finished_at=select(cancellations.c.requested_at).where(wish).scalar_subquery(),
        )
    )


@cache
def outdated_cancellations() -> Delete:
    """Wishes whose job has finished, or is gone."""
    is_open = exists().where(jobs.c.id == cancellations.c.job_id, jobs.c.finished_at.is_(None))
    return delete(cancellations).where(~is_open)


@cache
def prune_statement() -> ReturningDelete[Any]:
    old = (
        select(jobs.c.id)
        .where(
            jobs.c.finished_at.is_not(None),
            jobs.c.state.in_(bindparam("states", expanding=True)),
            jobs.c.finished_at < bindparam("before", type_=UtcDateTime),
        )
        # Without an order PostgreSQL would read the table until it has found enough, which may be all.
        .order_by(jobs.c.finished_at)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True, of=jobs)
        .cte("old")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return delete(jobs).where(is_among(jobs.c.id, select(old.c.id))).returning(jobs.c.id)
