"""Schedules by interval and for one instant, what happens when fires overlap, and jitter."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidSchedule
from svc_infra.jobs import CronSchedule, SqlJobQueue
from svc_infra.jobs.easy import easy_jobs
from svc_infra.jobs.scheduler import Overlap, Schedule, Scheduler
from svc_infra.jobs.timing import NEVER, Every, Once
from tests.contract.queue_contract import NOW, Sessions, clock, ended

__all__ = ["clock"]  # a fixture of the queue contract
HOUR = timedelta(hours=1)
HOURLY = CronSchedule("0 * * * *")
Jobs = tuple[SqlJobQueue, Scheduler]


@pytest.fixture
def jobs(session_factory: Sessions, clock: FixedClock) -> Jobs:
    return easy_jobs(session_factory, clock=clock)


async def test_an_interval_fires_by_elapsed_time(jobs: Jobs, clock: FixedClock) -> None:
    queue, scheduler = jobs
    scheduler.add(Schedule("often", Every(5400), "n"))
    await scheduler.tick()
    clock.advance(HOUR * 6)
    assert await scheduler.tick() == 4
    assert [job.run_at - NOW for job in await queue.claim(9)] == [HOUR * 1.5 * n for n in (1, 2, 3, 4)]


async def test_a_single_fire_happens_once(jobs: Jobs, clock: FixedClock) -> None:
    queue, scheduler = jobs
    scheduler.add(Schedule("once", Once(NOW + HOUR), "n"))
    scheduler.add(Schedule("long ago", Once(NOW - HOUR), "n"))
    await scheduler.tick()
    assert scheduler.next_fire() == NOW + HOUR
    clock.advance(HOUR * 2)
    assert [await scheduler.tick() for _ in range(2)] == [1, 0]
    assert scheduler.next_fire() is None
    (job,) = await queue.claim(9)
    assert job.payload == {"fire_at": "2026-03-01T13:00:00Z"}


@pytest.mark.parametrize(
    ("overlap", "at_once", "after_the_first"),
    [(Overlap.PARALLEL, 3, 0), (Overlap.QUEUE, 1, 1), (Overlap.SKIP, 1, 0)],
)
async def test_fires_that_overlap_run_together_one_after_the_other_or_not_at_all(
    jobs: Jobs, clock: FixedClock, overlap: Overlap, at_once: int, after_the_first: int
) -> None:
    queue, scheduler = jobs
    scheduler.add(Schedule("hourly", HOURLY, "n", overlap=overlap))
    await scheduler.tick()
    enqueued = 0
    for _ in range(3):
        clock.advance(HOUR)
        enqueued += await scheduler.tick()
    assert enqueued == (1 if overlap is Overlap.SKIP else 3)
    first = await queue.claim(9)
    assert len(first) == at_once
    await queue.finish([ended(job, now=clock.now()) for job in first])
    assert len(await queue.claim(9)) == after_the_first
    clock.advance(HOUR)
    assert await scheduler.tick() == 1, "the next fire is a new one"


def test_jitter_is_within_its_bound_and_the_same_for_every_scheduler() -> None:
    def starts(name: str) -> list[datetime]:
        schedule = Schedule(name, HOURLY, "n", jitter_seconds=600)
        requests = [schedule.request(NOW + HOUR * n) for n in range(50)]
        assert requests[0].payload["fire_at"] == "2026-03-01T12:00:00Z"
        return [request.run_at or NOW for request in requests]

    delays = [(at - NOW - HOUR * n).total_seconds() for n, at in enumerate(starts("a"))]
    assert all(0 <= delay < 600 for delay in delays)
    assert max(delays) - min(delays) > 300
    assert starts("a") == starts("a") != starts("b")


def test_intervals_count_from_their_anchor() -> None:
    every = Every(3600, datetime(2026, 3, 1, 12, 7, tzinfo=UTC))
    assert every.next_fire(NOW) == NOW + timedelta(minutes=7)
    assert every.next_fire(NOW + timedelta(minutes=7)) == NOW + timedelta(minutes=67)
    assert list(every.fires_between(NOW, NOW + HOUR)) == [NOW + timedelta(minutes=7)]
    assert Once(NOW).next_fire(NOW) == NEVER


@pytest.mark.parametrize(
    "make",
    [
        lambda: Every(0),
        lambda: Every(5, datetime(2026, 1, 1)),  # noqa: DTZ001  # naive on purpose
        lambda: Once(datetime(2026, 1, 1)),  # noqa: DTZ001  # naive on purpose
        lambda: Schedule("x", HOURLY, "n", jitter_seconds=-1),
    ],
)
def test_what_can_never_fire_as_asked_is_refused(make: Any) -> None:
    with pytest.raises(InvalidSchedule):
        make()
