"""Groups: a job that waits runs once all jobs of the group have finished, and sees which failed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidPayload
from svc_infra.jobs import (
    Discard,
    Handlers,
    InMemoryJobQueue,
    Job,
    JobKind,
    JobRequest,
    JobState,
    Retry,
    SqlJobQueue,
    Worker,
)
from svc_infra.jobs.groups import group_result, new_group
from svc_infra.jobs.limit import Limit
from tests.contract.queue_contract import NOW, Sessions, clock, ended

__all__ = ["clock"]  # a fixture of the queue contract


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
    return SqlJobQueue(session_factory, clock=clock)


async def fill(queue: SqlJobQueue, sessions: Sessions, *requests: JobRequest) -> list[str]:
    async with sessions.begin() as session:
        return await queue.enqueue_many(session, requests)


async def names(queue: SqlJobQueue, **options: Any) -> list[str]:
    return [job.name for job in await queue.claim(9, **options)]


async def test_a_job_waits_until_every_job_of_the_group_has_finished(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    group = new_group()
    async with session_factory.begin() as session:
        queue.bind(session).enqueue("report", waits_for=group, priority=-9)
        for n in range(3):
            queue.bind(session).enqueue("count", {"n": n}, group_id=group)
        queue.bind(session).enqueue("other")
    jobs = await queue.claim(9)
    assert [job.name for job in jobs] == ["count", "count", "count", "other"]
    first, second, third, _ = jobs
    await queue.finish([ended(first), ended(second, Retry(timedelta(hours=1)))])
    assert await names(queue) == []
    await queue.finish([ended(third, Discard("broken"))])
    assert await names(queue) == [], "one of the group is to be retried"
    (again,) = await queue.claim(9, now=NOW + timedelta(hours=1))
    await queue.finish([ended(again)])
    (report,) = await queue.claim(9)
    assert (report.name, report.waits_for) == ("report", group)
    async with session_factory() as session:
        result = await session.run_sync(group_result, group)
    assert result.has_finished
    assert result.counts == {JobState.COMPLETED: 2, JobState.DISCARDED: 1}
    assert [(failed.job.id, failed.job.last_error) for failed in result.failed] == [(third.id, "broken")]


async def test_a_job_that_a_group_s_job_adds_to_the_group_is_waited_for_too(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    handlers, seen, group = Handlers(session_factory), list[str](), new_group()

    @handlers.job("first")
    async def first(job: Job, session: AsyncSession) -> None:
        queue.bind(session).enqueue("second", group_id=job.group_id)

    @handlers.job("second")
    async def second(job: Job, session: AsyncSession) -> None:
        seen.append(job.name)

    @handlers.job("last")
    async def last(job: Job, session: AsyncSession) -> None:
        assert (await session.run_sync(group_result, group)).has_finished
        seen.append(job.name)

    await fill(
        queue, session_factory, JobRequest("last", waits_for=group), JobRequest("first", group_id=group)
    )
    assert await Worker(queue, handlers, clock=queue.clock).drain() == 3
    assert seen == ["second", "last"]


async def test_a_chain_runs_in_its_order(queue: SqlJobQueue, session_factory: Sessions) -> None:
    aggregate, invoice = new_group(), new_group()
    await fill(
        queue,
        session_factory,
        JobRequest("report", waits_for=invoice),
        JobRequest("invoice", group_id=invoice, waits_for=aggregate),
        JobRequest("aggregate", group_id=aggregate),
    )
    seen = []
    while jobs := await queue.claim(9):
        seen.append([job.name for job in jobs])
        await queue.finish([ended(job) for job in jobs])
    assert seen == [["aggregate"], ["invoice"], ["report"]]


async def test_a_limited_job_waits_for_its_group_too(queue: SqlJobQueue, session_factory: Sessions) -> None:
    group, limited = new_group(), JobKind("limited", limit=Limit(1))
    await fill(queue, session_factory, limited.request(waits_for=group), JobRequest("member", group_id=group))
    (member,) = await queue.claim(9, has_limits=True)
    assert member.name == "member"
    await queue.finish([ended(member)])
    assert await names(queue) == ["limited"]


async def test_a_group_without_jobs_has_finished(queue: SqlJobQueue, session_factory: Sessions) -> None:
    await fill(queue, session_factory, JobRequest("n", waits_for=new_group()))
    assert await names(queue) == ["n"]
    with pytest.raises(InvalidPayload, match="SqlJobQueue"):
        InMemoryJobQueue().enqueue("n", waits_for="g")
    with pytest.raises(InvalidPayload, match="group"):
        JobRequest("n", group_id="x" * 41)
    with pytest.raises(InvalidPayload, match="its own group"):
        JobRequest("n", group_id="g", waits_for="g")
