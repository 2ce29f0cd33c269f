"""Limits: never more jobs of a key at once than it has slots, whoever claims."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidPayload, InvalidSettings
from svc_infra.jobs import Handlers, InMemoryJobQueue, Job, JobKind, JobRequest, Retry, SqlJobQueue, Worker
from svc_infra.jobs.limit import Limit
from svc_infra.jobs.limited_claim import assign_slots
from tests.contract.queue_contract import EXPIRED, Sessions, clock, ended

__all__ = ["clock"]  # a fixture of the queue contract

CALL = JobKind("call", limit=Limit(3))
PER_ACCOUNT = JobKind("sync", limit=Limit(1, field="account"))


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
    return SqlJobQueue(session_factory, clock=clock)


async def fill(queue: SqlJobQueue, sessions: Sessions, *requests: JobRequest) -> list[str]:
    async with sessions.begin() as session:
        return await queue.enqueue_many(session, requests)


@pytest.mark.parametrize("has_limits", [True, False])
async def test_no_more_jobs_of_a_kind_run_at_once_than_it_has_slots(
    queue: SqlJobQueue, session_factory: Sessions, has_limits: bool
) -> None:
    await fill(queue, session_factory, *[CALL.request() for _ in range(10)])
    claims = await asyncio.gather(*(queue.claim(2, has_limits=has_limits) for _ in range(8)))
    claimed = [job for claim in claims for job in claim]
    assert len(claimed) <= 3
    claimed += await queue.claim(9, has_limits=has_limits)
    assert len({job.id for job in claimed}) == len(claimed) == 3
    assert await queue.claim(9, has_limits=has_limits) == []
    await queue.finish([ended(claimed[0]), ended(claimed[1])])
    assert len(await queue.claim(9, has_limits=has_limits)) == 2


async def test_each_key_has_slots_of_its_own_and_a_blocked_one_holds_up_no_other(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    many = [PER_ACCOUNT.request({"account": "a", "n": n}, priority=-9) for n in range(300)]
    other = PER_ACCOUNT.request({"account": "b"})
    await fill(queue, session_factory, *many, other, JobRequest("free"))
    first = [*await queue.claim(5), *await queue.claim(5)]
    found = [(job.name, job.payload.get("account")) for job in first]
    assert found == [("free", None), ("sync", "a"), ("sync", "b")]
    assert await queue.claim(5) == []


@pytest.mark.parametrize("end", ["retry", "release", "rescue"])
async def test_a_slot_is_free_again_however_the_attempt_ended(
    queue: SqlJobQueue, session_factory: Sessions, end: str
) -> None:
    await fill(queue, session_factory, PER_ACCOUNT.request({"account": "a"}))
    (job,) = await queue.claim(1, lease_seconds=EXPIRED if end == "rescue" else 30)
    assert await queue.claim(1) == []
    if end == "retry":
        await queue.finish([ended(job, Retry())])
        await fill(queue, session_factory, PER_ACCOUNT.request({"account": "a"}))
    elif end == "release":
        await queue.release([job])
    else:
        await queue.rescue()
    assert len(await queue.claim(1)) == 1


async def test_a_slot_that_is_held_cannot_be_held_twice(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    await fill(queue, session_factory, *[CALL.request() for _ in range(2)])
    await queue.claim(2)
    with pytest.raises(IntegrityError):
        async with session_factory.begin() as session:
            await session.execute(text("UPDATE jobs SET slot = 1"))


async def test_a_worker_runs_limited_jobs_to_their_end(session_factory: Sessions) -> None:
    queue, handlers = SqlJobQueue(session_factory), Handlers(session_factory)
    now, most = 0, 0

    async def call(job: Job) -> None:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await asyncio.sleep(0)
        now -= 1

    async def plain(job: Job, session: AsyncSession) -> None:
        return None

    handlers.add_plain(CALL, call)
    handlers.add("free", plain)
    requests: list[Any] = [CALL.request() for _ in range(12)]
    await fill(queue, session_factory, *requests, JobRequest("free"))
    assert await Worker(queue, handlers).drain() == 13
    assert 1 <= most <= 3


def test_slots_are_given_in_order_and_the_lowest_first() -> None:
    due = [("1", "a", 2), ("2", "a", 2), ("3", "b", 1), ("4", "a", 2), ("5", "c", 3)]
    assert list(assign_slots(due, {"b": {1}, "c": {1, 3}})) == [("1", 1), ("2", 2), ("5", 2)]


def test_a_limit_that_lets_none_run_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="the least is 1"):
        Limit(0)
    with pytest.raises(InvalidPayload, match="SqlJobQueue"):
        InMemoryJobQueue().enqueue(CALL)
