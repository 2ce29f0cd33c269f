"""Plain handlers' jobs are finished many at a time, each still fenced and none at another's expense."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.clock import FixedClock
from svc_infra.jobs import Handlers, InMemoryJobQueue, Job, JobRequest, JobState, SqlJobQueue
from svc_infra.jobs.executor import Executor
from svc_infra.jobs.queue import Finish
from svc_infra.jobs.worker import Worker
from tests.contract.queue_contract import EXPIRED, Sessions, clock, state_of

__all__ = ["clock"]  # a fixture of the queue contract


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
    return SqlJobQueue(session_factory, clock=clock)


async def claimed(queue: SqlJobQueue, sessions: Sessions, count: int, **options: Any) -> list[Job]:
    async with sessions.begin() as session:
        await queue.enqueue_many(session, [JobRequest("n", {"n": number}) for number in range(count)])
    return await queue.claim(count, **options)


def executor_of(queue: SqlJobQueue, run: Any) -> Executor:
    handlers = Handlers(clock=queue.clock)
    handlers.add_plain("n", run)
    return Executor(queue, handlers, repeat_delays_seconds=(0, 0))


async def nothing(job: Job) -> None:
    pass


async def test_plain_jobs_that_end_at_once_share_their_commits(
    queue: SqlJobQueue, session_factory: Sessions, engine: AsyncEngine
) -> None:
    jobs = await claimed(queue, session_factory, 100)
    commits: list[object] = []
    event.listen(engine.sync_engine, "commit", commits.append)
    executor = executor_of(queue, nothing)
    await asyncio.gather(*(executor.run([job]) for job in jobs))
    assert len(commits) <= 3
    assert {await state_of(queue, job) for job in jobs} == {JobState.COMPLETED}
    assert executor.stats.completed == 100


async def test_a_plain_job_that_lost_its_lease_is_lost_alone(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    (stale,) = await claimed(queue, session_factory, 1, lease_seconds=EXPIRED)
    await queue.rescue()
    (again,) = await queue.claim(1)
    jobs = [stale, *await claimed(queue, session_factory, 2)]
    executor = executor_of(queue, nothing)
    await asyncio.gather(*(executor.run([job]) for job in jobs))
    assert [await state_of(queue, job) for job in jobs] == ["running", "completed", "completed"]
    assert (executor.stats.completed, executor.stats.lost) == (2, 1)
    assert await queue.finish([]) == set()
    assert again.id == stale.id


async def test_a_finish_that_cannot_be_written_takes_no_other_with_it(
    queue: SqlJobQueue, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison, *others = await claimed(queue, session_factory, 3)
    finish = queue.finish

    async def refusing(finishes: Iterable[Finish]) -> set[str]:
        finishes = list(finishes)
        if any(each.job.id == poison.id for each in finishes):
            raise ValueError("a value that the database refuses")
        return await finish(finishes)

    monkeypatch.setattr(queue, "finish", refusing)
    executor = executor_of(queue, nothing)
    ended = await asyncio.gather(*(executor.run([job]) for job in (poison, *others)), return_exceptions=True)
    assert [type(end) for end in ended] == [ValueError, type(None), type(None)]
    assert [await state_of(queue, job) for job in (poison, *others)] == ["running", "completed", "completed"]


async def test_a_run_that_is_cancelled_while_it_is_finished_is_finished_nevertheless(
    queue: SqlJobQueue, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = await claimed(queue, session_factory, 1)
    finish, is_writing, may_write = queue.finish, asyncio.Event(), asyncio.Event()

    async def slow(finishes: Iterable[Finish]) -> set[str]:
        is_writing.set()
        await may_write.wait()
        return await finish(finishes)

    monkeypatch.setattr(queue, "finish", slow)
    executor = executor_of(queue, nothing)
    running = asyncio.create_task(executor.run([job]))
    await is_writing.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    may_write.set()
    await executor.settle()
    assert await state_of(queue, job) is JobState.COMPLETED


async def test_a_worker_claims_no_more_than_it_can_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = InMemoryJobQueue()
    handlers = Handlers()
    handlers.add_plain("n", nothing)
    for _ in range(3_000):
        queue.enqueue("n")
    claim, finish = queue.claim, queue.finish
    in_hand, most = 0, 0

    async def counting(*args: Any, **options: Any) -> list[Job]:
        nonlocal in_hand, most
        jobs = await claim(*args, **options)
        in_hand += len(jobs)
        most = max(most, in_hand)
        return jobs

    async def slow(finishes: Iterable[Finish]) -> set[str]:
        nonlocal in_hand
        for _ in range(50):  # turns of the loop, in which a worker without back-pressure would claim on
            await asyncio.sleep(0)
        ids = await finish(finishes)
        in_hand -= len(ids)
        return ids

    monkeypatch.setattr(queue, "claim", counting)
    monkeypatch.setattr(queue, "finish", slow)
    assert await Worker(queue, handlers).drain() == 3_000
    assert 64 <= most <= 512
