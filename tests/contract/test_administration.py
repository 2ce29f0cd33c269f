"""What an operator does to jobs: retry, cancel, requeue, purge, each with a record of the act."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidAct, NotFound
from svc_infra.jobs import Discard, Handlers, Job, JobState, Retry, Snooze, SqlJobQueue, Worker
from svc_infra.jobs.acts import list_acts
from svc_infra.jobs.administration import (
    cancel_job,
    error_groups,
    list_jobs,
    purge_jobs,
    requeue_dead,
    retry_job,
    show_job,
)
from svc_infra.jobs.job import FINISHED
from tests.contract.queue_contract import EXPIRED, NOW, Sessions, clock, ended, enqueue, state_of

__all__ = ["clock"]  # a fixture of the queue contract
T = TypeVar("T")
ACTOR = "ann"


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
    return SqlJobQueue(session_factory, clock=clock)


async def act(sessions: Sessions, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
    async with sessions.begin() as session:
        return await session.run_sync(lambda sync: work(sync, *arguments, **options))


async def dead(queue: SqlJobQueue, sessions: Sessions, error: str, name: str = "n") -> Job:
    await enqueue(queue, sessions, name, max_attempts=3)
    (job,) = await queue.claim(1, names={name})
    await queue.finish([ended(job, Discard(error))])
    return job


async def test_a_dead_letter_that_is_retried_has_all_its_attempts_anew(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    job = await dead(queue, session_factory, "no such account")
    later = NOW + timedelta(days=1)
    await act(session_factory, retry_job, job.id, actor=ACTOR, now=later)
    stored = await queue.find(job.id)
    assert stored is not None
    assert (stored.state, stored.job.run_at, stored.finished_at) == (JobState.AVAILABLE, later, None)
    assert stored.job.last_error == "no such account", "why it died stays readable"
    (again,) = await queue.claim(1, now=later)
    assert (again.id, again.attempt) == (job.id, 1)
    (recorded,) = await act(session_factory, list_acts, subject=job.id)
    assert (recorded.act, recorded.actor, recorded.at) == ("retry", ACTOR, later)
    assert recorded.detail == {"was": "discarded"}


async def test_a_waiting_job_that_is_retried_is_due_now(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    job = await enqueue(queue, session_factory, delay_seconds=3600)
    await act(session_factory, retry_job, job.id, actor=ACTOR, now=NOW)
    assert [claimed.id for claimed in await queue.claim(1)] == [job.id]


async def test_a_running_or_completed_job_cannot_be_retried(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    await enqueue(queue, session_factory)
    (job,) = await queue.claim(1)
    with pytest.raises(InvalidAct, match="running"):
        await act(session_factory, retry_job, job.id, actor=ACTOR, now=NOW)
    await queue.finish([ended(job)])
    with pytest.raises(InvalidAct, match="completed"):
        await act(session_factory, retry_job, job.id, actor=ACTOR, now=NOW)
    with pytest.raises(NotFound):
        await act(session_factory, retry_job, "nothing", actor=ACTOR, now=NOW)
    assert await act(session_factory, list_acts) == []


async def test_a_waiting_job_is_cancelled_at_once_and_a_finished_one_not_at_all(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    job = await enqueue(queue, session_factory)
    assert await act(session_factory, cancel_job, job.id, actor=ACTOR, now=NOW) is JobState.AVAILABLE
    assert await state_of(queue, job) is JobState.CANCELLED
    assert await queue.claim(1) == []
    with pytest.raises(InvalidAct, match="cancelled already"):
        await act(session_factory, cancel_job, job.id, actor=ACTOR, now=NOW)


@pytest.mark.parametrize("kind", ["plain", "job"])
async def test_a_running_job_that_is_cancelled_ends_and_keeps_nothing(
    queue: SqlJobQueue, session_factory: Sessions, target: str, kind: str
) -> None:
    if (target, kind) == ("sqlite", "job"):
        pytest.skip("a transaction that runs on SQLite keeps every other writer out, a canceller too")
    handlers, started, stop = Handlers(session_factory), asyncio.Event(), asyncio.Event()
    ended_early = asyncio.Event()

    async def hang(job: Job, *session: AsyncSession) -> None:
        for each in session:
            queue.bind(each).enqueue("never")
            await each.flush()
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended_early.set()

    (handlers.add_plain if kind == "plain" else handlers.add)("n", hang)  # type: ignore[operator]  # it takes either's arguments
    job = await enqueue(queue, session_factory)
    worker = Worker(queue, handlers, lease_seconds=0.6, poll_seconds=0.05)
    running = asyncio.create_task(worker.run(stop))
    await started.wait()
    assert await act(session_factory, cancel_job, job.id, actor=ACTOR, now=NOW) is JobState.RUNNING
    async with asyncio.timeout(20):
        await ended_early.wait()
        stop.set()
        await running
    assert worker.stats.cancelled == 1
    stored = await queue.find(job.id)
    assert stored is not None
    assert (stored.state, stored.job.last_error) == (JobState.CANCELLED, "cancelled by ann")
    assert [found.job.name for found in await act(session_factory, list_jobs)] == ["n"]


@pytest.mark.parametrize("end", ["retry", "snooze", "release", "rescue", "rescued later"])
async def test_a_running_job_that_is_to_be_cancelled_is_not_tried_again(
    queue: SqlJobQueue, session_factory: Sessions, end: str
) -> None:
    await enqueue(queue, session_factory)
    (job,) = await queue.claim(1, lease_seconds=EXPIRED)
    if end == "rescued later":
        await queue.finish([ended(job, Retry())])
        async with session_factory.begin() as session:  # the wish met an end that had not committed yet
            wish = {"id": job.id, "at": _stored(session, NOW)}
            await session.execute(
                text("INSERT INTO job_cancellations VALUES (:id, 'cancelled by ann', :at)"), wish
            )
    else:
        await act(session_factory, cancel_job, job.id, actor=ACTOR, now=NOW)
    match end:
        case "retry" | "snooze":
            outcome = Retry() if end == "retry" else Snooze(timedelta(0))
            assert await queue.finish([ended(job, outcome)]) == {job.id}
        case "release":
            assert await queue.release([job]) == {job.id}
        case _:
            await queue.rescue()
    stored = await queue.find(job.id)
    assert stored is not None
    assert (stored.state, stored.finished_at) == (JobState.CANCELLED, NOW)
    assert stored.job.last_error == "cancelled by ann"
    assert await queue.claim(9, now=NOW + timedelta(days=9)) == []


async def test_the_other_jobs_of_a_batch_run_again_when_one_is_cancelled(
    queue: SqlJobQueue, session_factory: Sessions, target: str
) -> None:
    if target == "sqlite":
        pytest.skip("a transaction that runs on SQLite keeps every other writer out, a canceller too")
    handlers, started, stop = Handlers(session_factory), asyncio.Event(), asyncio.Event()

    @handlers.batch("n")
    async def hang(jobs: Sequence[Job], session: AsyncSession) -> None:
        started.set()
        await asyncio.Event().wait() if len(jobs) == 3 else stop.set()

    jobs = [await enqueue(queue, session_factory) for _ in range(3)]
    worker = Worker(queue, handlers, lease_seconds=0.6, poll_seconds=0.05)
    running = asyncio.create_task(worker.run(stop))
    await started.wait()
    await act(session_factory, cancel_job, jobs[1].id, actor=ACTOR, now=NOW)
    async with asyncio.timeout(20):
        await running
    assert [await state_of(queue, job) for job in jobs] == [
        JobState.COMPLETED,
        JobState.CANCELLED,
        JobState.COMPLETED,
    ]


async def test_dead_letters_are_requeued_by_pattern_or_by_fingerprint(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    errors = ["TimeoutError: order 17 of 5", "TimeoutError: order 9 of 12", "KeyError: 'x'"]
    first, second, other = [await dead(queue, session_factory, error) for error in errors]
    groups = await act(session_factory, error_groups)
    assert [(group.pattern, group.jobs) for group in groups] == [
        ("TimeoutError: order # of #", 2),
        ("KeyError: 'x'", 1),
    ]
    by_fingerprint = {"actor": ACTOR, "now": NOW, "fingerprint": groups[0].fingerprint}
    assert await act(session_factory, requeue_dead, **by_fingerprint) == 2
    assert [await state_of(queue, job) for job in (first, second, other)] == [
        JobState.AVAILABLE,
        JobState.AVAILABLE,
        JobState.DISCARDED,
    ]
    assert await act(session_factory, requeue_dead, actor=ACTOR, now=NOW, error_like="Key%") == 1
    assert [recorded.detail["jobs"] for recorded in await act(session_factory, list_acts)] == [1, 2]
    with pytest.raises(InvalidAct, match="which errors"):
        await act(session_factory, requeue_dead, actor=ACTOR, now=NOW)


async def test_jobs_are_listed_by_what_is_asked_for_in_pages(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    jobs = [await enqueue(queue, session_factory, name, tenant_id="t") for name in ("a", "b", "a")]
    found = await act(session_factory, list_jobs, name="a", tenant_id="t", state=JobState.AVAILABLE)
    assert [stored.job.id for stored in found] == [jobs[0].id, jobs[2].id]
    page = await act(session_factory, list_jobs, after=jobs[0].id, limit=1)
    assert [stored.job.id for stored in page] == [jobs[1].id]
    assert await act(session_factory, list_jobs, queue="other") == []
    with pytest.raises(NotFound, match="nothing"):
        await act(session_factory, show_job, "nothing")


async def test_purging_deletes_finished_jobs_of_the_given_states_and_age(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    discarded = await dead(queue, session_factory, "x")
    waiting = await enqueue(queue, session_factory)
    options = {"actor": ACTOR, "now": NOW, "finished_before": NOW + timedelta(seconds=1)}
    assert await act(session_factory, purge_jobs, states={JobState.COMPLETED}, **options) == 0
    assert await act(session_factory, purge_jobs, states=FINISHED, **options) == 1
    assert await queue.find(discarded.id) is None
    assert await state_of(queue, waiting) is JobState.AVAILABLE
    with pytest.raises(InvalidAct, match="only completed"):
        await act(session_factory, purge_jobs, states={JobState.AVAILABLE}, **options)


async def test_an_act_and_its_record_are_kept_together_or_not_at_all(
    queue: SqlJobQueue, session_factory: Sessions
) -> None:
    job = await dead(queue, session_factory, "x")

    def retry_and_fail(session: Session) -> None:
        retry_job(session, job.id, actor=ACTOR, now=NOW)
        session.execute(text("SELECT 1"))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await act(session_factory, retry_and_fail)
    with pytest.raises(InvalidAct, match="say who acts"):
        await act(session_factory, retry_job, job.id, actor="", now=NOW)
    assert await act(session_factory, list_acts) == []
    assert await state_of(queue, job) is JobState.DISCARDED


def _stored(session: Any, at: datetime) -> Any:
    return f"{at.replace(tzinfo=None)}.000000" if session.get_bind().dialect.name == "sqlite" else at
