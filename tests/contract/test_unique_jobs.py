"""Unique jobs: one at a time, whoever enqueues, and no transaction suffers from a duplicate."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text

from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidPayload
from svc_infra.jobs import Discard, InMemoryJobQueue, JobRequest, JobState, SqlJobQueue
from svc_infra.jobs.administration import retry_job
from svc_infra.jobs.models import JobRow
from svc_infra.jobs.uniqueness import FOR_EVER, UNTIL_FINISHED, UNTIL_STARTED, Unique
from tests.contract.queue_contract import EXPIRED, NOW, Sessions, clock, ended

__all__ = ["clock"]  # a fixture of the queue contract


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
    return SqlJobQueue(session_factory, clock=clock)


async def count(sessions: Sessions) -> int:
    async with sessions() as session:
        found = await session.execute(select(func.count()).select_from(JobRow))
        return found.scalar_one()


async def enqueue(
    queue: SqlJobQueue, sessions: Sessions, unique: Unique, payload: dict[str, int] | None = None
) -> tuple[str, bool]:
    async with sessions.begin() as session:
        job, is_new = await queue.enqueue_unique(session, "n", payload or {"a": 1}, unique=unique)
    return job.id, is_new


async def test_a_duplicate_returns_the_job_that_is_there(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    first = await enqueue(queue, session_factory, Unique())
    assert await enqueue(queue, session_factory, Unique()) == (first[0], False)
    other, is_new = await enqueue(queue, session_factory, Unique(), {"a": 2})
    assert is_new
    assert other != first[0]
    async with session_factory.begin() as session:
        by_tenant = await queue.enqueue_unique(session, "n", {"a": 1}, unique=Unique(), tenant_id="t")
        by_key = [await queue.enqueue_unique(session, "n", {"a": n}, unique=Unique("k")) for n in (3, 4)]
    assert by_tenant.is_new, "a job of another tenant is another job"
    assert [enqueued.is_new for enqueued in by_key] == [True, False]
    assert await count(session_factory) == 4


async def test_twenty_at_once_give_one_row(queue: SqlJobQueue, session_factory: Sessions) -> None:
    results = await asyncio.gather(*(enqueue(queue, session_factory, Unique()) for _ in range(20)))
    assert len({job_id for job_id, _ in results}) == 1
    assert sum(is_new for _, is_new in results) == 1
    assert await count(session_factory) == 1


async def test_a_duplicate_leaves_the_callers_transaction_whole(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    await enqueue(queue, session_factory, Unique())
    async with session_factory() as session:
        for name in ("n", "n", "other"):
            queue.bind(session).enqueue(name, {"a": 1}, unique=Unique())
        queue.bind(session).enqueue("plain")
        await session.flush()
        await session.execute(text("SELECT 1"))
        queue.bind(session).enqueue("n", {"a": 2}, unique=Unique())
        await session.commit()
    names = [job.name for job in await queue.claim(9)]
    assert sorted(names) == ["n", "n", "other", "plain"]


async def test_a_unique_job_of_a_rolled_back_transaction_or_savepoint_never_existed(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    async with session_factory() as session:
        queue.bind(session).enqueue("n", unique=Unique())
        await session.rollback()
        savepoint = await session.begin_nested()
        queue.bind(session).enqueue("n", unique=Unique())
        await savepoint.rollback()
        queue.bind(session).enqueue("n", {"kept": 1}, unique=Unique("k"))
        await session.commit()
    assert [job.payload for job in await queue.claim(9)] == [{"kept": 1}]


async def test_many_requests_at_once_hold_duplicates_of_each_other(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    requests = [JobRequest("n", {"k": n % 3}, unique=Unique()) for n in range(9)] + [
        JobRequest("n", {"k": 0})
    ]
    async with session_factory.begin() as session:
        ids = await queue.enqueue_many(session, requests)
    assert ids[:3] == ids[3:6] == ids[6:9]
    assert len(set(ids)) == 4
    assert {job.id for job in await queue.claim(99)} == set(ids)


@pytest.mark.parametrize(
    ("states", "after_start", "after_end"),
    [(UNTIL_STARTED, True, True), (UNTIL_FINISHED, False, True), (FOR_EVER, False, False)],
    ids=["until started", "until finished", "for ever"],
)
async def test_the_key_is_held_over_the_chosen_states(
    queue: SqlJobQueue,
    session_factory: Sessions,
    states: frozenset[JobState],
    after_start: bool,
    after_end: bool,
) -> None:
    unique = Unique(states=states)
    first, _ = await enqueue(queue, session_factory, unique)
    assert await enqueue(queue, session_factory, unique) == (first, False)
    (job,) = await queue.claim(1)
    _, is_new = await enqueue(queue, session_factory, unique)
    assert is_new is after_start
    if is_new:
        assert await queue.release([job]), "a job that comes back meets no wall where its key was"
        return
    await queue.finish([ended(job)])
    _, is_new = await enqueue(queue, session_factory, unique)
    assert is_new is after_end


async def test_a_rescued_or_retried_job_keeps_its_key(queue: SqlJobQueue, session_factory: Sessions) -> None:
    first, _ = await enqueue(queue, session_factory, Unique())
    await queue.claim(1, lease_seconds=EXPIRED)
    await queue.rescue()
    assert await enqueue(queue, session_factory, Unique()) == (first, False)


async def test_a_dead_letter_can_be_retried_beside_a_newer_job_of_its_key(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    first, _ = await enqueue(queue, session_factory, Unique())
    (job,) = await queue.claim(1)
    await queue.finish([ended(job, Discard("x"))])
    _, is_new = await enqueue(queue, session_factory, Unique())
    assert is_new
    async with session_factory.begin() as session:
        await session.run_sync(lambda sync: retry_job(sync, first, actor="ann", now=NOW))
    assert len(await queue.claim(9)) == 2


async def test_a_period_begins_anew_with_each_stretch_of_business_time(
    queue: SqlJobQueue, session_factory: Sessions, clock: FixedClock
) -> None:
    daily = Unique(states=FOR_EVER, period_seconds=86_400)
    news = []
    for hours in (0, 11, 12, 35):
        clock.set(NOW + timedelta(hours=hours))
        news.append((await enqueue(queue, session_factory, daily))[1])
    assert news == [True, False, True, False]


async def test_a_replacing_duplicate_gives_its_work_to_the_waiting_job(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    unique = Unique("k", is_replacing=True)
    later = NOW + timedelta(hours=1)
    first, _ = await enqueue(queue, session_factory, unique)
    async with session_factory.begin() as session:
        job, is_new = await queue.enqueue_unique(
            session, "n", {"a": 9}, priority=-1, run_at=later, unique=unique
        )
    assert (job.id, job.payload, job.run_at, is_new) == (first, {"a": 9}, later, False)
    assert await queue.claim(1) == []
    (claimed,) = await queue.claim(1, now=later)
    assert (claimed.id, claimed.payload, claimed.priority) == (first, {"a": 9}, -1)
    assert await enqueue(queue, session_factory, unique, {"a": 10}) == (first, False)
    stored = await queue.find(first)
    assert stored is not None
    assert stored.job.payload == {"a": 9}, "what runs is not changed under its handler"


async def test_only_the_chosen_fields_of_the_payload_count(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    by_b = Unique(fields=("b",))
    first, _ = await enqueue(queue, session_factory, by_b, {"a": 1, "b": 2})
    assert await enqueue(queue, session_factory, by_b, {"b": 2, "a": 9}) == (first, False)
    assert (await enqueue(queue, session_factory, by_b, {"a": 1, "b": 3}))[1]


@pytest.mark.parametrize(
    "options",
    [
        {"states": frozenset({JobState.RUNNING})},
        {"states": frozenset({JobState.AVAILABLE, JobState.DISCARDED})},
        {"period_seconds": 0},
        {"key": "k", "fields": ("a",)},
    ],
)
def test_what_could_not_be_kept_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidPayload):
        Unique(**options)  # type: ignore[arg-type]  # that is the test


def test_the_memory_queue_has_no_unique_jobs() -> None:
    with pytest.raises(InvalidPayload, match="SqlJobQueue"):
        InMemoryJobQueue().enqueue("n", unique=Unique())
