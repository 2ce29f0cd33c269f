"""Schedules from the settings, and those that somebody adds, changes and removes while schedulers run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from svc_infra.clock import FixedClock
from svc_infra.config import ScheduleSettings
from svc_infra.exceptions import InvalidAct, InvalidSchedule, NotFound
from svc_infra.jobs import CatchUp, CronSchedule, SqlJobQueue
from svc_infra.jobs.schedule_store import SqlScheduleStore
from svc_infra.jobs.scheduler import Overlap, Schedule, Scheduler
from svc_infra.jobs.stored_schedules import add_schedule, added_schedules, make_schedule, remove_schedule
from svc_infra.jobs.timing import Every, Once
from tests.contract.queue_contract import NOW, Sessions, clock

__all__ = ["clock"]  # a fixture of the queue contract

MINUTE = timedelta(minutes=1)
HOURLY = ScheduleSettings(name="s", job="n", cron="0 * * * *", payload={"k": 1})


class Jobs:
    """A scheduler that has one schedule of its own and takes up those that are added."""

    def __init__(self, sessions: Sessions, clock: FixedClock) -> None:
        self.sessions = sessions
        self.clock = clock
        own = Schedule("own", CronSchedule("0 0 1 1 *"), "own")
        self.scheduler = Scheduler(SqlScheduleStore(sessions), [own], clock=clock, added=self.added)

    async def added(self) -> list[Schedule]:
        async with self.sessions() as session:
            return await session.run_sync(added_schedules)

    async def add(self, settings: ScheduleSettings) -> None:
        async with self.sessions.begin() as session:
            await session.run_sync(
                lambda sync: add_schedule(sync, settings, actor="ann", now=self.clock.now())
            )

    async def remove(self, name: str) -> None:
        async with self.sessions.begin() as session:
            await session.run_sync(
                lambda sync: remove_schedule(sync, name, actor="ann", now=self.clock.now())
            )

    async def fires(self, after: timedelta) -> list[dict[str, Any]]:
        """Let time pass, take up what changed, tick, and return the payloads of the new jobs."""
        self.clock.advance(after)
        await self.scheduler.take_up()
        await self.scheduler.tick()
        return [job.payload for job in await SqlJobQueue(self.sessions, clock=self.clock).claim(99)]


@pytest.fixture
def jobs(session_factory: Sessions, clock: FixedClock) -> Jobs:
    return Jobs(session_factory, clock)


async def test_a_schedule_that_is_added_fires_from_then_on_and_a_removed_one_no_more(jobs: Jobs) -> None:
    assert await jobs.fires(MINUTE) == []
    await jobs.add(HOURLY)
    assert await jobs.fires(60 * MINUTE) == [{"k": 1, "fire_at": "2026-03-01T13:00:00Z"}]
    await jobs.remove("s")
    assert await jobs.fires(60 * MINUTE) == []
    await jobs.add(HOURLY)
    assert await jobs.fires(60 * MINUTE) == [{"k": 1, "fire_at": "2026-03-01T15:00:00Z"}]


async def test_a_changed_schedule_goes_on_where_it_was(jobs: Jobs) -> None:
    await jobs.add(HOURLY)
    assert len(await jobs.fires(60 * MINUTE)) == 1
    await jobs.add(HOURLY.model_copy(update={"cron": "30 * * * *", "payload": {"k": 2}}))
    assert await jobs.fires(60 * MINUTE) == [{"k": 2, "fire_at": "2026-03-01T13:30:00Z"}]


async def test_a_tick_that_does_not_know_yet_of_a_removal_starts_nothing_anew(jobs: Jobs) -> None:
    await jobs.add(HOURLY)
    await jobs.scheduler.take_up()
    await jobs.remove("s")
    jobs.clock.advance(60 * MINUTE)
    assert await jobs.scheduler.tick() == 0
    await jobs.add(HOURLY)  # refused if the tick had left a row


async def test_the_schedules_of_settings_and_applications_are_not_changed_by_hand(jobs: Jobs) -> None:
    await jobs.fires(MINUTE)
    with pytest.raises(InvalidAct, match="comes from the settings"):
        await jobs.add(HOURLY.model_copy(update={"name": "own"}))
    for name in ("own", "nothing"):
        with pytest.raises(NotFound):
            await jobs.remove(name)


async def test_each_change_is_recorded(jobs: Jobs, session_factory: Sessions) -> None:
    await jobs.add(HOURLY)
    await jobs.remove("s")
    async with session_factory() as session:
        acts = await session.execute(text("SELECT act, actor, subject FROM admin_acts ORDER BY id"))
        assert [tuple(row) for row in acts] == [
            ("add_schedule", "ann", "s"),
            ("remove_schedule", "ann", "s"),
        ]


def test_settings_describe_every_kind_of_schedule() -> None:
    full = ScheduleSettings(
        name="s", job="n", cron="@daily", timezone="Asia/Tokyo", queue="q", catch_up="latest", cap=3,
        overlap="skip", jitter_seconds=9,
    )  # fmt: skip
    assert make_schedule(full) == Schedule(
        "s",
        CronSchedule("@daily", "Asia/Tokyo"),
        "n",
        queue="q",
        catch_up=CatchUp.LATEST,
        cap=3,
        overlap=Overlap.SKIP,
        jitter_seconds=9,
    )
    assert make_schedule(ScheduleSettings(name="s", job="n", every_seconds=9)).cron == Every(9)
    at = datetime(2030, 1, 1, tzinfo=UTC)
    assert make_schedule(ScheduleSettings(name="s", job="n", at=at)).cron == Once(at)
    assert NOW < at


@pytest.mark.parametrize("fields", [{}, {"cron": "@daily", "every_seconds": 9}, {"cron": "61 * * * *"}])
def test_a_schedule_that_cannot_fire_as_described_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidSchedule, match="schedule 's'"):
        make_schedule(ScheduleSettings(name="s", job="n", **fields))
