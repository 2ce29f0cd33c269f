"""Pausing queues and schedules, which lasts until somebody resumes them, whatever restarts meanwhile.

A paused queue keeps its jobs: they are not claimed, and those that run end. A paused schedule records its
fires as missed and enqueues nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, null, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from svc_infra.exceptions import InvalidAct, NotFound
from svc_infra.jobs.acts import record_act
from svc_infra.jobs.job import MAX_QUEUE_LENGTH, JobState
from svc_infra.jobs.models import ScheduleRow
from svc_infra.jobs.rows import dialect_of
from svc_infra.jobs.schedule_store import record_fire
from svc_infra.jobs.scheduler import Schedule
from svc_infra.jobs.statements import jobs, queues
from svc_infra.jobs.stored_schedules import added_schedules

_schedules = ScheduleRow.metadata.tables[ScheduleRow.__tablename__]


@dataclass(frozen=True, slots=True)
class ListedQueue:
    """A queue that has unfinished jobs or is paused."""

    name: str
    available: int
    running: int
    paused_at: datetime | None


@dataclass(frozen=True, slots=True)
class StoredSchedule:
    """How far a schedule has fired; ``added`` is what it is, if it was added by hand."""

    name: str
    fired_until: datetime
    paused_at: datetime | None
    added: Schedule | None = None


def pause_queue(session: Session, name: str, *, actor: str, now: datetime) -> None:
    """Let nobody claim jobs of this queue from the commit on.

    Raises:
        InvalidAct: no queue can have this name.
    """
    if not 1 <= len(name) <= MAX_QUEUE_LENGTH:
        raise InvalidAct(f"a queue's name has 1 to {MAX_QUEUE_LENGTH} characters, got {name!r:.80}")
    insert: Any = sqlite.insert if dialect_of(session) == "sqlite" else postgresql.insert
    row = insert(queues).values(name=name, paused_at=now, updated_at=now)
    kept = func.coalesce(queues.c.paused_at, row.excluded.paused_at)
    session.execute(row.on_conflict_do_update(index_elements=["name"], set_={"paused_at": kept}))
    record_act(session, "pause_queue", name, actor=actor, now=now)


def resume_queue(session: Session, name: str, *, actor: str, now: datetime) -> None:
    """Let the jobs of this queue be claimed again."""
    session.execute(update(queues).where(queues.c.name == name).values(paused_at=null(), updated_at=now))
    record_act(session, "resume_queue", name, actor=actor, now=now)


def list_queues(session: Session) -> list[ListedQueue]:
    """Return the queues with unfinished jobs and the paused ones, by name."""
    open_states = (JobState.AVAILABLE.value, JobState.RUNNING.value)
    counted = session.execute(
        select(jobs.c.queue, jobs.c.state, func.count())
        .where(jobs.c.state.in_(open_states))
        .group_by(jobs.c.queue, jobs.c.state)
    )
    counts = {(queue, state): count for queue, state, count in counted}
    is_paused = queues.c.paused_at.is_not(None)
    paused = {
        name: at for name, at in session.execute(select(queues.c.name, queues.c.paused_at).where(is_paused))
    }
    names = {queue for queue, _ in counts} | paused.keys()
    return [
        ListedQueue(
            name,
            available=counts.get((name, JobState.AVAILABLE.value), 0),
            running=counts.get((name, JobState.RUNNING.value), 0),
            paused_at=paused.get(name),
        )
        for name in sorted(names)
    ]


def pause_schedule(session: Session, name: str, *, actor: str, now: datetime) -> None:
    """Record the schedule's fires as missed from the commit on.

    Raises:
        NotFound: no scheduler has started a schedule of this name yet.
    """
    _set_schedule(session, name, paused_at=func.coalesce(_schedules.c.paused_at, now), now=now)
    record_act(session, "pause_schedule", name, actor=actor, now=now)


def resume_schedule(session: Session, name: str, *, actor: str, now: datetime) -> None:
    """Let the schedule fire again, from the next fire on.

    Raises:
        NotFound: no scheduler has started a schedule of this name yet.
    """
    _set_schedule(session, name, paused_at=null(), now=now)
    record_act(session, "resume_schedule", name, actor=actor, now=now)


def run_schedule(session: Session, schedule: Schedule, *, actor: str, now: datetime) -> str | None:
    """Fire a schedule now, paused or not, and return the id of its job; None if it fired at this instant.

    Its next fires stay as they are.
    """
    job_id = record_fire(session, schedule.name, schedule.request(now), fire_at=now, now=now)
    record_act(session, "run_schedule", schedule.name, actor=actor, now=now, job_id=job_id)
    return job_id


def list_schedules(session: Session) -> list[StoredSchedule]:
    """Return the schedules that a scheduler has started, by name."""
    columns = _schedules.c.name, _schedules.c.fired_until, _schedules.c.paused_at
    added = {schedule.name: schedule for schedule in added_schedules(session)}
    rows = session.execute(select(*columns).order_by(_schedules.c.name))
    return [StoredSchedule(*row, added.get(row.name)) for row in rows]


def _set_schedule(session: Session, name: str, *, paused_at: Any, now: datetime) -> None:
    changed = session.execute(
        update(_schedules)
        .where(_schedules.c.name == name)
        .values(paused_at=paused_at, updated_at=now)
        .returning(_schedules.c.name)
    ).all()
    if not changed:
        raise NotFound(f"no scheduler has started a schedule {name!r} yet; see 'worker.py schedules list'")
