"""What a worker does beside running jobs: it waits out outages, prunes, and says that its loop is blocked."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from svc_infra.clock import FixedClock
from svc_infra.jobs import Cancel, Discard, Handlers, Job, JobRequest, SqlJobQueue, Worker
from svc_infra.jobs import maintenance as upkeep
from svc_infra.jobs.loop import run_loop
from svc_infra.jobs.maintenance import Maintenance
from svc_infra.testing.jobs import enqueued
from tests.contract.queue_contract import Sessions, clock, ended, enqueue

__all__ = ["clock"]  # a fixture of the queue contract


async def test_a_database_that_is_away_for_an_hour_is_asked_a_hundred_times_and_then_at_once_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited, asked = [0.0], [0]
    stop, wake = asyncio.Event(), asyncio.Event()

    async def no_wait(*events: asyncio.Event, timeout_seconds: float) -> bool:
        waited.append(timeout_seconds)
        return False

    async def step() -> bool:
        wake.set()  # as a busy worker's jobs and notifications would
        asked[0] += 1
        if sum(waited) < 3_600:
            raise ConnectionRefusedError
        stop.set()
        return False

    monkeypatch.setattr("svc_infra.jobs.loop.wait_any", no_wait)
    await run_loop("x", step, stop=stop, wake=wake)
    assert 80 < asked[0] < 300
    assert max(waited) <= 45


async def test_finished_jobs_are_kept_by_how_they_ended_and_pruned_in_bounded_batches(
    session_factory: Sessions, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_BATCH", 2)
    queue = SqlJobQueue(session_factory, clock=clock)
    async with session_factory.begin() as session:
        await queue.enqueue_many(session, [JobRequest("n") for _ in range(7)])
    endings: list[Any] = [None, None, None, Cancel("x"), Discard("y"), ValueError("z")]
    claimed = await queue.claim(6)
    await queue.finish([ended(job, end) for job, end in zip(claimed, endings, strict=True)])
    maintenance = Maintenance(queue, clock=clock)

    async def left_after(days: int) -> dict[str, int]:
        clock.advance(timedelta(days=days))
        while await maintenance.prune():
            pass
        states = [stored.state.value for stored in await enqueued(queue)]
        return {state: states.count(state) for state in sorted(set(states))}

    assert await left_after(0) == {"available": 2, "cancelled": 1, "completed": 3, "discarded": 1}
    clock.advance(timedelta(days=2))
    assert await maintenance.prune(), "a full batch of completed jobs: there may be more"
    assert await left_after(0) == {"available": 2, "cancelled": 1, "discarded": 1}
    assert await left_after(6) == {"available": 2, "discarded": 1}
    assert await left_after(90) == {"available": 2}


async def test_a_handler_that_blocks_the_event_loop_is_told_of_in_the_log(session_factory: Sessions) -> None:
    queue, handlers = SqlJobQueue(session_factory), Handlers(session_factory)

    @handlers.plain("n")
    async def block(job: Job) -> None:
        time.sleep(2)  # noqa: ASYNC251  # blocking the loop is what this is about

    await enqueue(queue, session_factory, "n")
    with capture_logs() as logs:
        await Worker(queue, handlers, lease_seconds=0.6).drain()
    (blocked, *_) = [log for log in logs if log["event"] == "jobs.loop_blocked"]
    assert blocked["lag_seconds"] >= 1


async def test_a_worker_that_was_stopped_can_be_drained(session_factory: Sessions) -> None:
    queue, handlers = SqlJobQueue(session_factory), Handlers(session_factory)

    @handlers.plain("n")
    async def run(job: Job) -> None:
        return None

    stop, worker = asyncio.Event(), Worker(queue, handlers)
    stop.set()
    await worker.run(stop)
    await enqueue(queue, session_factory, "n")
    assert await asyncio.wait_for(worker.drain(), 20) == 1
