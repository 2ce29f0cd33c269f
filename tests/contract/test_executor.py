"""Running claimed jobs: effects and completion in one fenced transaction; splitting, repeating, giving up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.clock import FixedClock
from svc_infra.db.session import commit
from svc_infra.exceptions import LeaseLost, NotInTransaction, UnknownJob
from svc_infra.jobs import (
    Cancel,
    Discard,
    Handlers,
    InMemoryJobQueue,
    Job,
    JobRequest,
    JobState,
    Outcome,
    Retry,
    RetryPolicy,
    Snooze,
    SqlJobQueue,
    process_one,
)
from svc_infra.jobs.executor import Executor
from tests.contract.queue_contract import EXPIRED, NOW, Sessions, clock, enqueue, state_of

__all__ = ["clock"]  # a fixture of the queue contract


class Deadlock(Exception):
    """What the driver raises when the server chose this transaction as a deadlock's victim."""

    sqlstate = "40P01"


def deadlock() -> DBAPIError:
    return DBAPIError("UPDATE", {}, Deadlock("deadlock detected"))


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
    return SqlJobQueue(session_factory, clock=clock)


@pytest.fixture
async def handlers(session_factory: Sessions, clock: FixedClock) -> Handlers:
    async with session_factory() as session:
        await session.execute(text("CREATE TABLE effects (job_id VARCHAR(40), note VARCHAR(40))"))
        await session.commit()
    return Handlers(session_factory, clock=clock)


@pytest.fixture
def executor(queue: SqlJobQueue, handlers: Handlers) -> Executor:
    return Executor(queue, handlers, repeat_delays_seconds=(0, 0))


async def write(session: AsyncSession, *jobs: Job, note: str = "") -> None:
    for job in jobs:
        await session.execute(text("INSERT INTO effects VALUES (:id, :note)"), {"id": job.id, "note": note})


async def effects(session_factory: Sessions) -> list[str]:
    async with session_factory() as session:
        return list((await session.execute(text("SELECT job_id FROM effects ORDER BY job_id"))).scalars())


async def claimed(queue: SqlJobQueue, sessions: Sessions, count: int = 1, **options: Any) -> list[Job]:
    async with sessions() as session:
        await queue.enqueue_many(session, [JobRequest("n", {"n": number}) for number in range(count)])
        await session.commit()
    return await queue.claim(count, **options)


async def states(queue: SqlJobQueue, jobs: Sequence[Job]) -> list[str]:
    return [(await state_of(queue, job)).value for job in jobs]


async def test_effects_and_completion_commit_together(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    @handlers.job("n")
    async def run(job: Job, session: AsyncSession) -> None:
        await write(session, job)
        queue.bind(session).enqueue("follow-up")

    (job,) = await claimed(queue, session_factory)
    await executor.run([job])
    assert await effects(session_factory) == [job.id]
    assert await states(queue, [job]) == ["completed"]
    assert [follow.name for follow in await queue.claim(9)] == ["follow-up"]
    assert executor.stats.completed == 1


async def test_a_single_job_that_lost_its_lease_keeps_nothing(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    @handlers.job("n")
    async def run(job: Job, session: AsyncSession) -> None:
        await write(session, job)

    (stale,) = await claimed(queue, session_factory, lease_seconds=EXPIRED)
    await queue.rescue()
    (current,) = await queue.claim(1)
    await executor.run([stale])
    assert await effects(session_factory) == []
    assert await states(queue, [stale]) == ["running"]
    with pytest.raises(LeaseLost):
        await handlers(stale)
    await executor.run([current])
    assert await effects(session_factory) == [current.id]
    assert (executor.stats.lost, executor.stats.completed) == (1, 1)


async def test_a_lost_row_leaves_the_batch_before_its_work_is_done(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    seen: list[str] = []

    @handlers.batch("n")
    async def run(jobs: Sequence[Job], session: AsyncSession) -> None:
        seen.extend(job.id for job in jobs)
        await write(session, *jobs)

    jobs = await claimed(queue, session_factory, 4)
    await queue.release(jobs[1:2])
    await executor.run(jobs)
    kept = [jobs[0].id, jobs[2].id, jobs[3].id]
    assert seen == kept
    assert await effects(session_factory) == sorted(kept)
    assert await states(queue, jobs) == ["completed", "available", "completed", "completed"]
    assert (executor.stats.completed, executor.stats.lost) == (3, 1)


async def test_a_poison_job_is_split_off_and_the_others_take_effect_once(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    @handlers.batch("n", policy=RetryPolicy(jitter=0))
    async def run(jobs: Sequence[Job], session: AsyncSession) -> None:
        await write(session, *jobs)
        if any(job.payload["n"] == 5 for job in jobs):
            raise ValueError("poison")

    jobs = await claimed(queue, session_factory, 8)
    poison = jobs.pop(5)
    await executor.run([*jobs[:5], poison, *jobs[5:]])
    assert await effects(session_factory) == sorted(job.id for job in jobs)
    assert await states(queue, jobs) == ["completed"] * 7
    stored = await queue.find(poison.id)
    assert stored is not None
    assert (stored.state, stored.job.attempt, stored.job.last_error) == (
        JobState.AVAILABLE,
        1,
        "ValueError: poison",
    )
    assert stored.job.run_at == NOW + timedelta(seconds=2)
    assert (executor.stats.completed, executor.stats.retried) == (7, 1)


async def test_a_batch_ends_each_job_as_its_outcome_says_in_one_transaction(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    @handlers.batch("n")
    async def run(jobs: Sequence[Job], session: AsyncSession) -> dict[str, Outcome]:
        await write(session, *jobs)
        minute = timedelta(minutes=1)
        outcomes = [Retry(minute), Snooze(minute), Discard("no"), Cancel("not wanted")]
        return {job.id: outcome for job, outcome in zip(jobs, outcomes, strict=False)}

    jobs = await claimed(queue, session_factory, 5)
    await executor.run(jobs)
    assert await states(queue, jobs) == ["available", "available", "discarded", "cancelled", "completed"]
    later = await queue.claim(9, now=NOW + timedelta(minutes=1))
    assert [(job.id, job.attempt) for job in later] == [(jobs[0].id, 2), (jobs[1].id, 1)]
    stats = executor.stats
    assert (stats.retried, stats.snoozed, stats.discarded, stats.cancelled, stats.completed) == (1,) * 5


async def test_a_deadlock_repeats_the_whole_batch_and_uses_no_attempt(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    sizes: list[int] = []

    @handlers.batch("n")
    async def run(jobs: Sequence[Job], session: AsyncSession) -> None:
        sizes.append(len(jobs))
        await write(session, *jobs)
        if len(sizes) < 3:
            raise deadlock()

    jobs = await claimed(queue, session_factory, 4)
    await executor.run(jobs)
    assert sizes == [4, 4, 4]
    assert await effects(session_factory) == sorted(job.id for job in jobs)
    assert executor.stats.completed == 4
    assert executor.stats.retried == 0


async def test_a_handler_that_deadlocks_for_ever_uses_up_attempts(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    @handlers.batch("n", policy=RetryPolicy(max_attempts=1))
    async def run(jobs: Sequence[Job], session: AsyncSession) -> None:
        raise deadlock()

    jobs = await claimed(queue, session_factory, 2)
    await executor.run(jobs)
    assert await states(queue, jobs) == ["discarded", "discarded"]


async def test_a_commit_whose_outcome_was_lost_is_not_done_twice(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions, monkeypatch: Any
) -> None:
    @handlers.batch("n")
    async def run(jobs: Sequence[Job], session: AsyncSession) -> None:
        await write(session, *jobs)

    jobs = await claimed(queue, session_factory, 2)
    commit = AsyncSession.commit

    async def commit_and_lose_the_answer(self: AsyncSession) -> None:
        await commit(self)
        monkeypatch.setattr(AsyncSession, "commit", commit)
        raise ConnectionResetError("connection lost in COMMIT")

    monkeypatch.setattr(AsyncSession, "commit", commit_and_lose_the_answer)
    await executor.run(jobs)
    assert await effects(session_factory) == sorted(job.id for job in jobs)
    assert await states(queue, jobs) == ["completed", "completed"]


@pytest.mark.postgres_only
async def test_a_connection_that_the_server_ends_uses_no_attempt(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    sizes: list[int] = []

    @handlers.batch("n", policy=RetryPolicy(max_attempts=1))
    async def run(jobs: Sequence[Job], session: AsyncSession) -> None:
        await write(session, *jobs)
        sizes.append(len(jobs))
        if len(sizes) == 1:
            await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    jobs = await claimed(queue, session_factory, 3)
    await executor.run(jobs)
    assert sizes == [3, 3]
    assert await effects(session_factory) == sorted(job.id for job in jobs)


async def test_a_handler_past_its_timeout_has_failed_and_keeps_nothing(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    runs = 0

    @handlers.job("n", timeout_seconds=0.01)
    async def run(job: Job, session: AsyncSession) -> None:
        nonlocal runs
        runs += 1
        await write(session, job)
        await asyncio.Event().wait()

    (job,) = await claimed(queue, session_factory)
    await executor.run([job])
    stored = await queue.find(job.id)
    assert stored is not None
    assert (stored.state, stored.job.attempt, runs) == (JobState.AVAILABLE, 1, 1)
    assert "longer than its 0.01 s" in (stored.job.last_error or "")
    assert await effects(session_factory) == []


@pytest.mark.parametrize("kind", ["job", "plain"])
async def test_a_commit_is_not_cancelled(
    queue: SqlJobQueue,
    handlers: Handlers,
    executor: Executor,
    session_factory: Sessions,
    kind: str,
    monkeypatch: Any,
) -> None:
    async def run(job: Job, session: AsyncSession) -> None:
        await write(session, job)

    async def run_plain(job: Job) -> None:
        return None

    if kind == "job":
        handlers.add("n", run)
    else:
        handlers.add_plain("n", run_plain)
    (job,) = await claimed(queue, session_factory)
    commit, is_committing, may_commit = AsyncSession.commit, asyncio.Event(), asyncio.Event()

    async def slow_commit(self: AsyncSession) -> None:
        is_committing.set()
        await may_commit.wait()
        await commit(self)

    monkeypatch.setattr(AsyncSession, "commit", slow_commit)
    running = asyncio.create_task(executor.run([job]))
    await is_committing.wait()
    running.cancel()
    await asyncio.sleep(0)
    may_commit.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    monkeypatch.undo()
    assert await states(queue, [job]) == ["completed"]
    assert await effects(session_factory) == ([job.id] if kind == "job" else [])


async def test_a_cancellation_in_the_instant_in_which_the_commit_ends_is_not_swallowed() -> None:
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Committing:
        async def commit(self) -> None:
            await answer

    task = asyncio.create_task(commit(Committing()))  # type: ignore[arg-type]  # a stand-in
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answer.set_result(None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_plain_handler_runs_without_a_transaction_and_is_finished_afterwards(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    @handlers.plain("n", policy=RetryPolicy(max_attempts=1))
    async def run(job: Job) -> Outcome | None:
        assert await state_of(queue, job) is JobState.RUNNING
        if job.payload["n"]:
            raise ConnectionRefusedError("the bank is closed")
        return None

    jobs = await claimed(queue, session_factory, 2)
    await executor.run(jobs)
    assert await states(queue, jobs) == ["completed", "discarded"]


async def test_a_handler_that_returns_no_outcome_has_failed_and_keeps_nothing(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    async def run(job: Job, session: AsyncSession) -> Any:
        await write(session, job)
        return "done"

    handlers.add("n", run)
    (job,) = await claimed(queue, session_factory)
    await executor.run([job])
    assert await states(queue, [job]) == ["available"]
    assert await effects(session_factory) == []


async def test_a_job_whose_policy_allows_no_further_attempt_is_not_run_again(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    @handlers.job("n", policy=RetryPolicy(max_attempts=1))
    async def run(job: Job, session: AsyncSession) -> None:
        raise AssertionError("it killed its process before")

    await claimed(queue, session_factory, lease_seconds=EXPIRED)
    await queue.rescue()
    jobs = await queue.claim(1)
    await executor.run(jobs)
    assert await states(queue, jobs) == ["discarded"]


class TestProcessOne:
    """``process_one(queue, handler)``, on the durable queue and on the memory queue."""

    async def test_it_runs_what_the_handlers_know(
        self, queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions
    ) -> None:
        @handlers.job("n")
        async def run(job: Job, session: AsyncSession) -> None:
            await write(session, job)
            if job.payload.get("bad"):
                raise ValueError

        await enqueue(queue, session_factory, "unknown")
        good = await enqueue(queue, session_factory)
        await enqueue(queue, session_factory, payload={"bad": True})
        assert [await process_one(queue, handlers) for _ in range(3)] == [True, True, False]
        assert await effects(session_factory) == [good.id]

    async def test_a_callable_may_finish_the_job_in_its_own_transaction(
        self, queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions
    ) -> None:
        @handlers.job("n")
        async def run(job: Job, session: AsyncSession) -> Outcome:
            return Snooze(timedelta(minutes=5))

        job = await enqueue(queue, session_factory)

        async def wrapped(job: Job) -> None:
            await handlers(job)

        assert await process_one(queue, wrapped)
        assert await states(queue, [job]) == ["available"], "the caller's finish must change nothing"
        assert not await process_one(queue, wrapped)

    async def test_a_job_unknown_to_a_callable_is_passed_over_and_left(
        self, queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions
    ) -> None:
        handlers.add_plain("n", _nothing)

        async def wrapped(job: Job) -> Outcome | None:
            return await handlers(job)

        unknown = await enqueue(queue, session_factory, "unknown")
        known = await enqueue(queue, session_factory)
        assert [await process_one(queue, wrapped) for _ in range(2)] == [True, False]
        assert await states(queue, [unknown, known]) == ["available", "completed"]
        (again,) = await queue.claim(1)
        assert again.attempt == 1
        with pytest.raises(UnknownJob, match="unknown"):
            await handlers(again)

    async def test_it_rescues_expired_leases_when_nothing_is_due(
        self, queue: SqlJobQueue, session_factory: Sessions
    ) -> None:
        jobs = await claimed(queue, session_factory, lease_seconds=EXPIRED)
        assert await process_one(queue, _nothing)
        assert await states(queue, jobs) == ["completed"]

    async def test_a_memory_queue_is_told_after_the_handlers_commit(
        self, handlers: Handlers, session_factory: Sessions, clock: FixedClock
    ) -> None:
        memory = InMemoryJobQueue(clock=clock)

        @handlers.job("n")
        async def run(job: Job, session: AsyncSession) -> Outcome | None:
            await write(session, job)
            return Discard("no") if job.payload else None

        first, second = memory.enqueue("n"), memory.enqueue("n", {"discard": True})
        assert [await process_one(memory, handlers) for _ in range(3)] == [True, True, False]
        assert [stored.state for stored in memory.jobs] == [JobState.COMPLETED, JobState.DISCARDED]
        assert await effects(session_factory) == sorted([first.id, second.id])

    async def test_a_handler_that_needs_a_session_says_so(self, clock: FixedClock) -> None:
        memory, handlers = InMemoryJobQueue(clock=clock), Handlers()
        handlers.add("n", _nothing_in_session)
        job = memory.enqueue("n")
        with pytest.raises(NotInTransaction, match="session_factory"):
            await handlers(job)


async def _nothing(job: Job) -> None:
    return None


async def _nothing_in_session(job: Job, session: AsyncSession) -> None:
    return None
