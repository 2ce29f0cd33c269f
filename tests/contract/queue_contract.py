"""What every queue does, whatever it stores its jobs in; test_queues.py runs it for each kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidPayload
from svc_infra.jobs import Job, JobQueue, JobState, Outcome, Retry, RetryPolicy, Snooze
from svc_infra.jobs.outcome import decide
from svc_infra.jobs.queue import Finish

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
EXPIRED = -1.0
Sessions = async_sessionmaker[AsyncSession]


def ended(job: Job, outcome: Outcome | Exception | None = None, *, now: datetime = NOW) -> Finish:
    return Finish(job, decide(job, outcome, now=now, policy=RetryPolicy(jitter=0), rng=Random(1)))


async def enqueue(jobs: JobQueue, sessions: Sessions, name: str = "n", **options: Any) -> Job:
    async with sessions() as session:
        job = jobs.bind(session).enqueue(name, options.pop("payload", {"k": 1}), **options)
        await session.commit()
    return job


async def enqueue_many(queue: JobQueue, sessions: Sessions, count: int, **options: Any) -> list[Job]:
    return [await enqueue(queue, sessions, **options) for _ in range(count)]


async def state_of(queue: JobQueue, job: Job) -> JobState:
    stored = await queue.find(job.id)
    assert stored is not None
    return stored.state


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(NOW)


class QueueContract:
    """The tests; a subclass gives the fixture ``queue``."""

    async def test_a_job_enqueued_in_a_committed_transaction_is_claimed_as_it_was_given(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        given = await enqueue(
            queue, session_factory, "billing.x", payload={"a": [1, "é"], "at": NOW}, tenant_id="t", priority=3
        )
        (job,) = await queue.claim(10)
        assert (job.id, job.name, job.tenant_id, job.priority) == (given.id, "billing.x", "t", 3)
        assert job.payload == {"a": [1, "é"], "at": "2026-03-01T12:00:00Z"}
        assert (job.attempt, job.rescues, job.run_at, job.created_at) == (1, 0, NOW, NOW)

    async def test_a_job_enqueued_in_a_rolled_back_transaction_never_existed(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        async with session_factory() as session:
            job = queue.bind(session).enqueue("n")
            await session.rollback()
            await session.commit()
        assert await queue.claim(10) == []
        assert await queue.find(job.id) is None

    async def test_a_job_of_a_rolled_back_savepoint_never_existed(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        async with session_factory() as session:
            kept = queue.bind(session).enqueue("kept")
            savepoint = await session.begin_nested()
            queue.bind(session).enqueue("undone")
            await savepoint.rollback()
            await session.commit()
        assert [job.id for job in await queue.claim(10)] == [kept.id]

    async def test_a_job_is_not_there_before_the_commit(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        async with session_factory() as session:
            job = queue.bind(session).enqueue("n")
            assert job.attempt == 0
            await session.rollback()
        assert await queue.claim(1) == []

    async def test_a_synchronous_session_enqueues_too(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        async with session_factory() as session:
            given = await session.run_sync(lambda sync: queue.bind(sync).enqueue("n"))
            await session.commit()
        assert [job.id for job in await queue.claim(1)] == [given.id]

    async def test_a_payload_that_cannot_be_stored_is_refused(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        async with session_factory() as session:
            with pytest.raises(InvalidPayload, match=r"payload\.x"):
                queue.bind(session).enqueue("n", {"x": float("nan")})

    async def test_a_delayed_job_is_due_by_business_time(
        self, queue: JobQueue, session_factory: Sessions, clock: FixedClock
    ) -> None:
        await enqueue(queue, session_factory, delay_seconds=60)
        assert await queue.claim(1) == []
        clock.advance(timedelta(seconds=59))
        assert await queue.claim(1) == []
        assert len(await queue.claim(1, now=NOW + timedelta(seconds=60))) == 1

    async def test_jobs_are_claimed_by_priority_then_run_at_then_age(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        for name, priority, minutes in [("d", 5, 9), ("c", 0, 1), ("b", 0, 2), ("a", -1, 0), ("e", 5, 9)]:
            run_at = NOW - timedelta(minutes=minutes)
            await enqueue(queue, session_factory, name, priority=priority, run_at=run_at)
        first = await queue.claim(2)
        assert [job.name for job in first + await queue.claim(9)] == ["a", "b", "c", "d", "e"]

    async def test_a_claim_returns_no_more_than_its_limit(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        await enqueue_many(queue, session_factory, 5)
        assert [len(await queue.claim(2)) for _ in range(4)] == [2, 2, 1, 0]

    async def test_two_claimers_never_share_a_job(self, queue: JobQueue, session_factory: Sessions) -> None:
        await enqueue_many(queue, session_factory, 30)
        claims = await asyncio.gather(*(queue.claim(4) for _ in range(10)))
        ids = [job.id for claim in claims for job in claim]
        assert len(ids) == len(set(ids))
        assert len(ids) + len(await queue.claim(30)) == 30

    async def test_every_claim_has_a_lease_of_its_own(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        job = await enqueue(queue, session_factory)
        (first,) = await queue.claim(1)
        await queue.release([first])
        (second,) = await queue.claim(1)
        assert first.id == second.id == job.id
        assert None not in {first.lease_id, second.lease_id}
        assert first.lease_id != second.lease_id

    async def test_only_known_names_and_asked_queues_are_claimed(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        await enqueue(queue, session_factory, "unknown")
        await enqueue(queue, session_factory, "known", queue="slow")
        await enqueue(queue, session_factory, "known")
        assert await queue.claim(9, names=frozenset()) == []
        claimed = await queue.claim(9, names={"known", "other"}, queues=["default"])
        assert [(job.name, job.queue) for job in claimed] == [("known", "default")]
        assert {(job.name, job.queue) for job in await queue.claim(9)} == {
            ("unknown", "default"),
            ("known", "slow"),
        }

    async def test_finishing_completes_a_job_for_good(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        await enqueue(queue, session_factory)
        (job,) = await queue.claim(1)
        assert await queue.finish([ended(job)]) == {job.id}
        stored = await queue.find(job.id)
        assert stored is not None
        assert (stored.state, stored.finished_at, stored.job.lease_id) == (JobState.COMPLETED, NOW, None)
        assert await queue.finish([ended(job)]) == set()
        assert await queue.claim(1, now=NOW + timedelta(days=999)) == []

    @pytest.mark.parametrize(
        "write",
        [
            lambda queue, job: queue.finish([ended(job)]),
            lambda queue, job: queue.finish([ended(job, Retry(timedelta(0)))]),
            lambda queue, job: queue.extend([job], lease_seconds=900),
            lambda queue, job: queue.release([job]),
        ],
        ids=["finish", "retry", "extend", "release"],
    )
    async def test_a_stale_lease_changes_nothing(
        self, queue: JobQueue, session_factory: Sessions, write: Callable[[JobQueue, Job], Any]
    ) -> None:
        await enqueue(queue, session_factory)
        (stale,) = await queue.claim(1, lease_seconds=EXPIRED)
        await queue.rescue()
        (current,) = await queue.claim(1, lease_seconds=EXPIRED)
        before = await queue.find(stale.id)
        assert await write(queue, stale) == set()
        after = await queue.find(stale.id)
        assert before is not None
        assert after is not None
        assert (after.state, after.job) == (before.state, before.job) == (JobState.RUNNING, before.job)
        assert (await queue.rescue()).available == 1, "the stale worker must not have extended the lease"
        assert current.attempt == 2

    async def test_an_extended_lease_is_not_rescued(self, queue: JobQueue, session_factory: Sessions) -> None:
        await enqueue(queue, session_factory)
        (job,) = await queue.claim(1, lease_seconds=EXPIRED)
        assert await queue.extend([job], lease_seconds=60) == {job.id}
        assert await queue.rescue() == (0, 0)

    async def test_a_lease_that_has_not_expired_is_not_rescued(
        self, queue: JobQueue, session_factory: Sessions, clock: FixedClock
    ) -> None:
        await enqueue(queue, session_factory)
        await queue.claim(1, lease_seconds=60)
        clock.advance(timedelta(days=1))
        assert await queue.rescue() == (0, 0), "business time must not end a lease"

    async def test_a_rescued_job_runs_again_and_the_attempt_stays_counted(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        await enqueue(queue, session_factory)
        await queue.claim(1, lease_seconds=EXPIRED)
        assert await queue.rescue() == (1, 0)
        (again,) = await queue.claim(1)
        assert (again.attempt, again.rescues) == (2, 1)
        assert "lease expired" in (again.last_error or "")

    async def test_a_job_whose_last_attempt_died_is_discarded(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        job = await enqueue(queue, session_factory, max_attempts=2)
        for rescued in [(1, 0), (0, 1)]:
            await queue.claim(1, lease_seconds=EXPIRED)
            assert await queue.rescue() == rescued
        stored = await queue.find(job.id)
        assert stored is not None
        assert (stored.state, stored.finished_at) == (JobState.DISCARDED, NOW)

    async def test_a_rescued_job_is_claimed_alone(self, queue: JobQueue, session_factory: Sessions) -> None:
        (killer, second, *_) = await enqueue_many(queue, session_factory, 4)
        await queue.claim(2, lease_seconds=EXPIRED)
        await queue.rescue()
        assert [[job.id for job in await queue.claim(9)] for _ in range(2)] == [[killer.id], [second.id]]
        assert len(await queue.claim(9)) == 2

    async def test_a_rescued_job_is_passed_over_until_it_is_next(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        rescued = await enqueue(queue, session_factory, priority=5)
        await queue.claim(1, lease_seconds=EXPIRED)
        await queue.rescue()
        fresh = await enqueue(queue, session_factory)
        assert [job.id for job in await queue.claim(9)] == [fresh.id]
        assert [job.id for job in await queue.claim(9)] == [rescued.id]

    async def test_a_failed_job_is_retried_after_its_delay(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        await enqueue(queue, session_factory)
        (job,) = await queue.claim(1)
        await queue.finish([ended(job, ValueError("bad"))])
        assert await queue.claim(1) == []
        (again,) = await queue.claim(1, now=NOW + timedelta(seconds=2))
        assert (again.attempt, again.last_error) == (2, "ValueError: bad")

    async def test_a_job_without_attempts_left_is_discarded(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        await enqueue(queue, session_factory, max_attempts=1)
        (job,) = await queue.claim(1)
        await queue.finish([ended(job, ValueError("bad"))])
        assert await state_of(queue, job) is JobState.DISCARDED

    async def test_a_snoozed_job_waits_and_gets_its_attempt_back(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        await enqueue(queue, session_factory, max_attempts=1)
        (job,) = await queue.claim(1)
        await queue.finish([ended(job, Snooze(timedelta(minutes=1)))])
        assert await queue.claim(1) == []
        (again,) = await queue.claim(1, now=NOW + timedelta(minutes=1))
        assert again.attempt == 1

    async def test_a_released_job_gets_its_attempt_back_at_once(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        await enqueue(queue, session_factory)
        (job,) = await queue.claim(1)
        assert await queue.release([job]) == {job.id}
        (again,) = await queue.claim(1)
        assert (again.attempt, again.rescues) == (1, 0)

    async def test_pruning_deletes_only_what_finished_before(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        await enqueue_many(queue, session_factory, 5)
        jobs = await queue.claim(5)
        old = NOW - timedelta(days=2)
        await queue.finish([ended(job, now=old) for job in jobs[:3]] + [ended(jobs[3])])
        before = NOW - timedelta(days=1)
        assert await queue.prune(finished_before=before, states=[JobState.DISCARDED]) == 0
        assert [await queue.prune(finished_before=before, limit=2) for _ in range(3)] == [2, 1, 0]
        assert [await state_of(queue, job) for job in jobs[3:]] == [JobState.COMPLETED, JobState.RUNNING]

    async def test_a_handler_that_changes_its_payload_changes_no_later_attempt(
        self, queue: JobQueue, session_factory: Sessions
    ) -> None:
        await enqueue(queue, session_factory, payload={"list": [1]})
        (job,) = await queue.claim(1)
        job.payload["list"].append(2)
        await queue.release([job])
        (again,) = await queue.claim(1)
        assert again.payload == {"list": [1]}
