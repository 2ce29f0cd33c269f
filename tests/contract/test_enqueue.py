"""Enqueuing one job: in the caller's transaction, or in one of its own, and what it costs the database."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.clock import FixedClock
from svc_infra.jobs import Handlers, Job, JobRequest, SqlJobQueue, Worker, claimer
from svc_infra.jobs.limit import Limit
from svc_infra.jobs.uniqueness import Unique
from tests.contract.queue_contract import Sessions, clock
from tests.contract.seen_statements import statements

__all__ = ["clock"]  # a fixture of the queue contract


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
    return SqlJobQueue(session_factory, clock=clock)


async def test_a_job_enqueued_alone_is_committed_on_return_and_a_duplicate_gets_it(
    queue: SqlJobQueue,
) -> None:
    job, is_new = await queue.enqueue_alone("n", {"a": 1}, unique=Unique(), tenant_id="t")
    again = await queue.enqueue_alone("n", {"a": 1}, unique=Unique(), tenant_id="t")
    assert (is_new, again.job.id, again.is_new) == (True, job.id, False)
    (claimed,) = await queue.claim(9)
    assert (claimed.id, claimed.payload, claimed.tenant_id) == (job.id, {"a": 1}, "t")


async def test_jobs_of_one_transaction_are_one_statement_and_carry_their_notice(
    queue: SqlJobQueue, session_factory: Sessions, engine: AsyncEngine, target: str
) -> None:
    with statements(engine) as seen:
        async with session_factory.begin() as session:
            for n in range(3):
                queue.bind(session).enqueue("n", {"n": n})
        await queue.enqueue_alone("n")
    inserts = [sql for sql in seen if sql != "BEGIN IMMEDIATE"]
    assert ["INSERT INTO jobs" in sql for sql in inserts] == [True, True]
    assert ["pg_notify" in sql for sql in inserts] == [target == "postgres"] * 2
    assert len(await queue.claim(9)) == 4


@pytest.mark.postgres_only
async def test_a_flush_before_the_commit_gives_no_notice_that_would_silence_others(
    queue: SqlJobQueue, session_factory: Sessions, engine: AsyncEngine
) -> None:
    with statements(engine) as seen:
        async with session_factory.begin() as session:
            queue.bind(session).enqueue("n")
            await session.flush()
            assert ["pg_notify" in sql for sql in seen] == [False]
    assert ["pg_notify" in sql for sql in seen] == [False, True]


async def test_a_job_of_a_savepoint_that_is_rolled_back_never_existed(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    async with session_factory.begin() as session:
        queue.bind(session).enqueue("n", {"kept": 1})
        savepoint = await session.begin_nested()
        queue.bind(session).enqueue("n", {"kept": 0})
        await savepoint.rollback()
        queue.bind(session).enqueue("n", {"kept": 2})
    assert [job.payload["kept"] for job in await queue.claim(9)] == [1, 2]


async def test_a_job_with_a_limit_of_its_own_starts_although_its_kind_has_none_and_others_never_run_out(
    queue: SqlJobQueue, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claimer, "_LIMITS_FIRST_SECONDS", 0.0)
    handlers, started = Handlers(session_factory), []

    @handlers.plain("n")
    async def run(job: Job) -> None:
        started.append(job.payload["is_limited"])

    async with session_factory.begin() as session:
        await queue.enqueue_many(session, [JobRequest("n", {"is_limited": False})] * 200)
        await queue.enqueue_many(session, [JobRequest("n", {"is_limited": True}, limit=Limit(1))])
    await Worker(queue, handlers).drain()
    assert len(started) == 201
    assert started.index(True) < 200
