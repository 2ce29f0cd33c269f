"""Rates: never more starts of a key in a stretch of business time, whoever claims."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidPayload
from svc_infra.jobs import Handlers, InMemoryJobQueue, Job, JobKind, JobRequest, SqlJobQueue, Worker
from svc_infra.jobs.limit import Limit
from svc_infra.jobs.limited_claim import claim_limited
from svc_infra.jobs.lines import Place
from svc_infra.jobs.rate import Rate
from svc_infra.jobs.rows import ClaimTerms
from tests.contract.queue_contract import Sessions, clock, ended

__all__ = ["clock"]  # a fixture of the queue contract

CALL = JobKind("call", rate=Rate(3, per_seconds=60))
PER_ACCOUNT = JobKind("sync", rate=Rate(1, per_seconds=10, field="account"))
LATER = timedelta(seconds=61)


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
    return SqlJobQueue(session_factory, clock=clock)


async def fill(queue: SqlJobQueue, sessions: Sessions, *requests: JobRequest) -> list[str]:
    async with sessions.begin() as session:
        return await queue.enqueue_many(session, requests)


async def test_workers_at_once_start_no_more_than_the_rate_and_the_rest_later(
    queue: SqlJobQueue, session_factory: Sessions, clock: FixedClock
) -> None:
    await fill(queue, session_factory, *[CALL.request() for _ in range(8)])
    for starts in (3, 3, 2):
        claims = await asyncio.gather(*(queue.claim(2, has_limits=True) for _ in range(6)))
        claimed = [job for claim in claims for job in claim]
        claimed += await queue.claim(9)  # who was passed over by those that held the key
        assert [job.attempt for job in claimed] == [1] * starts
        await queue.finish([ended(job) for job in claimed])
        assert await queue.claim(9) == []
        clock.advance(LATER)


@pytest.mark.postgres_only
async def test_a_key_that_another_claim_has_not_committed_yet_is_passed_over(
    queue: SqlJobQueue, session_factory: Sessions, clock: FixedClock
) -> None:
    await fill(queue, session_factory, *[CALL.request() for _ in range(7)])
    await queue.claim(1)
    clock.advance(LATER)
    async with session_factory.begin() as session:
        terms = ClaimTerms(clock.now())
        claimed = await session.run_sync(lambda sync: claim_limited(sync, 2, terms, place=Place()))
        assert len(claimed) == 2
        assert await queue.claim(9) == [], "without the lock of the key this would start three more"
    assert len(await queue.claim(9)) == 1


async def test_each_key_has_its_own_rate_and_one_that_is_used_up_holds_up_no_other(
    queue: SqlJobQueue, session_factory: Sessions, clock: FixedClock
) -> None:
    many = [PER_ACCOUNT.request({"account": "a", "n": n}, priority=-9) for n in range(300)]
    await fill(queue, session_factory, *many, PER_ACCOUNT.request({"account": "b"}), JobRequest("free"))
    first = [*await queue.claim(5), *await queue.claim(5)]
    found = [(job.name, job.payload.get("account")) for job in first]
    assert found == [("free", None), ("sync", "a"), ("sync", "b")]
    assert await queue.claim(5) == []
    clock.advance(timedelta(seconds=11))
    (second,) = await queue.claim(5)
    assert (second.payload["account"], second.attempt) == ("a", 1)


async def test_an_attempt_counts_however_it_ends(
    queue: SqlJobQueue, session_factory: Sessions, clock: FixedClock
) -> None:
    await fill(queue, session_factory, *[PER_ACCOUNT.request({"account": "a"}) for _ in range(2)])
    await queue.release(await queue.claim(1))
    assert await queue.claim(1) == []
    clock.advance(timedelta(seconds=11))
    assert len(await queue.claim(1)) == 1


async def test_a_kind_may_have_a_limit_and_a_rate(
    queue: SqlJobQueue, session_factory: Sessions, clock: FixedClock
) -> None:
    both = JobKind("both", limit=Limit(2), rate=Rate(3, per_seconds=60))
    await fill(queue, session_factory, *[both.request() for _ in range(6)])
    first = await queue.claim(9)
    assert len(first) == 2
    await queue.finish([ended(job) for job in first])
    assert len(await queue.claim(9)) == 1
    clock.advance(LATER)
    assert len(await queue.claim(9)) == 1, "one of the two slots is held"


async def test_a_worker_runs_what_the_rate_lets_start_and_waits_with_the_rest(
    session_factory: Sessions, clock: FixedClock
) -> None:
    queue, handlers = SqlJobQueue(session_factory, clock=clock), Handlers(session_factory)
    ran: list[str] = []

    @handlers.plain(CALL)
    async def call(job: Job) -> None:
        ran.append(job.id)

    ids = await fill(queue, session_factory, *[CALL.request() for _ in range(5)])
    worker = Worker(queue, handlers)
    assert await worker.drain() == 3
    clock.advance(LATER)
    assert await worker.drain() == 2
    assert sorted(ran) == sorted(ids)


async def test_what_started_is_forgotten_when_no_stretch_needs_it(
    queue: SqlJobQueue, session_factory: Sessions, clock: FixedClock
) -> None:
    await fill(queue, session_factory, CALL.request())
    await queue.claim(1)
    for seconds, kept in ((60, 1), (61, 0)):
        clock.advance(timedelta(seconds=seconds))
        await queue.prune(finished_before=clock.now())
        async with session_factory() as session:
            assert await session.scalar(text("SELECT count(*) FROM job_rates")) == kept


def test_the_memory_queue_has_no_rates() -> None:
    with pytest.raises(InvalidPayload, match="SqlJobQueue"):
        InMemoryJobQueue().enqueue(CALL)
