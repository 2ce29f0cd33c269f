"""What can be done to rows of jobs, written once for both databases over a synchronous ``Session``.

Asynchronous code comes here through ``await session.run_sync(...)``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra.canonical import read_json
from svc_infra.db.base import new_id
from svc_infra.db.leases import CLAIMS
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.queue import DEFAULT_LEASE_SECONDS, Finish, Rescued, claim_order
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

Position: TypeAlias = tuple[int, datetime, str]
"""A place in the order in which jobs are claimed: priority, ``run_at`` and id."""

JOB_FIELDS = (
    *("id", "name", "payload", "run_at", "created_at", "queue", "tenant_id", "priority", "attempt"),
    *("max_attempts", "lease_id", "rescues", "last_error", "payload_version", "metadata", "trace_context"),
    *("timeout_seconds", "group_id", "waits_for"),
)


def dialect_of(session: Session) -> str:
    """Return the name of the session's database: ``sqlite`` or ``postgresql``."""
    return session.get_bind().dialect.name


def sync_session(session: Session | AsyncSession) -> Session:
    """Return the session that does the work."""
    return session.sync_session if isinstance(session, AsyncSession) else session


def database_of(session: Session | AsyncSession) -> str:
    """Return the name by which two sessions are known to be on the same database.

    It has no user and no password in it. An in-memory SQLite database is known by its engine.
    """
    engine = sync_session(session).get_bind().engine
    url = engine.url
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        return f"sqlite memory {id(engine)}"
    return f"{backend} {url.host or ''}:{url.port or ''}/{url.database}"


def job_from_row(row: Sequence[Any], database: str | None) -> Job:
    """Return the job in a row of ``JOB_COLUMNS``."""
    # Past the constructor, which would set each of the fields of a frozen dataclass by a call of its own.
    fields = dict(zip(JOB_FIELDS, row, strict=True))
    fields["payload"] = read_json(fields["payload"])
    if fields["metadata"] is not None:
        fields["metadata"] = read_json(fields["metadata"])
    fields["database"] = database
    job: Job = object.__new__(Job)
    object.__setattr__(job, "__dict__", fields)
    return job


@dataclass(frozen=True, slots=True)
class ClaimTerms:
    """Which due jobs a claim may lease, at which business time, and for how long; see ``JobQueue.claim``."""

    now: datetime
    names: Collection[str] | None = None
    versions: Mapping[str, int] | None = None
    queues: Collection[str] | None = None
    lease_seconds: float = DEFAULT_LEASE_SECONDS

    def conditions(self) -> tuple[ClaimFilters, dict[str, Any]]:
        """Return which conditions the claim has, and their parameters."""
        newer = [
            (name, number) for name, last in (self.versions or {}).items() for number in range(2, last + 1)
        ]
        parameters: dict[str, Any] = {"now": self.now}
        if self.names is not None:
            parameters["names"] = sorted(self.names)
        if self.queues is not None:
            parameters["queues"] = sorted(self.queues)
        if newer and self.names is not None:
            parameters["versions"] = newer
        filters = ClaimFilters(self.names is not None, self.queues is not None, "versions" in parameters)
        return filters, parameters

    def lease(self) -> dict[str, Any]:
        """Return the parameters of a lease of its own."""
        return {"lease_id": new_id(), "lease_seconds": float(self.lease_seconds)}


def claim_jobs(
    session: Session, limit: int, terms: ClaimTerms, *, start: Position | None = None
) -> list[Job]:
    """Lease up to ``limit`` due jobs of kinds without a limit, in claim order; a rescued one alone.

    With ``start`` only those from that place of the order on are looked at.
    """
    filters, parameters = terms.conditions()
    parameters |= {"limit": limit, **terms.lease()}
    if start is not None:
        parameters |= dict(zip(("start_priority", "start_run_at", "start_id"), start, strict=True))
    statement = claim_by(filters, start is not None)
    rows = session.execute(statement, parameters).all()
    assert len(rows) <= limit, f"claimed {len(rows)} jobs with a limit of {limit}"
    return claimed_jobs(session, rows)


def claimed_jobs(session: Session, rows: Iterable[Sequence[Any]]) -> list[Job]:
    """Return the jobs in rows of ``JOB_COLUMNS``, in claim order."""
    database = database_of(session)
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


def may_be_cancelled(ends: Sequence[Finish]) -> bool:
    """Whether somebody may want one of them cancelled that would now wait for its next attempt."""
    return any(end.transition.state is JobState.AVAILABLE for end in ends)


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


def rescue_jobs(
    session: Session, *, now: datetime, limit: int, since_seconds: float | None = None
) -> Rescued:
    """Return up to ``limit`` expired leases; discard what has no attempt left.

    With ``since_seconds`` only leases that ran out in the last so many seconds are looked at.
    """
    parameters: dict[str, Any] = {"now": now, "limit": limit}
    if since_seconds is not None:
        parameters["since_seconds"] = since_seconds
    states = list(session.execute(rescue_statement(since_seconds is not None), parameters).scalars())
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
    if may_be_cancelled(ends):
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
