"""Usage over HTTP: what is recorded, what is refused, and whose it is."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.billing import BillingService, UsageEvent
from svc_infra.clock import FixedClock
from tests.unit.api.asking import ONE, READER, TWO, WRITER, client_of

Sessions = async_sessionmaker[AsyncSession]

AT = "2025-01-01T09:30:00+01:00"
USAGE = {"metric": "tokens", "amount": 42, "at": AT, "idempotency_key": "k", "metadata": {"model": "gpt"}}


async def events(sessions: Sessions) -> list[UsageEvent]:
    async with sessions() as session:
        return list(await session.scalars(select(UsageEvent).order_by(UsageEvent.id)))


async def test_usage_is_recorded_for_the_caller_s_tenant(app: FastAPI, session_factory: Sessions) -> None:
    async with client_of(app, TWO) as client:
        answer = await client.post("/_billing/usage", json=USAGE)
    [recorded] = await events(session_factory)
    assert (answer.status_code, answer.json()) == (202, {"id": recorded.id})
    assert (recorded.tenant_id, recorded.metric, recorded.idempotency_key) == ("t2", "tokens", "k")
    assert (recorded.amount, recorded.at_ts) == (Decimal(42), datetime(2025, 1, 1, 8, 30, tzinfo=UTC))
    assert recorded.metadata_json == '{"model":"gpt"}'


@pytest.mark.parametrize("same", [{}, {"amount": "42.000"}, {"at": "2025-01-01T08:30:00Z"}])
async def test_a_repetition_answers_with_the_first_id(
    app: FastAPI, session_factory: Sessions, same: dict[str, Any]
) -> None:
    async with client_of(app, ONE) as client:
        first = await client.post("/_billing/usage", json=USAGE)
        again = await client.post("/_billing/usage", json=USAGE | same)
    assert (again.status_code, again.json()) == (202, first.json())
    assert len(await events(session_factory)) == 1


@pytest.mark.parametrize("other", [{"amount": 43}, {"at": "2025-01-01T08:30:01Z"}, {"metadata": {}}])
async def test_a_key_that_is_used_for_another_payload_is_a_conflict(
    app: FastAPI, session_factory: Sessions, other: dict[str, Any]
) -> None:
    async with client_of(app, ONE) as client:
        await client.post("/_billing/usage", json=USAGE)
        answer = await client.post("/_billing/usage", json=USAGE | other)
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:svc-infra:problem:idempotency-conflict"
    [recorded] = await events(session_factory)
    assert recorded.amount == 42


async def test_without_an_instant_it_happened_now_and_a_later_repetition_is_the_same_event(
    app: FastAPI, clock: FixedClock, session_factory: Sessions
) -> None:
    usage = {"metric": "tokens", "amount": "0.5", "idempotency_key": "k"}
    async with client_of(app, ONE) as client:
        first = await client.post("/_billing/usage", json=usage)
        noon = clock.now()
        clock.advance(timedelta(seconds=3))
        again = await client.post("/_billing/usage", json=usage)
        other = await client.post("/_billing/usage", json=usage | {"amount": 1})
    assert (again.status_code, again.json()) == (202, first.json())
    assert other.status_code == 409
    [recorded] = await events(session_factory)
    assert recorded.at_ts == noon


async def test_requests_at_once_with_one_key_record_one_event(
    app: FastAPI, session_factory: Sessions
) -> None:
    async with client_of(app, ONE) as client:
        answers = await asyncio.gather(*(client.post("/_billing/usage", json=USAGE) for _ in range(8)))
    [recorded] = await events(session_factory)
    assert [(answer.status_code, answer.json()) for answer in answers] == [(202, {"id": recorded.id})] * 8


async def test_nothing_is_accepted_that_was_not_committed(
    app: FastAPI, engine: AsyncEngine, session_factory: Sessions
) -> None:
    def fail(_: Any) -> None:
        raise ConnectionResetError("the database went away in COMMIT")

    async with client_of(app, ONE) as client:
        event.listen(engine.sync_engine, "commit", fail)
        answer = await client.post("/_billing/usage", json=USAGE)
        event.remove(engine.sync_engine, "commit", fail)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert await events(session_factory) == []
        answer = await client.post("/_billing/usage", json=USAGE)
    assert [one.id for one in await events(session_factory)] == [answer.json()["id"]]


WRONG = [
    '{"amount": 1.5}',
    '{"amount": NaN}',
    '{"amount": Infinity}',
    '{"amount": 1e400}',
    '{"amount": true}',
    '{"amount": null}',
    '{"amount": []}',
    '{"amount": -1}',
    '{"amount": "NaN"}',
    '{"amount": "1_000"}',
    '{"amount": "1e400"}',
    '{"amount": ' + "9" * 5000 + "}",
    '{"amount": "0.0000000000001"}',
    '{"metric": ""}',
    '{"metric": NaN}',
    '{"metric": "a\\u0000b"}',
    '{"metric": "\\ud800"}',
    '{"at": "2025-01-01T00:00:00"}',
    '{"at": "2025-01-01"}',
    '{"at": "1735689600"}',
    '{"at": 1735689600}',
    '{"at": "9999-12-31T23:00:00-05:00"}',
    '{"idempotency_key": ""}',
    '{"idempotency_key": "\\u0000"}',
    '{"idempotency_key": "' + "k" * 256 + '"}',
    '{"metadata": [1]}',
    '{"metadata": {"a": NaN}}',
    '{"metadata": {"a": "\\ud800"}}',
    '{"metadata": {"\\u0000": 1}}',
    '{"metadata": {"a": ' + "[" * 100 + "]" * 100 + "}}",
    '{"metadata": {"a": "' + "x" * 300_000 + '"}}',
    '{"tenant_id": "t2"}',
    '{"\\ud800": NaN}',
]


async def test_a_wrong_event_is_refused_and_nothing_written(app: FastAPI, session_factory: Sessions) -> None:
    let_in: dict[str, int] = {}
    async with client_of(app, ONE) as client:
        for wrong in WRONG:
            # Merged as text, because half of these are not JSON that Python would write.
            body = json.dumps(USAGE)[:-1] + ", " + wrong[1:]
            answer = await client.post("/_billing/usage", content=body.encode())
            is_problem = answer.headers["Content-Type"] == "application/problem+json"
            if not 400 <= answer.status_code < 500 or not is_problem:
                let_in[wrong[:40]] = answer.status_code
    assert let_in == {}
    assert await events(session_factory) == []


@pytest.mark.sqlite_only
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 20_000, b'{"metric": "\xff"}'])
async def test_a_body_that_is_no_object_is_refused(app: FastAPI, body: bytes) -> None:
    async with client_of(app, ONE) as client:
        answer = await client.post("/_billing/usage", content=body)
    assert answer.status_code in (400, 422)
    assert answer.headers["Content-Type"] == "application/problem+json"


async def record_days(sessions: Sessions, tenant_id: str, amounts: list[str]) -> None:
    def record(session: Session) -> None:
        billing = BillingService(session, tenant_id)
        for day, amount in enumerate(amounts, start=1):
            at = datetime(2025, 1, day, 12, tzinfo=UTC)
            billing.record_usage("tokens", amount, at, f"{day}")
            billing.aggregate_daily("tokens", at)

    async with sessions.begin() as session:
        await session.run_sync(record)


async def test_daily_totals_are_listed_exactly(app: FastAPI, session_factory: Sessions) -> None:
    await record_days(session_factory, "t1", ["1.50", "12345678901234567890123456.000000000001"])
    async with client_of(app, READER) as client:
        answer = await client.get("/_billing/usage", params={"metric": "tokens"})
    day = {"granularity": "day", "metric": "tokens"}
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "items": [
                day | {"period_start": "2025-01-01T00:00:00Z", "total": "1.5"},
                day
                | {
                    "period_start": "2025-01-02T00:00:00Z",
                    "total": "12345678901234567890123456.000000000001",
                },
            ],
            "next_cursor": None,
        },
    )


async def test_pages_hold_every_total_once(app: FastAPI, session_factory: Sessions) -> None:
    await record_days(session_factory, "t1", ["1", "2", "3", "4", "5"])
    assert await pages(app, limit=1) == [["1"], ["2"], ["3"], ["4"], ["5"]]
    assert await pages(app, limit=2) == [["1", "2"], ["3", "4"], ["5"]]
    assert await pages(app, limit=5) == await pages(app, limit=6) == [["1", "2", "3", "4", "5"]]


async def pages(app: FastAPI, *, limit: int) -> list[list[str]]:
    found: list[list[str]] = []
    query: dict[str, Any] = {"metric": "tokens", "limit": limit}
    async with client_of(app, ONE) as client:
        while True:
            page = (await client.get("/_billing/usage", params=query)).json()
            found.append([item["total"] for item in page["items"]])
            if page["next_cursor"] is None:
                return found
            query["cursor"] = page["next_cursor"]


async def test_a_tenant_sees_only_its_own_totals(app: FastAPI, session_factory: Sessions) -> None:
    await record_days(session_factory, "t2", ["7"])
    async with client_of(app) as client:
        mine = await client.get("/_billing/usage?metric=tokens", headers=ONE)
        theirs = await client.get("/_billing/usage?metric=tokens", headers=TWO)
    assert mine.json() == {"items": [], "next_cursor": None}
    assert [item["total"] for item in theirs.json()["items"]] == ["7"]


WRONG_QUERIES = [
    "",
    "metric=",
    "metric=%00",
    "metric=tokens&limit=0",
    "metric=tokens&limit=1001",
    "metric=tokens&limit=NaN",
    "metric=tokens&cursor=x",
    "metric=tokens&cursor=%ff",
    "metric=tokens&cursor=MjAyNS0wMS0wMQ%3D%3D",
]


async def test_a_wrong_query_is_refused(app: FastAPI) -> None:
    async with client_of(app, ONE) as client:
        answers = {query: await client.get(f"/_billing/usage?{query}") for query in WRONG_QUERIES}
    assert {query: answer.status_code for query, answer in answers.items() if answer.status_code != 422} == {}
    assert {answer.headers["Content-Type"] for answer in answers.values()} == {"application/problem+json"}


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer unknown"}, {"X-Tenant-Id": "t1"}])
async def test_who_is_nobody_is_refused(
    app: FastAPI, session_factory: Sessions, headers: dict[str, str]
) -> None:
    async with client_of(app, headers) as client:
        answers = [
            await client.post("/_billing/usage", json=USAGE),
            await client.get("/_billing/usage?metric=tokens"),
        ]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].headers["WWW-Authenticate"] == "Bearer"
    assert await events(session_factory) == []


async def test_reading_and_writing_need_their_scopes(app: FastAPI, session_factory: Sessions) -> None:
    async with client_of(app) as client:
        assert (await client.post("/_billing/usage", json=USAGE, headers=READER)).status_code == 403
        assert await events(session_factory) == []
        assert (await client.post("/_billing/usage", json=USAGE, headers=WRITER)).status_code == 202
        assert (await client.get("/_billing/usage?metric=tokens", headers=WRITER)).status_code == 403
