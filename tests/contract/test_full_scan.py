"""While a long transaction makes full scans slow, claims begin where the last one found its first job."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.clock import FixedClock
from svc_infra.db import full_scan
from svc_infra.jobs import Job, JobRequest, SqlJobQueue
from tests.contract.queue_contract import EXPIRED, Sessions, clock

__all__ = ["clock"]  # a fixture of the queue contract

LONG_TRANSACTION = text(full_scan._HOLDS_BACK.text.replace("5 seconds", "0 seconds"))


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock, monkeypatch: pytest.MonkeyPatch) -> SqlJobQueue:
    """A queue to which every full scan is a slow one, and every open transaction a long one."""
    monkeypatch.setattr(full_scan, "_SLOW_SECONDS", -1.0)
    monkeypatch.setattr(full_scan, "_SLOW_SECONDS_PER_ROW", 0.0)
    monkeypatch.setattr(full_scan, "_HOLDS_BACK", LONG_TRANSACTION)
    monkeypatch.setattr(full_scan, "_TIMES_ITS_OWN", 1e9)
    return SqlJobQueue(session_factory, clock=clock)


async def enqueue(sessions: Sessions, queue: SqlJobQueue, *priorities: int) -> None:
    async with sessions.begin() as session:
        await queue.enqueue_many(session, [JobRequest("n", priority=priority) for priority in priorities])


async def priorities(queue: SqlJobQueue) -> list[int]:
    return [job.priority for job in await queue.claim(9)]


@pytest.mark.postgres_only
async def test_jobs_behind_the_last_claim_are_found_at_once_and_those_before_it_by_a_full_scan(
    queue: SqlJobQueue, session_factory: Sessions, engine: AsyncEngine
) -> None:
    async with engine.connect() as long:
        await long.execute(text("SELECT pg_current_xact_id()"))
        await enqueue(session_factory, queue, 1)
        assert await priorities(queue) == [1]
        await enqueue(session_factory, queue, 0, 2)
        assert await priorities(queue) == [2]
        queue._claims.force()
        assert await priorities(queue) == [0]


@pytest.mark.postgres_only
@pytest.mark.parametrize("way", ["release", "rescue"])
async def test_jobs_that_are_given_back_are_found_at_once(
    queue: SqlJobQueue, session_factory: Sessions, engine: AsyncEngine, way: str
) -> None:
    async with engine.connect() as long:
        await long.execute(text("SELECT pg_current_xact_id()"))
        await enqueue(session_factory, queue, 1)
        jobs: list[Job] = await queue.claim(9, lease_seconds=EXPIRED)
        await enqueue(session_factory, queue, 2)
        assert await priorities(queue) == [2]
        if way == "release":
            await queue.release(jobs)
        else:
            assert await queue.rescue() == (1, 0)
        assert await priorities(queue) == [1]


@pytest.mark.postgres_only
async def test_leases_that_expire_between_full_scans_are_rescued(
    queue: SqlJobQueue, session_factory: Sessions, engine: AsyncEngine
) -> None:
    async with engine.connect() as long:
        await long.execute(text("SELECT pg_current_xact_id()"))
        assert await queue.rescue() == (0, 0)
        assert not queue._rescues.is_due
        await enqueue(session_factory, queue, 1)
        await queue.claim(9, lease_seconds=EXPIRED)
        assert await queue.rescue() == (1, 0)


async def test_without_a_long_transaction_every_claim_is_in_order_however_slow(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    for before, after in ((1, 0), (0, -1)):
        await enqueue(session_factory, queue, before)
        assert await priorities(queue) == [before]
        await enqueue(session_factory, queue, after, 2)
        assert await priorities(queue) == [after, 2]
