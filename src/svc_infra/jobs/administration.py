"""What an operator does to jobs: look, retry, cancel, requeue dead letters, purge.

Every function works in the caller's transaction and records its act there. Asynchronous code calls them
through ``await session.run_sync(...)``. ``now`` is business time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, null, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from svc_infra.exceptions import InvalidAct, NotFound
from svc_infra.jobs.acts import record_act
from svc_infra.jobs.error_fingerprint import error_fingerprint, error_pattern
from svc_infra.jobs.job import FINISHED, JobState
from svc_infra.jobs.models import JobCancellationRow
from svc_infra.jobs.queue import StoredJob
from svc_infra.jobs.rows import dialect_of, job_from_row, prune_jobs
from svc_infra.jobs.statements import JOB_COLUMNS, jobs

_cancellations = JobCancellationRow.metadata.tables[JobCancellationRow.__tablename__]
_STORED_COLUMNS = (*JOB_COLUMNS, jobs.c.state, jobs.c.lease_until, jobs.c.finished_at)
_DEAD = frozenset({JobState.DISCARDED, JobState.CANCELLED})
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Dead letters that ended with the same error; ``pattern`` has ``#`` for what differs."""

    fingerprint: str
    pattern: str
    jobs: int


def list_jobs(
    session: Session,
    *,
    state: JobState | None = None,
    name: str | None = None,
    queue: str | None = None,
    tenant_id: str | None = None,
    error_like: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[StoredJob]:
    """Return jobs by id, which is the order in which they were enqueued; ``after`` is the last one seen.

    ``error_like`` is an SQL pattern (``%`` any text, ``_`` any character) for the last error.
    """
    query = select(*_STORED_COLUMNS).order_by(jobs.c.id).limit(limit)
    wanted = {
        jobs.c.state: None if state is None else state.value,
        jobs.c.name: name,
        jobs.c.queue: queue,
        jobs.c.tenant_id: tenant_id,
    }
    query = query.where(*(column == value for column, value in wanted.items() if value is not None))
    if error_like is not None:
        query = query.where(jobs.c.last_error.like(error_like))
    if after is not None:
        query = query.where(jobs.c.id > after)
    return _stored(session, query)


def show_job(session: Session, job_id: str) -> StoredJob:
    """Return one job.

    Raises:
        NotFound: there is none with this id.
    """
    found = _stored(session, select(*_STORED_COLUMNS).where(jobs.c.id == job_id))
    if not found:
        raise NotFound(f"there is no job {job_id!r}; it was pruned, or never committed")
    return found[0]


def retry_job(session: Session, job_id: str, *, actor: str, now: datetime) -> None:
    """Make a dead letter or a waiting job due now; a dead letter gets all its attempts anew.

    Raises:
        NotFound: there is no such job.
        InvalidAct: the job is running or completed.
    """
    stored = show_job(session, job_id)
    if stored.state is JobState.AVAILABLE:
        waiting = jobs.c.id == job_id, jobs.c.state == JobState.AVAILABLE.value
        changed = session.execute(update(jobs).where(*waiting).values(run_at=now).returning(jobs.c.id)).all()
    else:
        changed = _revive(session, [job_id], now=now) if stored.state in _DEAD else []
    if not changed:
        raise InvalidAct(
            f"job {job_id} is {stored.state.value}; only a waiting, discarded or cancelled one can be retried"
        )
    record_act(session, "retry", job_id, actor=actor, now=now, was=stored.state.value)


def cancel_job(session: Session, job_id: str, *, actor: str, now: datetime) -> JobState:
    """Cancel a job, and return the state that it was in.

    One that waits is cancelled at once. One that runs is ended by its worker at the next beat of its
    heartbeat, unless it has finished by then; what its transaction did is rolled back.

    Raises:
        NotFound: there is no such job.
        InvalidAct: the job has finished.
    """
    waiting = jobs.c.id == job_id, jobs.c.state == JobState.AVAILABLE.value
    reason = f"cancelled by {actor}"[:200]
    cancelled = session.execute(
        update(jobs)
        .where(*waiting)
        .values(state=JobState.CANCELLED.value, finished_at=now, last_error=reason)
        .returning(jobs.c.id)
    ).all()
    was = JobState.AVAILABLE if cancelled else show_job(session, job_id).state
    if was in FINISHED:
        raise InvalidAct(f"job {job_id} is {was.value} already; there is nothing to cancel")
    if was is JobState.RUNNING:
        insert = sqlite.insert if dialect_of(session) == "sqlite" else postgresql.insert
        wish = insert(_cancellations).values(job_id=job_id, reason=reason, requested_at=now)
        session.execute(wish.on_conflict_do_nothing())
    record_act(session, "cancel", job_id, actor=actor, now=now, was=was.value)
    return was


def requeue_dead(
    session: Session,
    *,
    actor: str,
    now: datetime,
    error_like: str | None = None,
    fingerprint: str | None = None,
    name: str | None = None,
    limit: int = 10_000,
) -> int:
    """Give discarded jobs all their attempts anew, due now, and return how many.

    They are those whose last error matches the SQL pattern ``error_like`` or has this ``fingerprint`` (see
    ``error_groups``), of one name if it is given.

    Raises:
        InvalidAct: neither a pattern nor a fingerprint was given.
    """
    if error_like is None and fingerprint is None:
        raise InvalidAct("say which errors: give error_like or fingerprint ('%' is every error)")
    chosen = [
        stored.job.id
        for stored in _dead_letters(session, name=name, error_like=error_like)
        if fingerprint is None or error_fingerprint(stored.job.last_error or "") == fingerprint
    ][:limit]
    revived = len(_revive(session, chosen, now=now))
    detail = {"error_like": error_like, "fingerprint": fingerprint, "name": name, "jobs": revived}
    record_act(session, "requeue", name or "*", actor=actor, now=now, **detail)
    return revived


def error_groups(session: Session, *, name: str | None = None) -> list[ErrorGroup]:
    """Count the dead letters by error, the most frequent first."""
    counts: Counter[str] = Counter(
        error_pattern(stored.job.last_error or "") for stored in _dead_letters(session, name=name)
    )
    return [ErrorGroup(error_fingerprint(pattern), pattern, n) for pattern, n in counts.most_common()]


def purge_jobs(
    session: Session,
    *,
    actor: str,
    now: datetime,
    states: Collection[JobState],
    finished_before: datetime,
    limit: int = _PAGE,
) -> int:
    """Delete up to ``limit`` jobs in these terminal states that finished before then; return how many.

    Raises:
        InvalidAct: a state is not a terminal one.
    """
    if not states or not FINISHED.issuperset(states):
        raise InvalidAct("only completed, discarded and cancelled jobs can be purged; cancel others first")
    purged = prune_jobs(session, finished_before=finished_before, states=states, limit=limit)
    if purged:
        names = ",".join(sorted(state.value for state in states))
        detail = {"finished_before": finished_before.isoformat(), "jobs": purged}
        record_act(session, "purge", names, actor=actor, now=now, **detail)
    return purged


def _dead_letters(
    session: Session, *, name: str | None = None, error_like: str | None = None
) -> Iterator[StoredJob]:
    after: str | None = None
    while page := list_jobs(
        session, state=JobState.DISCARDED, name=name, error_like=error_like, after=after, limit=_PAGE
    ):
        yield from page
        after = page[-1].job.id


def _revive(session: Session, ids: Collection[str], *, now: datetime) -> list[Any]:
    """Make dead letters available again, with all their attempts; others are left as they are."""
    is_dead = jobs.c.state.in_([state.value for state in _DEAD])
    session.execute(delete(_cancellations).where(_cancellations.c.job_id.in_(ids)))
    return list(
        session.execute(
            update(jobs)
            .where(jobs.c.id.in_(ids), is_dead)
            .values(
                state=JobState.AVAILABLE.value,
                run_at=now,
                attempt=0,
                rescues=0,
                finished_at=null(),
                unique_key=null(),
            )
            .returning(jobs.c.id)
        ).all()
    )


def _stored(session: Session, query: Select[Any]) -> list[StoredJob]:
    return [
        StoredJob(job_from_row(row[:-3], None), JobState(row.state), row.lease_until, row.finished_at)
        for row in session.execute(query)
    ]
