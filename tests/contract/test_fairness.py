"""Fairness: however many jobs one tenant has, the others' start soon."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.clock import FixedClock
from svc_infra.jobs import Handlers, Job, JobKind, JobRequest, SqlJobQueue, Worker, lane
from svc_infra.jobs.job import DEFAULT_QUEUE
from svc_infra.jobs.limit import Limit
from svc_infra.jobs.lines import TENANT, heads_statement
from svc_infra.jobs.pausing import pause_queue
from svc_infra.jobs.statements import ClaimFilters
from tests.contract.queue_contract import EXPIRED, NOW, Sessions, clock, ended

__all__ = ["clock"]  # a fixture of the queue contract

SOON_SECONDS = 30.0


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
    return SqlJobQueue(session_factory, clock=clock)


async def fill(queue: SqlJobQueue, sessions: Sessions, *requests: JobRequest) -> list[str]:
    async with sessions.begin() as session:
        return await queue.enqueue_many(session, requests)


def jobs_of(tenant_id: str, count: int = 1, **options: object) -> list[JobRequest]:
    return [JobRequest("n", {}, tenant_id=tenant_id, **options) for _ in range(count)]  # type: ignore[arg-type]


def tenants(jobs: list[Job]) -> list[str | None]:
    return sorted(str(job.tenant_id) for job in jobs)


async def test_tenants_are_claimed_in_turn_whatever_waits_before_them(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    await fill(queue, session_factory, *jobs_of("a", 500), *jobs_of("b", 3), *jobs_of("c"), JobRequest("n"))
    assert tenants(await queue.claim_in_turn(6, each=2)) == ["a", "a", "b", "b", "c"]
    assert tenants(await queue.claim_in_turn(6, each=2, passing_over=["a"])) == ["b"]
    assert tenants(await queue.claim_in_turn(2, each=2)) == ["a", "a"]


async def test_a_tenants_own_jobs_keep_their_order_and_only_due_ones_are_claimed(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    await fill(
        queue,
        session_factory,
        *jobs_of("a", 60, priority=-1, run_at=NOW.replace(hour=13)),
        *jobs_of("a", 1, priority=7),
        *jobs_of("a", 2, priority=5),
    )
    claimed = await queue.claim_in_turn(2, each=2)
    assert [job.priority for job in claimed] == [5, 5]


async def test_many_tenants_all_have_their_turn(queue: SqlJobQueue, session_factory: Sessions) -> None:
    some = [job for n in range(70) for job in jobs_of(f"t{n}")]
    await fill(queue, session_factory, *jobs_of("a", 300), *some)
    claimed: list[Job] = []
    while found := await queue.claim_in_turn(40, each=1, passing_over=["a"]):
        claimed += found
    assert len({job.tenant_id for job in claimed}) == len(claimed) == 70


async def test_what_the_claimer_may_not_have_is_left(queue: SqlJobQueue, session_factory: Sessions) -> None:
    await fill(
        queue,
        session_factory,
        *jobs_of("b", 9, queue="paused"),
        *jobs_of("b", 9, payload_version=2),
        JobRequest("other", tenant_id="b"),
        *jobs_of("b"),
    )
    async with session_factory.begin() as session:
        await session.run_sync(lambda sync: pause_queue(sync, "paused", actor="t", now=NOW))
    (job,) = await queue.claim_in_turn(9, each=9, names=["n"])
    assert (job.queue, job.payload_version, job.attempt) == (DEFAULT_QUEUE, 1, 1)


async def test_a_limited_kind_has_turns_too(queue: SqlJobQueue, session_factory: Sessions) -> None:
    kind = JobKind("n", limit=Limit(2))
    await fill(queue, session_factory, *[kind.request(tenant_id="a") for _ in range(300)])
    await fill(queue, session_factory, kind.request(tenant_id="b"))
    running = await queue.claim(9)
    assert tenants(running) == ["a", "a"]
    assert await queue.claim_in_turn(9, each=1) == []
    await queue.finish([ended(running[0])])
    assert tenants(await queue.claim_in_turn(9, each=1, passing_over=["a"])) == ["b"]


async def test_a_rescued_job_has_its_turn_alone(queue: SqlJobQueue, session_factory: Sessions) -> None:
    await fill(queue, session_factory, *jobs_of("b"))
    await queue.claim(1, lease_seconds=EXPIRED)
    await queue.rescue()
    await fill(queue, session_factory, *jobs_of("a", 9), *jobs_of("c"))
    (job,) = await queue.claim_in_turn(9, each=2)
    assert (job.tenant_id, job.rescues) == ("b", 1)


async def test_claims_at_the_same_time_take_each_job_once(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    await fill(queue, session_factory, *[job for n in range(20) for job in jobs_of(f"t{n}", 2)])
    claims = await asyncio.gather(
        *(queue.claim_in_turn(20, each=2) for _ in range(5)), *(queue.claim(5) for _ in range(5))
    )
    claimed = [job.id for claim in claims for job in claim]
    assert len(set(claimed)) == len(claimed)


async def test_with_little_room_nobody_has_a_second_job_before_all_have_one(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    await fill(queue, session_factory, *jobs_of("a", 9), *jobs_of("b", 9), *jobs_of("c", 9))
    assert tenants(await queue.claim_in_turn(3, each=3)) == ["a", "b", "c"]


async def test_another_tenants_job_starts_at_once_although_one_holds_all_slots_and_the_backlog(
    session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the notice of the enqueue makes the worker look again.
    monkeypatch.setattr(lane, "_IDLE_LOOK_SECONDS", 3_600.0)
    queue, handlers = SqlJobQueue(session_factory), Handlers(session_factory)
    stop, is_busy, other_ran, has_looked = (asyncio.Event() for _ in range(4))
    claim_in_turn, running = queue.claim_in_turn, 0

    async def look(*args: Any, **options: Any) -> list[Job]:
        jobs = await claim_in_turn(*args, **options)
        has_looked.set()
        return jobs

    monkeypatch.setattr(queue, "claim_in_turn", look)

    @handlers.plain("n")
    async def run(job: Job) -> None:
        nonlocal running
        if job.tenant_id == "b":
            other_ran.set()
            return
        running += 1
        if running == 8:
            is_busy.set()
        await other_ran.wait()

    await fill(queue, session_factory, *jobs_of("a", 300))
    worker = Worker(queue, handlers, poll_seconds=3_600)
    working = asyncio.create_task(worker.run(stop))
    try:
        await is_busy.wait()
        worker.wake()
        await asyncio.wait_for(has_looked.wait(), SOON_SECONDS)
        await fill(queue, session_factory, *jobs_of("b"))
        await asyncio.wait_for(other_ran.wait(), SOON_SECONDS)
    finally:
        stop.set()
        other_ran.set()
        await working


async def test_looking_for_turns_reads_no_more_of_a_backlog_than_its_index(
    queue: SqlJobQueue, session_factory: Sessions, engine: AsyncEngine, target: str
) -> None:
    await fill(queue, session_factory, *jobs_of("a", 2_000), *jobs_of("b", 9))
    explain = "EXPLAIN QUERY PLAN " if target == "sqlite" else "EXPLAIN "
    plans: list[str] = []

    def explained(connection: object, cursor: object, sql: str, *rest: Any) -> tuple[str, Any]:
        return (explain + sql if sql.startswith("WITH RECURSIVE") else sql), rest[0]

    async with engine.connect() as connection:
        if target == "postgres":
            await connection.execute(text("ANALYZE jobs"))
            await connection.execute(text("SET plan_cache_mode = force_generic_plan"))
        event.listen(connection.sync_connection, "before_cursor_execute", explained, retval=True)
        bounds = {"after_key": "", "after_priority": 0, "lines": 9, "heads": 2, "depth": 9}
        statement = heads_statement(TENANT, ClaimFilters())
        result = await connection.execute(statement, {**bounds, "now": NOW, "passing_over": ["x"]})
        plans = [str(row) for row in result.cursor.fetchall()]
    assert sum("ix_jobs_tenant" in line for line in plans) >= 2
    assert [line for line in plans if "Seq Scan on jobs" in line or "SCAN jobs" in line] == []
