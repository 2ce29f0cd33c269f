"""What can be done to rows of jobs, written once for both databases over a synchronous ``Session``.

Asynchronous code comes here through ``await session.run_sync(...)``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from svc_infra.db.base import new_id
from svc_infra.db.leases import CLAIMS
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.queue import Finish, Rescued, claim_order
from svc_infra.jobs.statements import (
    ENDED,
    ClaimFilters,
    cancel_unstarted,
    cancellations_statement,
    claim_by,
    complete_statement,
    extend_leases,
    finish_statement,
    outdated_cancellations,
    prune_statement,
    release_statement,
    rescue_statement,
)


def dialect_of(session: Session) -> str:
    """Return the name of the session's database: ``sqlite`` or ``postgresql``."""
    return session.get_bind().dialect.name


def job_from_row(row: Sequence[Any], database: str | None) -> Job:
    """Return the job in a row of ``JOB_COLUMNS``."""
    # Spelled out: this runs once a job, and keywords from a dict take twice as long.
    job_id, name, payload, run_at, created_at, queue, tenant_id, priority, *rest = row
    attempt, max_attempts, lease_id, rescues, last_error, *rest = rest
    payload_version, metadata, trace_context, timeout_seconds, group_id, waits_for = rest
    return Job(
        id=job_id,
        name=name,
        payload=payload,
        run_at=run_at,
        created_at=created_at,
        queue=queue,
        tenant_id=tenant_id,
        priority=priority,
        attempt=attempt,
        max_attempts=max_attempts,
        lease_id=lease_id,
        rescues=rescues,
        last_error=last_error,
        payload_version=payload_version,
        metadata=metadata,
        trace_context=trace_context,
        timeout_seconds=timeout_seconds,
        group_id=group_id,
        waits_for=waits_for,
        database=database,
    )


def claim_filters(
    *, names: Collection[str] | None, versions: Mapping[str, int] | None, queues: Collection[str] | None
) -> tuple[ClaimFilters, dict[str, Any]]:
    """Return which conditions a claim has, and their parameters."""
    newer = [(name, number) for name, last in (versions or {}).items() for number in range(2, last + 1)]
    parameters: dict[str, Any] = {}
    if names is not None:
        parameters["names"] = sorted(names)
    if queues is not None:
        parameters["queues"] = sorted(queues)
    if newer and names is not None:
        parameters["versions"] = newer
    return ClaimFilters(names is not None, queues is not None, "versions" in parameters), parameters


def claim_jobs(
    session: Session,
    limit: int,
    *,
    names: Collection[str] | None,
    versions: Mapping[str, int] | None,
    queues: Collection[str] | None,
    now: datetime,
    lease_seconds: float,
    database: str,
) -> list[Job]:
    """Lease up to ``limit`` due jobs of kinds without a limit, in claim order; a rescued one alone."""
    filters, parameters = claim_filters(names=names, versions=versions, queues=queues)
    parameters |= {
        "limit": limit,
        "now": now,
        "lease_id": new_id(),
        "lease_seconds": float(lease_seconds),
    }
    statement = claim_by(*filters)
    rows = session.execute(statement, parameters).all()
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
    return _end_jobs(session, finishes, is_fenced=True)


def rewrite_completed(session: Session, finishes: Iterable[Finish]) -> None:
    """Replace the completion that this same transaction wrote by other transitions."""
    _end_jobs(session, finishes, is_fenced=False)


def extend_jobs(session: Session, claimed: Iterable[Job], *, lease_seconds: float) -> set[str]:
    """Extend the leases that are still held and not being finished; return the ids."""
    dialect = dialect_of(session)
    parameters = {**CLAIMS.parameters(dialect, _leases(claimed)), "lease_seconds": float(lease_seconds)}
    return set(session.execute(extend_leases(dialect), parameters).scalars())


def release_jobs(session: Session, claimed: Iterable[Job]) -> set[str]:
    """Give back jobs that are still held, and their attempts; return the ids."""
    dialect = dialect_of(session)
    parameters = CLAIMS.parameters(dialect, _leases(claimed))
    released = set(session.execute(release_statement(dialect), parameters).scalars())
    session.execute(cancel_unstarted())
    return released


def rescue_jobs(session: Session, *, now: datetime, limit: int) -> Rescued:
    """Return up to ``limit`` expired leases; discard what has no attempt left."""
    states = list(session.execute(rescue_statement(), {"now": now, "limit": limit}).scalars())
    session.execute(cancel_unstarted())
    discarded = states.count(JobState.DISCARDED.value)
    return Rescued(len(states) - discarded, discarded)


def cancellations_of(session: Session, ids: Sequence[str]) -> dict[str, str]:
    """Return the reasons, by job id, for which these running jobs are to be cancelled."""
    dialect = dialect_of(session)
    parameters = CLAIMS.parameters(dialect, [(job_id, "") for job_id in ids])
    return {
        job_id: reason for job_id, reason in session.execute(cancellations_statement(dialect), parameters)
    }


def prune_jobs(
    session: Session, *, finished_before: datetime, states: Collection[JobState], limit: int
) -> int:
    """Delete up to ``limit`` jobs in these states that finished before then; return how many."""
    session.execute(outdated_cancellations())
    parameters = {"before": finished_before, "states": [state.value for state in states], "limit": limit}
    return len(session.execute(prune_statement(), parameters).all())


def _end_jobs(session: Session, finishes: Iterable[Finish], *, is_fenced: bool) -> set[str]:
    dialect, ends = dialect_of(session), list(finishes)
    ended = set(session.execute(finish_statement(dialect, is_fenced), _endings(dialect, ends)).scalars())
    if any(end.transition.state is JobState.AVAILABLE for end in ends):
        # Somebody may want a job cancelled that would now wait for its next attempt.
        session.execute(cancel_unstarted())
    return ended


def _leases(claimed: Iterable[Job]) -> list[tuple[str, str | None]]:
    return [(job.id, job.lease_id) for job in claimed]


def _endings(dialect: str, finishes: Iterable[Finish]) -> dict[str, Any]:
    rows = [
        (job.id, job.lease_id, end.state.value, end.run_at, end.attempt, end.error, end.finished_at)
        for job, end in finishes
    ]
    return ENDED.parameters(dialect, rows)
