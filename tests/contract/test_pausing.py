"""Paused queues and schedules stay paused until they are resumed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from sqlalchemy import select

from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidAct, NotFound
from svc_infra.jobs import CronSchedule, SqlJobQueue
from svc_infra.jobs.acts import list_acts
from svc_infra.jobs.models import CronFireRow
from svc_infra.jobs.pausing import (
    list_queues,
    list_schedules,
    pause_queue,
    pause_schedule,
    resume_queue,
    resume_schedule,
    run_schedule,
)
from svc_infra.jobs.schedule_store import SqlScheduleStore
from svc_infra.jobs.scheduler import Schedule, Scheduler
from tests.contract.queue_contract import NOW, Sessions, clock, enqueue

__all__ = ["clock"]  # a fixture of the queue contract
T = TypeVar("T")
HOUR = timedelta(hours=1)
HOURLY = Schedule("hourly", CronSchedule("0 * * * *"), "report")
BY_ANN: dict[str, Any] = {"actor": "ann", "now": NOW}


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
    return SqlJobQueue(session_factory, clock=clock)


@pytest.fixture
def scheduler(session_factory: Sessions, clock: FixedClock) -> Scheduler:
    return Scheduler(SqlScheduleStore(session_factory), [HOURLY], clock=clock)


async def act(sessions: Sessions, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
    async with sessions.begin() as session:
        return await session.run_sync(lambda sync: work(sync, *arguments, **options))


async def test_jobs_of_a_paused_queue_wait_until_it_is_resumed(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    await enqueue(queue, session_factory, "a", queue="slow")
    await enqueue(queue, session_factory, "b")
    await act(session_factory, pause_queue, "slow", **BY_ANN)
    assert [job.name for job in await queue.claim(9)] == ["b"]
    assert await SqlJobQueue(session_factory).claim(9, queues=["slow"], now=NOW) == [], "another worker's too"
    listed = await act(session_factory, list_queues)
    assert [(each.name, each.available, each.running, each.paused_at) for each in listed] == [
        ("default", 0, 1, None),
        ("slow", 1, 0, NOW),
    ]
    await act(session_factory, resume_queue, "slow", **BY_ANN)
    assert [job.name for job in await queue.claim(9)] == ["a"]
    acts = await act(session_factory, list_acts, subject="slow")
    assert [recorded.act for recorded in acts] == ["resume_queue", "pause_queue"]


async def test_pausing_twice_keeps_the_first_instant(session_factory: Sessions) -> None:
    await act(session_factory, pause_queue, "slow", **BY_ANN)
    await act(session_factory, pause_queue, "slow", actor="ben", now=NOW + HOUR)
    (listed,) = await act(session_factory, list_queues)
    assert listed.paused_at == NOW
    with pytest.raises(InvalidAct, match="name"):
        await act(session_factory, pause_queue, "", **BY_ANN)


async def test_fires_of_a_paused_schedule_are_recorded_as_missed(
    queue: SqlJobQueue, scheduler: Scheduler, session_factory: Sessions, clock: FixedClock
) -> None:
    await scheduler.tick()
    await act(session_factory, pause_schedule, "hourly", **BY_ANN)
    clock.advance(HOUR * 2)
    assert await scheduler.tick() == 0
    (stored,) = await act(session_factory, list_schedules)
    assert (stored.name, stored.paused_at, stored.fired_until) == ("hourly", NOW, NOW + HOUR * 2)
    await act(session_factory, resume_schedule, "hourly", **BY_ANN)
    clock.advance(HOUR)
    assert await scheduler.tick() == 1
    async with session_factory() as session:
        fires = (await session.execute(select(CronFireRow).order_by(CronFireRow.fire_at))).scalars().all()
    assert [(fire.fire_at - NOW, fire.job_id is None) for fire in fires] == [
        (HOUR, True),
        (HOUR * 2, True),
        (HOUR * 3, False),
    ]


async def test_a_schedule_that_no_scheduler_started_cannot_be_paused(session_factory: Sessions) -> None:
    with pytest.raises(NotFound, match="schedules list"):
        await act(session_factory, pause_schedule, "nothing", **BY_ANN)


async def test_running_a_schedule_fires_it_once_and_leaves_its_fires_alone(
    queue: SqlJobQueue, scheduler: Scheduler, session_factory: Sessions, clock: FixedClock
) -> None:
    await scheduler.tick()
    at = NOW + timedelta(minutes=7)
    job_id = await act(session_factory, run_schedule, HOURLY, actor="ann", now=at)
    assert await act(session_factory, run_schedule, HOURLY, actor="ann", now=at) is None
    (job,) = await queue.claim(9, now=at)
    assert (job.id, job.payload) == (job_id, {"fire_at": "2026-03-01T12:07:00Z"})
    clock.advance(HOUR)
    assert await scheduler.tick() == 1
