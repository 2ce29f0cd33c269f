"""The worker as a whole: stopping, heartbeats, a database that goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.schema import create_schema
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs import Handlers, InMemoryJobQueue, Job, JobRequest, JobState, SqlJobQueue, Worker
from svc_infra.jobs.heartbeat import Heartbeat
from svc_infra.jobs.loop import run_loop
from svc_infra.jobs.maintenance import Maintenance
from tests.contract.queue_contract import EXPIRED, Sessions, enqueue, state_of


@pytest.fixture
def queue(session_factory: Sessions) -> SqlJobQueue:
    return SqlJobQueue(session_factory)


@pytest.fixture
def handlers(session_factory: Sessions) -> Handlers:
    return Handlers(session_factory)


async def fill(queue: SqlJobQueue, sessions: Sessions, name: str, count: int) -> list[str]:
    async with sessions() as session:
        ids = await queue.enqueue_many(session, [JobRequest(name) for _ in range(count)])
        await session.commit()
    return ids


async def test_draining_runs_all_kinds_of_handlers_and_what_they_enqueue(
    queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions
) -> None:
    seen: list[str] = []

    @handlers.batch("batch", batch_size=10)
    async def batch(jobs: Sequence[Job], session: AsyncSession) -> None:
        assert len(jobs) <= 10
        seen.extend(job.id for job in jobs)
        queue.bind(session).enqueue("one")

    @handlers.job("one")
    async def one(job: Job, session: AsyncSession) -> None:
        queue.bind(session).enqueue("plain")

    @handlers.plain("plain")
    async def plain(job: Job) -> None:
        seen.append(job.name)

    ids = await fill(queue, session_factory, "batch", 25)
    unknown = await enqueue(queue, session_factory, "unknown")
    worker = Worker(queue, handlers)
    assert await worker.drain() == 25 + 3 + 3
    assert sorted(job_id for job_id in seen if job_id != "plain") == sorted(ids)
    assert seen.count("plain") == 3
    assert worker.stats.completed == 31
    assert await state_of(queue, unknown) is JobState.AVAILABLE
    assert await worker.drain() == 0


async def test_a_stopping_worker_lets_jobs_end_and_gives_the_others_back(
    queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions
) -> None:
    stop, starting = asyncio.Event(), asyncio.Event()

    @handlers.plain("quick")
    async def quick(job: Job) -> None:
        await stop.wait()

    @handlers.plain("hanging")
    async def hanging(job: Job) -> None:
        starting.set()
        await asyncio.Event().wait()

    ending = await enqueue(queue, session_factory, "quick")
    hung = await enqueue(queue, session_factory, "hanging", max_attempts=1)
    worker = Worker(queue, handlers, grace_seconds=1.0)
    running = asyncio.create_task(worker.run(stop))
    await starting.wait()
    stop.set()
    await running
    assert await state_of(queue, ending) is JobState.COMPLETED
    (again,) = await queue.claim(9)
    assert (again.id, again.attempt, again.rescues) == (hung.id, 1, 0)


async def test_a_stopped_worker_claims_nothing_more(
    queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions
) -> None:
    stop, done = asyncio.Event(), asyncio.Event()

    @handlers.plain("n")
    async def run(job: Job) -> None:
        stop.set()
        done.set()
        await enqueue(queue, session_factory, "n")

    await enqueue(queue, session_factory, "n")
    await Worker(queue, handlers).run(stop)
    assert done.is_set()
    assert len(await queue.claim(9)) == 1


async def test_a_claim_under_way_when_the_stop_comes_is_given_back(
    queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions, monkeypatch: Any
) -> None:
    stop, claimed, may_return = asyncio.Event(), asyncio.Event(), asyncio.Event()
    claim = queue.claim

    async def slow_claim(*args: Any, **options: Any) -> list[Job]:
        jobs = await claim(*args, **options)
        claimed.set()
        await may_return.wait()
        return jobs

    monkeypatch.setattr(queue, "claim", slow_claim)
    handlers.add_plain("n", _never)
    ids = await fill(queue, session_factory, "n", 3)
    running = asyncio.create_task(Worker(queue, handlers).run(stop))
    await claimed.wait()
    stop.set()
    for _ in range(10):
        await asyncio.sleep(0)
    may_return.set()
    await running
    assert [(job.id, job.attempt, job.rescues) for job in await claim(9)] == [(each, 1, 0) for each in ids]


@pytest.mark.sqlite_only
async def test_a_worker_stops_in_order_although_the_database_is_away(
    queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions, monkeypatch: Any
) -> None:
    stop = asyncio.Event()

    @handlers.plain("n")
    async def hang(job: Job) -> None:
        monkeypatch.setattr(queue, "release", away)
        stop.set()
        await asyncio.Event().wait()

    async def away(jobs: Any) -> set[str]:
        raise ConnectionRefusedError

    job = await enqueue(queue, session_factory, "n")
    await Worker(queue, handlers, grace_seconds=0.01).run(stop)
    assert await state_of(queue, job) is JobState.RUNNING, "its lease runs out by itself"


async def test_claimed_jobs_that_have_not_started_are_given_back_at_once(
    queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions
) -> None:
    stop, is_first = asyncio.Event(), True

    @handlers.job("n")
    async def run(job: Job, session: AsyncSession) -> None:
        nonlocal is_first
        assert is_first, "a stopping worker started another job"
        is_first = False
        stop.set()

    await fill(queue, session_factory, "n", 5)
    worker = Worker(queue, handlers, concurrency=1, grace_seconds=60)
    await worker.run(stop)
    assert worker.stats.completed == 1
    assert [job.attempt for job in await queue.claim(9)] == [1] * 4


async def test_a_worker_works_on_an_in_memory_database() -> None:
    engine = make_engine("sqlite:///:memory:")
    await create_schema(engine)
    sessions = make_session_factory(engine)
    queue, handlers, stop = SqlJobQueue(sessions), Handlers(sessions), asyncio.Event()

    @handlers.job("n")
    async def run(job: Job, session: AsyncSession) -> None:
        queue.bind(session).enqueue("m")
        await asyncio.sleep(0)

    @handlers.plain("m")
    async def end(job: Job) -> None:
        if worker.stats.completed >= 8:
            stop.set()

    await fill(queue, sessions, "n", 5)
    worker = Worker(queue, handlers)
    await worker.run(stop)
    assert worker.stats.completed >= 9
    await engine.dispose()


async def test_the_heartbeat_keeps_leases_while_a_handler_blocks_the_event_loop(
    queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions
) -> None:
    lease_seconds = 0.6
    rescued: list[Any] = []

    @handlers.plain("n")
    async def block(job: Job) -> None:
        time.sleep(lease_seconds * 2.5)  # noqa: ASYNC251  # blocking the loop is what this is about
        rescued.append(await queue.rescue())

    job = await enqueue(queue, session_factory, "n")
    await Worker(queue, handlers, lease_seconds=lease_seconds).drain()
    assert rescued == [(0, 0)]
    assert await state_of(queue, job) is JobState.COMPLETED


async def test_a_memory_queues_leases_are_extended_before_every_rescue(handlers: Handlers) -> None:
    memory = InMemoryJobQueue()
    memory.enqueue("n")
    jobs = await memory.claim(1, lease_seconds=EXPIRED)
    async with Heartbeat(memory) as heartbeat:
        heartbeat.hold(jobs)
        await heartbeat.beat()
        assert await memory.rescue() == (0, 0)


async def test_a_process_never_rescues_what_it_holds_itself(
    queue: SqlJobQueue, session_factory: Sessions, monkeypatch: Any
) -> None:
    await fill(queue, session_factory, "n", 1)
    jobs = await queue.claim(1, lease_seconds=EXPIRED)
    stop, rescue, rescued = asyncio.Event(), queue.rescue, list[Any]()

    async def rescue_once(**options: Any) -> Any:
        rescued.append(await rescue(**options))
        stop.set()
        return rescued[-1]

    monkeypatch.setattr(queue, "rescue", rescue_once)
    async with Heartbeat(queue) as heartbeat:  # which has not beaten yet
        heartbeat.hold(jobs)
        await Maintenance(queue).run(stop, heartbeat=heartbeat)
    assert rescued == [(0, 0)]


async def test_maintenance_rescues_what_a_killed_worker_held(
    queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions
) -> None:
    stop = asyncio.Event()

    @handlers.plain("n")
    async def run(job: Job) -> None:
        stop.set()

    job = await enqueue(queue, session_factory, "n")
    await queue.claim(1, lease_seconds=EXPIRED)
    worker = Worker(queue, handlers, poll_seconds=0.05, maintenance=Maintenance(queue, rescue_seconds=0.05))
    await worker.run(stop)
    assert await state_of(queue, job) is JobState.COMPLETED
    assert worker.stats.rescued == 1


@pytest.mark.sqlite_only
async def test_a_worker_outlives_a_database_that_goes_away(
    queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions, monkeypatch: Any
) -> None:
    stop = asyncio.Event()
    claim, failures = queue.claim, iter([ConnectionRefusedError(), OSError("multiple exceptions")])

    async def claim_when_it_is_back(*args: Any, **options: Any) -> list[Job]:
        error = next(failures, None)
        if error is not None:
            raise error
        return await claim(*args, **options)

    monkeypatch.setattr(queue, "claim", claim_when_it_is_back)

    @handlers.plain("n")
    async def run(job: Job) -> None:
        stop.set()

    job = await enqueue(queue, session_factory, "n")
    await Worker(queue, handlers).run(stop)
    assert await state_of(queue, job) is JobState.COMPLETED


@pytest.mark.sqlite_only
async def test_jobs_of_an_attempt_that_found_no_database_are_given_back(
    queue: SqlJobQueue, handlers: Handlers, session_factory: Sessions
) -> None:
    stop, attempts = asyncio.Event(), []

    class Away:
        """An executor whose database is away at the first attempt."""

        def __init__(self, worker_stats: Any) -> None:
            self.stats = worker_stats

        async def run(self, jobs: Sequence[Job], *, slot: object) -> None:
            attempts.append([job.attempt for job in jobs])
            if len(attempts) == 1:
                raise ConnectionRefusedError
            stop.set()

        async def settle(self) -> None:
            pass

    handlers.add_plain("n", _nothing)
    await enqueue(queue, session_factory, "n")
    probe = Worker(queue, handlers)
    worker = Worker(queue, handlers, executor=Away(probe.stats))  # type: ignore[arg-type]  # a stand-in
    await worker.run(stop)
    assert attempts == [[1], [1]], "an attempt that never began is not counted"


async def test_a_failing_step_is_repeated_later_each_time_and_never_ends_the_loop(
    monkeypatch: Any,
) -> None:
    waits: list[float] = []
    stop = asyncio.Event()

    async def no_wait(*events: asyncio.Event, timeout_seconds: float) -> bool:
        waits.append(timeout_seconds)
        if len(waits) == 12:
            stop.set()
        return False

    async def step() -> bool:
        raise ConnectionResetError

    monkeypatch.setattr("svc_infra.jobs.loop.wait_any", no_wait)
    await run_loop("x", step, stop=stop)
    assert 0.125 <= waits[0] <= 0.375
    assert 15 <= waits[-1] <= 45


async def _never(job: Job) -> None:
    raise AssertionError("a stopping worker started a job")


async def _nothing(job: Job) -> None:
    return None
