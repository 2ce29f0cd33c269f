"""What can be done to rows of jobs, written once for both databases over a synchronous ``Session``.

Asynchronous code comes here through ``await session.run_sync(...)``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from svc_infra.db.base import new_id
from svc_infra.db.leases import CLAIMS
from svc_infra.jobs.job import DEFAULT_MAX_ATTEMPTS, Job, JobRequest, JobState
from svc_infra.jobs.queue import Finish, Rescued, claim_order
from svc_infra.jobs.statements import (
    ENDED,
    JOB_COLUMNS,
    NEW_JOBS,
    claim_by,
    complete_statement,
    extend_leases,
    finish_statement,
    insert_statement,
    prune_statement,
    release_statement,
    rescue_statement,
)

_JOB_FIELDS = tuple(column.name for column in JOB_COLUMNS)


def dialect_of(session: Session) -> str:
    """Return the name of the session's database: ``sqlite`` or ``postgresql``."""
    return session.get_bind().dialect.name


def job_from_row(row: Sequence[Any], database: str | None) -> Job:
    """Return the job in a row of ``JOB_COLUMNS``."""
    return Job(**dict(zip(_JOB_FIELDS, row, strict=True)), database=database)


def insert_jobs(session: Session, requests: Sequence[JobRequest], *, now: datetime) -> list[str]:
    """Insert many jobs in one statement and return their ids in the order of ``requests``.

    A request without ``run_at`` is due at ``now``, which is business time.
    """
    if not requests:
        return []
    ids = [new_id() for _ in requests]
    rows = [
        (
            job_id,
            request.name,
            request.queue,
            request.tenant_id,
            request.payload_json,
            request.priority,
            request.max_attempts or DEFAULT_MAX_ATTEMPTS,
            request.run_at or now,
        )
        for job_id, request in zip(ids, requests, strict=True)
    ]
    dialect = dialect_of(session)
    session.execute(insert_statement(dialect), {**NEW_JOBS.parameters(dialect, rows), "now": now})
    return ids


def claim_jobs(
    session: Session,
    limit: int,
    *,
    names: Collection[str] | None,
    queues: Collection[str] | None,
    now: datetime,
    lease_seconds: float,
    database: str,
) -> list[Job]:
    """Lease up to ``limit`` due jobs, in claim order; a rescued one alone."""
    parameters: dict[str, Any] = {
        "limit": limit,
        "now": now,
        "lease_id": new_id(),
        "lease_seconds": float(lease_seconds),
    }
    if names is not None:
        parameters["names"] = sorted(names)
    if queues is not None:
        parameters["queues"] = sorted(queues)
    rows = session.execute(claim_by(names is not None, queues is not None), parameters).all()
    assert len(rows) <= limit, f"claimed {len(rows)} jobs with a limit of {limit}"
    return sorted((job_from_row(row, database) for row in rows), key=claim_order)


def complete_jobs(session: Session, claimed: Iterable[Job], *, now: datetime) -> set[str]:
    """Complete the jobs that are still held and return their ids: the fence of a handler's transaction.

    It is the transaction's first statement. Its row locks keep everybody else away until the commit.
    """
    dialect = dialect_of(session)
    parameters = {**CLAIMS.parameters(dialect, _leases(claimed)), "now": now}
    return set(session.execute(complete_statement(dialect), parameters).scalars())


def finish_jobs(session: Session, finishes: Iterable[Finish]) -> set[str]:
    """Write the transitions of jobs that are still held and return their ids."""
    dialect = dialect_of(session)
    return set(session.execute(finish_statement(dialect, True), _endings(dialect, finishes)).scalars())


def rewrite_completed(session: Session, finishes: Iterable[Finish]) -> None:
    """Replace the completion that this same transaction wrote by other transitions."""
    dialect = dialect_of(session)
    session.execute(finish_statement(dialect, False), _endings(dialect, finishes))


def extend_jobs(session: Session, claimed: Iterable[Job], *, lease_seconds: float) -> set[str]:
    """Extend the leases that are still held and not being finished; return the ids."""
    dialect = dialect_of(session)
    parameters = {**CLAIMS.parameters(dialect, _leases(claimed)), "lease_seconds": float(lease_seconds)}
    return set(session.execute(extend_leases(dialect), parameters).scalars())


def release_jobs(session: Session, claimed: Iterable[Job]) -> set[str]:
    """Give back jobs that are still held, and their attempts; return the ids."""
    dialect = dialect_of(session)
    return set(
        session.execute(release_statement(dialect), CLAIMS.parameters(dialect, _leases(claimed))).scalars()
    )


def rescue_jobs(session: Session, *, now: datetime, limit: int) -> Rescued:
    """Return up to ``limit`` expired leases; discard what has no attempt left."""
    states = list(session.execute(rescue_statement(), {"now": now, "limit": limit}).scalars())
    discarded = states.count(JobState.DISCARDED.value)
    return Rescued(len(states) - discarded, discarded)


def prune_jobs(
    session: Session, *, finished_before: datetime, states: Collection[JobState], limit: int
) -> int:
    """Delete up to ``limit`` jobs in these states that finished before then; return how many."""
    parameters = {"before": finished_before, "states": [state.value for state in states], "limit": limit}
    return len(session.execute(prune_statement(), parameters).all())


def _leases(claimed: Iterable[Job]) -> list[tuple[str, str | None]]:
    return [(job.id, job.lease_id) for job in claimed]


def _endings(dialect: str, finishes: Iterable[Finish]) -> dict[str, Any]:
    rows = [
        (job.id, job.lease_id, end.state.value, end.run_at, end.attempt, end.error, end.finished_at)
        for job, end in finishes
    ]
    return ENDED.parameters(dialect, rows)
