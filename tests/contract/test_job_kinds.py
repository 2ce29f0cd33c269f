"""Kinds of jobs: defaults, payload models with a version, and what a job carries along."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidPayload, InvalidSettings
from svc_infra.jobs import Handlers, Job, JobKind, JobRequest, JobState, RetryPolicy, SqlJobQueue, Worker
from svc_infra.jobs.easy import easy_jobs
from tests.contract.queue_contract import NOW, Sessions, clock, state_of

__all__ = ["clock"]  # a fixture of the queue contract


class Shipment(BaseModel):
    order_id: str
    weight: Decimal = Decimal(1)


SHIP = JobKind("ship", Shipment, queue="parcels", priority=4, max_attempts=7)
NEWER_SHIP = JobKind("ship", Shipment, version=2)


@pytest.fixture(params=["memory", "durable"])
def queue(request: pytest.FixtureRequest, session_factory: Sessions, clock: FixedClock) -> Any:
    return easy_jobs(session_factory if request.param == "durable" else None, clock=clock)[0]


async def enqueue(queue: Any, sessions: Sessions, kind: Any, payload: Any = None, **options: Any) -> Job:
    async with sessions() as session:
        job: Job = queue.bind(session).enqueue(kind, payload, **options)
        await session.commit()
    return job


async def test_a_kind_brings_its_defaults_and_an_enqueue_may_differ(
    queue: Any, session_factory: Sessions
) -> None:
    await enqueue(queue, session_factory, SHIP, Shipment(order_id="o1"))
    await enqueue(queue, session_factory, SHIP, {"order_id": "o2"}, priority=9, max_attempts=1)
    first, second = await queue.claim(9)
    assert (first.name, first.queue, first.priority, first.max_attempts) == ("ship", "parcels", 4, 7)
    assert first.payload == {"order_id": "o1", "weight": "1"}
    assert SHIP.payload_of(first) == Shipment(order_id="o1")
    assert (second.priority, second.max_attempts, second.queue) == (9, 1, "parcels")


@pytest.mark.parametrize("payload", [None, {"order": "x"}, {"order_id": "x", "weight": "heavy"}])
async def test_a_payload_that_does_not_fit_its_model_is_refused(
    queue: Any, session_factory: Sessions, payload: Any
) -> None:
    with pytest.raises(InvalidPayload, match=r"'ship': (order_id|weight)"):
        await enqueue(queue, session_factory, SHIP, payload)
    assert await queue.claim(9) == []


async def test_a_job_of_a_newer_version_is_left_for_a_newer_worker(
    queue: Any, session_factory: Sessions
) -> None:
    newer = await enqueue(queue, session_factory, NEWER_SHIP, {"order_id": "o"})
    assert await queue.claim(9, names={"ship"}) == []
    assert await queue.claim(9, names={"ship", "x"}, versions={"x": 5}) == []
    (job,) = await queue.claim(9, names={"ship"}, versions={"ship": 3})
    assert (job.id, job.payload_version) == (newer.id, 2)


async def test_a_worker_claims_up_to_the_versions_of_its_handlers(
    session_factory: Sessions, clock: FixedClock
) -> None:
    queue = SqlJobQueue(session_factory, clock=clock)
    older, newer = Handlers(session_factory), Handlers(session_factory)
    seen: list[int] = []

    async def ship(job: Job) -> None:
        seen.append(job.payload_version)

    older.add_plain(SHIP, ship)
    newer.add_plain(NEWER_SHIP, ship)
    for kind in (SHIP, NEWER_SHIP):
        await enqueue(queue, session_factory, kind, {"order_id": "o"})
    assert await Worker(queue, older).drain() == 1
    assert seen == [1]
    await enqueue(queue, session_factory, SHIP, {"order_id": "o"})
    assert await Worker(queue, newer).drain() == 2
    assert sorted(seen) == [1, 1, 2]


async def test_what_a_job_carries_along_reaches_its_handler(queue: Any, session_factory: Sessions) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = {"asked_by": "ann", "at": NOW}
    await enqueue(queue, session_factory, "n", metadata=metadata, trace_context=trace, timeout_seconds=2.5)
    (job,) = await queue.claim(1)
    assert job.metadata == {"asked_by": "ann", "at": "2026-03-01T12:00:00Z"}
    assert (job.trace_context, job.timeout_seconds, job.payload_version) == (trace, 2.5, 1)


async def test_many_at_once_carry_along_the_same(session_factory: Sessions, clock: FixedClock) -> None:
    queue = SqlJobQueue(session_factory, clock=clock)
    requests = [
        SHIP.request({"order_id": "o"}, metadata={"n": 1}),
        JobRequest("plain"),
        NEWER_SHIP.request({"order_id": "p"}, timeout_seconds=9),
    ]
    async with session_factory.begin() as session:
        ids = await queue.enqueue_many(session, requests)
    jobs = {job.id: job for job in await queue.claim(9)}
    first, plain, newer = (jobs[job_id] for job_id in ids)
    assert (first.metadata, plain.metadata, newer.metadata) == ({"n": 1}, None, None)
    assert (plain.timeout_seconds, newer.timeout_seconds, newer.payload_version) == (None, 9, 2)


async def test_the_timeout_and_policy_of_a_kind_hold_and_a_job_may_bring_its_own_timeout(
    session_factory: Sessions, clock: FixedClock
) -> None:
    queue, handlers = SqlJobQueue(session_factory, clock=clock), Handlers(session_factory, clock=clock)
    slow = JobKind("slow", timeout_seconds=0.05, policy=RetryPolicy(max_attempts=1))

    async def hang(job: Job, session: AsyncSession) -> None:
        await asyncio.Event().wait()

    handlers.add(slow, hang)
    handlers.add("other", hang)
    jobs = [
        await enqueue(queue, session_factory, slow),
        await enqueue(queue, session_factory, "other", timeout_seconds=0.05),
    ]
    await Worker(queue, handlers, clock=clock).drain()
    assert [await state_of(queue, job) for job in jobs] == [JobState.DISCARDED, JobState.AVAILABLE]
    assert "0.05 s" in ((await queue.find(jobs[1].id)).job.last_error or "")  # type: ignore[union-attr]  # it is stored
    assert await queue.claim(1, now=NOW + timedelta(hours=1)) != []


@pytest.mark.parametrize(
    "options",
    [{"payload_version": 0}, {"timeout_seconds": 0}, {"trace_context": ""}, {"metadata": {"x": object}}],
)
def test_what_cannot_be_stored_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidPayload):
        JobRequest("n", **options)


def test_a_kind_with_a_wrong_number_is_refused() -> None:
    for options in ({"version": 0}, {"timeout_seconds": 0}):
        with pytest.raises(InvalidSettings, match="must be positive"):
            JobKind("n", **options)
