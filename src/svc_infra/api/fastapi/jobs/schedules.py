"""Schedules over HTTP: what fires when; paused, resumed and run now; added and removed while workers run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.fields import Answer, InstantIn, InstantText, JsonObject, RequestBody, Text
from svc_infra.api.fastapi.jobs.access import AppClock, Name, Parts, QueueName, Reader, Writer
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.config import ScheduleSettings
from svc_infra.exceptions import InvalidAct, NotFound
from svc_infra.jobs.pausing import (
    StoredSchedule,
    list_schedules,
    pause_schedule,
    resume_schedule,
    run_schedule,
)
from svc_infra.jobs.scheduler import Schedule
from svc_infra.jobs.stored_schedules import add_schedule, remove_schedule
from svc_infra.jobs.timing import NEVER

router = APIRouter(route_class=UnitOfWorkRoute, tags=["schedules"])
_MISSING = refusals(_404="There is no such schedule.")
_MAX_SECONDS = 10 * 366 * 86_400

SchedulePath = Annotated[Name, Path(examples=["shop.nightly"])]


class ScheduleShown(Answer):
    """A schedule. One that only a worker's own application knows has a name and how far it has fired."""

    name: str
    origin: Literal["settings", "added", "application"]
    expression: str | None
    timezone: str | None
    job: str | None
    queue: str | None
    next_fire_at: InstantText | None
    fired_until: InstantText | None
    paused_at: InstantText | None


class ScheduleList(Answer):
    """All schedules by name."""

    items: list[ScheduleShown]


class Fires(Answer):
    """The next fires; fewer than asked for where it fires no more."""

    items: list[InstantText]


class ScheduleSwitched(Answer):
    """Whether the fires of the schedule make jobs."""

    name: str
    is_paused: bool


class Fired(Answer):
    """The job of the fire; null if the schedule had fired at this very instant."""

    job_id: str | None


class NewSchedule(RequestBody):
    """What fires when: one of ``cron`` (five fields), ``every_seconds`` and ``at`` (once)."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"job": "shop.recount", "cron": "0 3 * * *", "timezone": "UTC"}]}
    )

    job: Name
    cron: Annotated[Text, Field(min_length=1, max_length=200)] | None = None
    every_seconds: Annotated[int, Field(ge=1, le=_MAX_SECONDS)] | None = None
    at: InstantIn | None = None
    timezone: Annotated[Text, Field(min_length=1, max_length=100)] = "UTC"
    payload: JsonObject = Field(default_factory=dict)
    queue: QueueName = "default"
    catch_up: Literal["all", "latest", "none"] = "all"
    cap: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    overlap: Literal["parallel", "queue", "skip"] = "parallel"
    jitter_seconds: Annotated[float, Field(ge=0, le=366 * 86_400)] = 0


@router.get("/schedules", operation_id="jobs_list_schedules")
async def list_all(_: Reader, session: UnitSession, parts: Parts, clock: AppClock) -> ScheduleList:
    """List the schedules of the settings, of the application and those that were added by hand."""
    stored = await session.run_sync(list_schedules)
    return ScheduleList(items=_all(parts.schedules, stored, now=clock.now()))


@router.get("/schedules/{schedule}", operation_id="jobs_get_schedule", responses=_MISSING)
async def get(
    schedule: SchedulePath, _: Reader, session: UnitSession, parts: Parts, clock: AppClock
) -> ScheduleShown:
    """Return one schedule."""
    stored = await session.run_sync(list_schedules)
    for shown in _all(parts.schedules, stored, now=clock.now()):
        if shown.name == schedule:
            return shown
    raise NotFound("there is no such schedule")


@router.get("/schedules/{schedule}/fires", operation_id="jobs_list_fires", responses=_MISSING)
async def next_fires(
    schedule: SchedulePath,
    _: Reader,
    session: UnitSession,
    parts: Parts,
    clock: AppClock,
    count: Annotated[int, Query(ge=1, le=100)] = 5,
) -> Fires:
    """List the next fires of a schedule."""
    named = _named(schedule, parts.schedules, await session.run_sync(list_schedules))
    fires: list[datetime] = []
    fire_at = clock.now()
    while len(fires) < count and (fire_at := named.cron.next_fire(fire_at)) != NEVER:
        fires.append(fire_at)
    return Fires(items=fires)


@router.put(
    "/schedules/{schedule}",
    operation_id="jobs_put_schedule",
    responses=refusals(_409="The schedule comes from the settings or an application."),
)
async def put(
    schedule: SchedulePath,
    timing: NewSchedule,
    principal: Writer,
    session: UnitSession,
    parts: Parts,
    clock: AppClock,
) -> ScheduleShown:
    """Add a schedule, or change one that was added. Workers that run take it up within seconds."""
    if any(known.name == schedule for known in parts.schedules):
        raise InvalidAct("this schedule comes from the settings or an application; change it there")

    def apply(sync: Session) -> ScheduleShown:
        given = ScheduleSettings(name=schedule, **timing.model_dump())
        add_schedule(sync, given, actor=principal.actor, now=clock.now())
        [stored] = [each for each in list_schedules(sync) if each.name == schedule]
        return _shown(stored.added, stored, "added", now=clock.now())

    return await session.run_sync(apply)


@router.delete(
    "/schedules/{schedule}", operation_id="jobs_remove_schedule", status_code=204, responses=_MISSING
)
async def remove(schedule: SchedulePath, principal: Writer, session: UnitSession, clock: AppClock) -> None:
    """Remove a schedule that was added by hand. Its jobs stay."""
    await session.run_sync(remove_schedule, schedule, actor=principal.actor, now=clock.now())


@router.post("/schedules/{schedule}/pause", operation_id="jobs_pause_schedule", responses=_MISSING)
async def pause(
    schedule: SchedulePath, principal: Writer, session: UnitSession, clock: AppClock
) -> ScheduleSwitched:
    """Record the fires of a schedule as missed until it is resumed."""
    await session.run_sync(pause_schedule, schedule, actor=principal.actor, now=clock.now())
    return ScheduleSwitched(name=schedule, is_paused=True)


@router.post("/schedules/{schedule}/resume", operation_id="jobs_resume_schedule", responses=_MISSING)
async def resume(
    schedule: SchedulePath, principal: Writer, session: UnitSession, clock: AppClock
) -> ScheduleSwitched:
    """Let a schedule fire again, from its next fire on."""
    await session.run_sync(resume_schedule, schedule, actor=principal.actor, now=clock.now())
    return ScheduleSwitched(name=schedule, is_paused=False)


@router.post(
    "/schedules/{schedule}/run", operation_id="jobs_run_schedule", status_code=202, responses=_MISSING
)
async def run(
    schedule: SchedulePath, principal: Writer, session: UnitSession, parts: Parts, clock: AppClock
) -> Fired:
    """Fire a schedule now, paused or not. Its next fires stay as they are."""

    def apply(sync: Session) -> Fired:
        named = _named(schedule, parts.schedules, list_schedules(sync))
        return Fired(job_id=run_schedule(sync, named, actor=principal.actor, now=clock.now()))

    return await session.run_sync(apply)


def _named(name: str, known: Sequence[Schedule], stored: Sequence[StoredSchedule]) -> Schedule:
    added = [each.added for each in stored if each.added is not None]
    for schedule in (*known, *added):
        if schedule.name == name:
            return schedule
    raise NotFound("there is no such schedule that is known here")


def _all(
    known: Sequence[Schedule], stored: Sequence[StoredSchedule], *, now: datetime
) -> list[ScheduleShown]:
    rows = {each.name: each for each in stored}
    listed = [_shown(each, rows.pop(each.name, None), "settings", now=now) for each in known]
    for row in rows.values():
        listed.append(_shown(row.added, row, "added" if row.added else "application", now=now))
    return sorted(listed, key=lambda schedule: schedule.name)


def _shown(
    schedule: Schedule | None,
    row: StoredSchedule | None,
    origin: Literal["settings", "added", "application"],
    *,
    now: datetime,
) -> ScheduleShown:
    next_fire_at = NEVER if schedule is None else schedule.cron.next_fire(now)
    return ScheduleShown(
        name=schedule.name if schedule else row.name if row else "",
        origin=origin,
        expression=schedule and schedule.cron.expression,
        timezone=schedule and schedule.cron.timezone,
        job=schedule and schedule.job_name,
        queue=schedule and schedule.queue,
        next_fire_at=None if next_fire_at == NEVER else next_fire_at,
        fired_until=row and row.fired_until,
        paused_at=row and row.paused_at,
    )
