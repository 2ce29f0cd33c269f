"""Schedules that somebody adds while workers run: kept in the database, and taken up by every scheduler."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from svc_infra.config import ScheduleSettings
from svc_infra.exceptions import InvalidAct, InvalidSchedule, NotFound
from svc_infra.jobs.acts import record_act
from svc_infra.jobs.cron import CatchUp, CronSchedule
from svc_infra.jobs.models import ScheduleRow
from svc_infra.jobs.rows import dialect_of
from svc_infra.jobs.scheduler import Overlap, Schedule
from svc_infra.jobs.timing import Every, Once, Timing

_schedules = ScheduleRow.metadata.tables[ScheduleRow.__tablename__]


def make_schedule(settings: ScheduleSettings) -> Schedule:
    """Return the schedule that the settings describe.

    Raises:
        InvalidSchedule: it cannot fire as described; the message names the schedule.
    """
    try:
        return Schedule(
            settings.name,
            _timing(settings),
            settings.job,
            payload=dict(settings.payload),
            queue=settings.queue,
            catch_up=CatchUp(settings.catch_up),
            cap=settings.cap,
            overlap=Overlap(settings.overlap),
            jitter_seconds=settings.jitter_seconds,
        )
    except InvalidSchedule as error:
        raise InvalidSchedule(f"schedule {settings.name!r}: {error}") from None


def _timing(settings: ScheduleSettings) -> Timing:
    if [settings.cron, settings.every_seconds, settings.at].count(None) != 2:
        raise InvalidSchedule("give one of cron, every_seconds and at")
    if settings.cron is not None:
        return CronSchedule(settings.cron, settings.timezone)
    if settings.every_seconds is not None:
        return Every(settings.every_seconds)
    assert settings.at is not None  # the one that is left
    return Once(settings.at)


def add_schedule(session: Session, settings: ScheduleSettings, *, actor: str, now: datetime) -> None:
    """Add a schedule from the commit on, or change the one that was added under its name.

    Running schedulers take it up within seconds. It fires after ``now``; a changed one goes on where it was.

    Raises:
        InvalidSchedule: it cannot fire as described.
        InvalidPayload: its job cannot be enqueued.
        InvalidAct: a schedule of this name comes from the settings or from an application.
    """
    schedule = make_schedule(settings)
    schedule.request(now)  # what cannot be a job is refused now, and not at every fire
    insert: Any = sqlite.insert if dialect_of(session) == "sqlite" else postgresql.insert
    definition = settings.model_dump(mode="json", exclude_defaults=True)
    row = insert(_schedules).values(
        name=schedule.name, fired_until=now, updated_at=now, definition=definition
    )
    changed = session.execute(
        row.on_conflict_do_update(
            index_elements=["name"],
            set_={"definition": row.excluded.definition, "updated_at": now},
            where=_schedules.c.definition.is_not(None),
        ).returning(_schedules.c.name)
    ).all()
    if not changed:
        raise InvalidAct(
            f"schedule {schedule.name!r} comes from the settings or an application; change it there"
        )
    record_act(session, "add_schedule", schedule.name, actor=actor, now=now, **definition)


def remove_schedule(session: Session, name: str, *, actor: str, now: datetime) -> None:
    """Remove a schedule that was added by hand; its jobs and the records of its fires stay.

    Raises:
        NotFound: there is none of this name that was added by hand.
    """
    is_added = _schedules.c.name == name, _schedules.c.definition.is_not(None)
    if not session.execute(delete(_schedules).where(*is_added).returning(_schedules.c.name)).all():
        raise NotFound(f"no schedule {name!r} was added by hand; see 'worker.py schedules list'")
    record_act(session, "remove_schedule", name, actor=actor, now=now)


def added_schedules(session: Session) -> list[Schedule]:
    """Return the schedules that were added by hand, by name."""
    query = select(_schedules.c.definition).where(_schedules.c.definition.is_not(None))
    definitions = session.execute(query.order_by(_schedules.c.name)).scalars()
    return [make_schedule(ScheduleSettings.model_validate(definition)) for definition in definitions]
