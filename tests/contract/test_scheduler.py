"""Each fire once, with any number of schedulers, after downtime and after a crash in a tick."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from svc_infra import failpoints
from svc_infra.clock import FixedClock
from svc_infra.db.session import make_engine
from svc_infra.exceptions import InvalidSchedule
from svc_infra.jobs import CatchUp, CronSchedule, Job
from svc_infra.jobs.easy import easy_jobs
from svc_infra.jobs.schedule_store import SqlScheduleStore
from svc_infra.jobs.scheduler import Schedule, Scheduler
from tests.contract.queue_contract import Sessions
from tests.contract.seen_statements import statements

START = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


def hourly(name: str = "hourly", **options: Any) -> Schedule:
    return Schedule(name, CronSchedule("0 * * * *"), "report", {"kind": "x"}, **options)


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(START)


@pytest.fixture(params=["memory", "durable"])
def jobs(request: pytest.FixtureRequest, session_factory: Sessions, clock: FixedClock) -> Any:
    return easy_jobs(session_factory if request.param == "durable" else None, clock=clock)


async def fired(queue: Any, clock: FixedClock) -> list[Job]:
    claimed: list[Job] = await queue.claim(5_000, now=clock.now())
    return claimed


async def test_a_fire_enqueues_its_job_once_with_the_instant_in_the_payload(
    jobs: Any, clock: FixedClock
) -> None:
    queue, scheduler = jobs
    scheduler.add(hourly())
    assert await scheduler.tick() == 0, "a new schedule starts now"
    assert scheduler.next_fire() == START + HOUR / 2
    clock.advance(HOUR)
    assert [await scheduler.tick() for _ in range(2)] == [1, 0]
    (job,) = await fired(queue, clock)
    assert (job.name, job.payload) == ("report", {"kind": "x", "fire_at": "2026-03-01T13:00:00Z"})
    assert job.run_at == START + HOUR / 2
    assert scheduler.next_fire() == START + HOUR * 1.5


@pytest.mark.parametrize(
    ("catch_up", "hours"), [(CatchUp.ALL, [13, 14, 15]), (CatchUp.LATEST, [15]), (CatchUp.NONE, [])]
)
async def test_fires_missed_in_downtime_are_caught_up_by_policy(
    jobs: Any, clock: FixedClock, catch_up: CatchUp, hours: list[int]
) -> None:
    queue, scheduler = jobs
    scheduler.add(hourly(catch_up=catch_up))
    await scheduler.tick()
    clock.advance(HOUR * 3)
    assert await scheduler.tick() == len(hours)
    assert [job.run_at.hour for job in await fired(queue, clock)] == hours
    assert await scheduler.tick() == 0


async def test_more_missed_fires_than_the_cap_are_taken_in_several_ticks(
    jobs: Any, clock: FixedClock
) -> None:
    queue, scheduler = jobs
    scheduler.add(hourly(cap=2))
    await scheduler.tick()
    clock.advance(HOUR * 5)
    assert [await scheduler.tick() for _ in range(4)] == [2, 2, 1, 0]
    assert [job.run_at.hour for job in await fired(queue, clock)] == [13, 14, 15, 16, 17]


async def test_a_clock_set_back_fires_nothing_again(jobs: Any, clock: FixedClock) -> None:
    _, scheduler = jobs
    scheduler.add(hourly())
    await scheduler.tick()
    clock.advance(HOUR * 2)
    assert await scheduler.tick() == 2
    clock.advance(-HOUR * 2)
    assert await scheduler.tick() == 0
    clock.advance(HOUR * 2)
    assert await scheduler.tick() == 0


async def test_a_name_is_given_to_one_schedule(jobs: Any) -> None:
    _, scheduler = jobs
    scheduler.add(hourly())
    with pytest.raises(InvalidSchedule, match="hourly"):
        scheduler.add(hourly())


async def test_a_simulation_starts_where_it_is_told(session_factory: Sessions, clock: FixedClock) -> None:
    store = SqlScheduleStore(session_factory)
    scheduler = Scheduler(store, [hourly()], clock=clock, start_at=START - HOUR * 2)
    assert scheduler.next_fire() == START - HOUR * 1.5
    assert await scheduler.tick() == 2


async def test_twenty_schedulers_at_once_fire_once(
    database_url: str, session_factory: Sessions, clock: FixedClock
) -> None:
    engines = [make_engine(database_url, pool_size=1) for _ in range(4)]
    stores = [SqlScheduleStore(async_sessionmaker(engine)) for engine in engines for _ in range(5)]
    schedulers = [Scheduler(store, [hourly(), hourly("other")], clock=clock) for store in stores]
    await asyncio.gather(*(scheduler.tick() for scheduler in schedulers))
    clock.advance(HOUR * 3)
    counts = await asyncio.gather(*(scheduler.tick() for scheduler in schedulers))
    for engine in engines:
        await engine.dispose()
    assert sum(counts) == 6
    async with session_factory() as session:
        assert (await session.execute(text("SELECT count(*) FROM jobs"))).scalar_one() == 6
        linked = "SELECT count(*) FROM cron_fires f JOIN jobs j ON j.id = f.job_id"
        assert (await session.execute(text(linked))).scalar_one() == 6


async def test_a_late_scheduler_fires_nothing_that_was_fired_and_sets_nothing_back(
    session_factory: Sessions, clock: FixedClock
) -> None:
    store = SqlScheduleStore(session_factory)
    late_clock = FixedClock(START)
    scheduler, late = (Scheduler(store, [hourly()], clock=each) for each in (clock, late_clock))
    await scheduler.tick()
    await late.tick()
    clock.advance(HOUR * 3)
    late_clock.advance(HOUR)
    assert [await scheduler.tick(), await late.tick()] == [3, 0]
    assert await store.fire("hourly", [], fired_until=START + HOUR, now=clock.now()) == 0
    assert await store.fired_until(["hourly"]) == {"hourly": clock.now()}


async def test_a_tick_that_dies_before_its_commit_leaves_no_fire_and_no_job(
    session_factory: Sessions, clock: FixedClock
) -> None:
    queue, scheduler = easy_jobs(session_factory, clock=clock)
    scheduler.add(hourly())
    await scheduler.tick()
    clock.advance(HOUR)

    def die(name: str) -> None:
        if name == "in_tick":
            raise KeyboardInterrupt

    failpoints.install(die)
    try:
        with pytest.raises(KeyboardInterrupt):
            await scheduler.tick()
    finally:
        failpoints.install(None)
    assert await fired(queue, clock) == []
    assert await scheduler.tick() == 1


async def test_nothing_is_asked_of_the_database_while_nothing_is_due(
    session_factory: Sessions, engine: AsyncEngine, clock: FixedClock
) -> None:
    scheduler = Scheduler(SqlScheduleStore(session_factory), [hourly(), hourly("other")], clock=clock)
    await scheduler.tick()
    clock.advance(HOUR / 4)
    with statements(engine) as asked:
        assert await scheduler.tick() == 0
    assert asked == []


async def test_only_records_of_fires_that_cannot_come_back_are_pruned(
    session_factory: Sessions, clock: FixedClock
) -> None:
    store = SqlScheduleStore(session_factory)
    scheduler = Scheduler(store, [hourly()], clock=clock)
    await scheduler.tick()
    clock.advance(HOUR * 3)
    await scheduler.tick()
    async with session_factory() as session:
        await session.execute(
            text("UPDATE schedules SET fired_until = :until"), {"until": _stored(session, START + HOUR * 1.5)}
        )
        await session.commit()
    assert await store.prune(before=START + HOUR) == 1
    assert await store.prune(before=START + HOUR * 9) == 1
    assert await store.prune(before=START + HOUR * 9) == 0


def _stored(session: Any, at: datetime) -> Any:
    return str(at.replace(tzinfo=None)) + ".000000" if session.get_bind().dialect.name == "sqlite" else at
