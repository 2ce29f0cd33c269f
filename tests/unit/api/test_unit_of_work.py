"""Idempotency keys in the database: the answer commits with what the request did."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event, func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.api.answers import ANSWERS_KEPT_FOR
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.api.models import IdempotentAnswerRow
from svc_infra.api.upkeep import ApiUpkeep
from svc_infra.billing import UsageEvent
from svc_infra.clock import FixedClock
from svc_infra.jobs import SqlJobQueue
from svc_infra.jobs.job import JobRequest
from svc_infra.jobs.models import JobRow
from tests.unit.api.asking import ONE, TWO, WRITER, client_of

Sessions = async_sessionmaker[AsyncSession]
USAGE = {"metric": "tokens", "amount": 1, "at": "2025-01-01T00:00:00Z", "idempotency_key": "k"}
KEY = {"Idempotency-Key": "the-key"}


async def kept(sessions: Sessions) -> int:
    async with sessions() as session:
        return int(await session.scalar(select(func.count()).select_from(IdempotentAnswerRow)) or 0)


async def test_a_repeated_request_gets_the_same_bytes_and_does_nothing(
    app: FastAPI, session_factory: Sessions
) -> None:
    async with client_of(app, ONE) as client:
        first = await client.post("/_billing/usage", json=USAGE, headers=KEY)
        # Had the route run again, it would have refused this: the event is not what it was.
        async with session_factory.begin() as session:
            await session.execute(update(UsageEvent).values(metadata_json='{"changed":1}'))
        again = await client.post("/_billing/usage", json=USAGE, headers=KEY)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers


async def test_the_key_with_another_request_is_refused(app: FastAPI) -> None:
    async with client_of(app, ONE) as client:
        await client.post("/_billing/usage", json=USAGE, headers=KEY)
        answer = await client.post("/_billing/usage", json=USAGE | {"amount": 2}, headers=KEY)
    assert (answer.status_code, answer.json()["type"]) == (
        422,
        "urn:svc-infra:problem:idempotency-key-reused",
    )


async def test_a_key_belongs_to_its_caller(app: FastAPI, session_factory: Sessions) -> None:
    async with client_of(app) as client:
        answers = [
            await client.post("/_billing/usage", json=USAGE, headers={**KEY, **who})
            for who in (ONE, TWO, WRITER)
        ]
    assert [answer.headers.get("Idempotency-Replayed") for answer in answers] == [None] * 3
    assert await kept(session_factory) == 3


async def test_a_refused_request_keeps_nothing_and_may_be_sent_again(
    app: FastAPI, session_factory: Sessions
) -> None:
    async with client_of(app, ONE) as client:
        assert (await client.post("/_billing/usage", json={}, headers=KEY)).status_code == 422
        assert await kept(session_factory) == 0
        assert (await client.post("/_billing/usage", json=USAGE, headers=KEY)).status_code == 202


async def test_an_answer_whose_commit_failed_is_not_kept(
    app: FastAPI, engine: AsyncEngine, session_factory: Sessions
) -> None:
    def fail(_: Any) -> None:
        raise ConnectionResetError("the database went away in COMMIT")

    async with client_of(app, ONE) as client:
        event.listen(engine.sync_engine, "commit", fail)
        assert (await client.post("/_billing/usage", json=USAGE, headers=KEY)).status_code == 503
        event.remove(engine.sync_engine, "commit", fail)
        assert await kept(session_factory) == 0


@pytest.mark.postgres_only
async def test_while_the_first_is_running_the_second_is_told_so(
    app: FastAPI, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()
    commit = AsyncSession.commit

    async def slow_commit(self: AsyncSession) -> None:
        if not entered.is_set():
            entered.set()
            await go_on.wait()
        await commit(self)

    monkeypatch.setattr(AsyncSession, "commit", slow_commit)
    async with client_of(app, ONE) as client:
        first = asyncio.create_task(client.post("/_billing/usage", json=USAGE, headers=KEY))
        await entered.wait()
        second = await client.post("/_billing/usage", json=USAGE, headers=KEY)
        assert (second.status_code, second.headers["Retry-After"]) == (409, "1")
        go_on.set()
        assert (await first).status_code == 202
        third = await client.post("/_billing/usage", json=USAGE, headers=KEY)
    assert third.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("keys", [[("Idempotency-Key", "")], [("Idempotency-Key", "a")] * 2])
async def test_a_key_that_is_none_is_refused(app: FastAPI, keys: list[tuple[str, str]]) -> None:
    async with client_of(app, ONE) as client:
        headers = [*client.headers.items(), *keys]
        answer = await client.post("/_billing/usage", json=USAGE, headers=headers)
    assert answer.status_code == 400


async def test_a_worker_prunes_old_answers(
    app: FastAPI, clock: FixedClock, session_factory: Sessions
) -> None:
    async with client_of(app, ONE) as client:
        await client.post("/_billing/usage", json=USAGE, headers=KEY)
    for later, left in ((timedelta(), 1), (timedelta(seconds=1), 0)):
        upkeep = ApiUpkeep(session_factory, FixedClock(clock.now() + ANSWERS_KEPT_FOR + later))
        await upkeep.prune()
        assert await kept(session_factory) == left


async def test_a_body_that_is_too_long_is_refused_as_it_comes(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svc_infra.api.fastapi.unit_of_work.MAX_BODY_BYTES", 1_000)

    async def endless() -> Any:
        while True:
            yield b"x" * 600

    async with client_of(app, ONE) as client:
        answer = await client.post("/_billing/usage", content=endless())
    assert answer.status_code == 413


async def test_a_trace_goes_through_the_answer_into_the_jobs_that_the_request_enqueues(
    app: FastAPI, session_factory: Sessions
) -> None:
    queue = SqlJobQueue(session_factory)

    async def enqueue(session: UnitSession) -> dict[str, str]:
        job = queue.bind(session).enqueue("shop.work")
        await queue.enqueue_many(session, [JobRequest("shop.more")])
        return {"id": job.id}

    app.router.routes.append(UnitOfWorkRoute("/enqueue", enqueue, methods=["POST"]))
    theirs = f"00-{'ab' * 16}-{'cd' * 8}-01"
    async with client_of(app, ONE) as client:
        answers = [
            await client.post("/enqueue", headers={"traceparent": sent} if sent else {})
            for sent in (theirs, "garbage", None)
        ]
    traces = [answer.headers["traceparent"] for answer in answers]
    assert traces[0].startswith(f"00-{'ab' * 16}-")
    assert traces[0].endswith("-01")
    assert "cd" * 8 not in traces[0]  # this request is a step of its own
    assert len({trace.split("-")[1] for trace in traces}) == 3
    async with session_factory() as session:
        kept = await session.scalars(select(JobRow.trace_context).order_by(JobRow.created_at, JobRow.id))
    assert sorted(kept) == sorted([*traces, *traces])
