"""Everything that goes on in the queue at one moment, for a screen: a few aggregates and nothing per job.

The time that it takes grows with the number of unfinished jobs and of those that finished in the last minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import case, func, or_, select
from sqlalchemy.orm import Session

from svc_infra.db.leases import in_state, wall_time
from svc_infra.jobs.job import FINISHED, JobState
from svc_infra.jobs.statements import jobs, queues

RATE_SECONDS = 60
_LEASES = 8
_FAILURES = 8


@dataclass(frozen=True, slots=True)
class QueueState:
    """One queue: what is due (since when), what waits for its time, what runs, what it completes a minute."""

    name: str
    due: int
    oldest_due_at: datetime | None
    scheduled: int
    running: int
    completed_per_minute: int
    paused_at: datetime | None


@dataclass(frozen=True, slots=True)
class NameState:
    """The jobs of one name: what waits (retrying: after a failed attempt), and how many ended in a minute."""

    name: str
    waiting: int
    retrying: int
    running: int
    completed_per_minute: int
    discarded_per_minute: int
    cancelled_per_minute: int


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What a worker holds under the lease of one claim, and for how long still if it is not extended."""

    lease_id: str
    jobs: int
    name: str
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that was discarded."""

    job_id: str
    name: str
    attempt: int
    finished_at: datetime
    error: str | None


@dataclass(frozen=True, slots=True)
class Overview:
    """The queue at the business instant ``at``."""

    at: datetime
    queues: list[QueueState]
    names: list[NameState]
    leases: list[LeaseState]
    failures: list[Failure]


_Counts = dict[tuple[str, str], dict[str, int]]


def overview(session: Session, *, now: datetime) -> Overview:
    """Return what goes on; ``now`` is business time. The leases are those that end first."""
    open_counts: _Counts = {}
    oldest: dict[str, datetime] = {}
    is_due = jobs.c.run_at <= now
    query = select(
        jobs.c.queue,
        jobs.c.name,
        jobs.c.state,
        func.count(),
        func.sum(case((is_due, 1), else_=0)),
        func.sum(case((jobs.c.attempt > 0, 1), else_=0)),
        func.min(jobs.c.run_at),
    )
    is_open = or_(in_state(jobs, JobState.AVAILABLE.value), in_state(jobs, JobState.RUNNING.value))
    rows = session.execute(query.where(is_open).group_by(jobs.c.queue, jobs.c.name, jobs.c.state))
    for queue, name, state, count, due, tried, first_at in rows:
        counts = open_counts.setdefault((queue, name), {})
        if state == JobState.RUNNING:
            counts["running"] = count
        else:
            counts |= {"due": due, "scheduled": count - due, "retrying": tried}
            if due:
                oldest[queue] = min(first_at, oldest.get(queue, first_at))
    ended = _ended(session, now=now)
    paused = select(queues.c.name, queues.c.paused_at).where(queues.c.paused_at.is_not(None))
    return Overview(
        at=now,
        queues=_queues(open_counts, ended, oldest, {name: at for name, at in session.execute(paused)}),
        names=_names(open_counts, ended),
        leases=_leases(session),
        failures=_failures(session),
    )


def _ended(session: Session, *, now: datetime) -> _Counts:
    """Count what ended in the last minute, by queue and name, and then by state."""
    ended: _Counts = {}
    rows = session.execute(
        select(jobs.c.queue, jobs.c.name, jobs.c.state, func.count())
        .where(
            jobs.c.finished_at.is_not(None),
            jobs.c.state.in_([state.value for state in FINISHED]),
            jobs.c.finished_at > now - timedelta(seconds=RATE_SECONDS),
        )
        .group_by(jobs.c.queue, jobs.c.name, jobs.c.state)
    )
    for queue, name, state, count in rows:
        ended.setdefault((queue, name), {})[state] = count
    return ended


def _queues(
    open_counts: _Counts, ended: _Counts, oldest: dict[str, datetime], paused: dict[str, datetime]
) -> list[QueueState]:
    names = {queue for queue, _ in open_counts.keys() | ended.keys()} | paused.keys()
    return [
        QueueState(
            queue,
            due=_total(open_counts, 0, queue, "due"),
            oldest_due_at=oldest.get(queue),
            scheduled=_total(open_counts, 0, queue, "scheduled"),
            running=_total(open_counts, 0, queue, "running"),
            completed_per_minute=_total(ended, 0, queue, JobState.COMPLETED.value),
            paused_at=paused.get(queue),
        )
        for queue in sorted(names)
    ]


def _names(open_counts: _Counts, ended: _Counts) -> list[NameState]:
    names = {name for _, name in open_counts.keys() | ended.keys()}
    return [
        NameState(
            name,
            waiting=_total(open_counts, 1, name, "due") + _total(open_counts, 1, name, "scheduled"),
            retrying=_total(open_counts, 1, name, "retrying"),
            running=_total(open_counts, 1, name, "running"),
            completed_per_minute=_total(ended, 1, name, JobState.COMPLETED.value),
            discarded_per_minute=_total(ended, 1, name, JobState.DISCARDED.value),
            cancelled_per_minute=_total(ended, 1, name, JobState.CANCELLED.value),
        )
        for name in sorted(names)
    ]


def _total(counts: _Counts, part: int, value: str, of: str) -> int:
    return sum(count.get(of, 0) for key, count in counts.items() if key[part] == value)


def _leases(session: Session) -> list[LeaseState]:
    first = func.min(jobs.c.lease_until)
    rows = session.execute(
        select(jobs.c.lease_id, func.count(), func.min(jobs.c.name), first, wall_time())
        .where(in_state(jobs, JobState.RUNNING.value))
        .group_by(jobs.c.lease_id)
        .order_by(first)
        .limit(_LEASES)
    )
    return [
        LeaseState(lease_id, count, name, round((until - wall).total_seconds(), 1))
        for lease_id, count, name, until, wall in rows
    ]


def _failures(session: Session) -> list[Failure]:
    columns = jobs.c.id, jobs.c.name, jobs.c.attempt, jobs.c.finished_at, jobs.c.last_error
    discarded = select(*columns).where(
        jobs.c.finished_at.is_not(None), jobs.c.state == JobState.DISCARDED.value
    )
    rows = session.execute(discarded.order_by(jobs.c.finished_at.desc()).limit(_FAILURES))
    return [Failure(*row) for row in rows]
