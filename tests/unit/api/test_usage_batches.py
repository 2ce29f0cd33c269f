"""Many events over HTTP: in a batch or a stream, each with what became of it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.api.fastapi.billing.setup import add_billing
from svc_infra.billing import UsageEvent
from svc_infra.billing.usage_limits import UsageLimits
from svc_infra.billing.usage_rejections import list_rejections
from svc_infra.clock import FixedClock
from tests.unit.api.asking import ONE, READER, client_of, principal_of

Sessions = async_sessionmaker[AsyncSession]
AT = "2025-01-01T00:00:00Z"


def usage(key: str, **other: Any) -> dict[str, Any]:
    return {"metric": "tokens", "amount": 1, "at": AT, "idempotency_key": key, **other}


async def recorded(sessions: Sessions) -> int:
    async with sessions() as session:
        return int(await session.scalar(select(func.count()).select_from(UsageEvent)) or 0)


async def test_a_batch_says_of_each_event_what_became_of_it(app: FastAPI, session_factory: Sessions) -> None:
    async with client_of(app, ONE) as client:
        first = (await client.post("/_billing/usage", json=usage("a"))).json()["id"]
        batch = [usage("a"), usage("a", amount=2), usage("b", amount=1.5), usage("c"), "x", usage("c")]
        answer = await client.post("/_billing/usage/batch", json=batch)
    assert answer.status_code == 200
    body = answer.json()
    assert [result["outcome"] for result in body["results"]] == [
        *("duplicate", "conflict", "invalid", "inserted", "invalid", "duplicate")
    ]
    assert [result["index"] for result in body["results"]] == list(range(6))
    assert body["results"][0]["id"] == first
    assert body["results"][3]["id"] == body["results"][5]["id"]
    assert "amount" in body["results"][2]["detail"]
    assert (body["inserted"], body["duplicate"], body["conflict"], body["invalid"]) == (1, 2, 1, 2)
    assert await recorded(session_factory) == 2


@pytest.mark.parametrize("batch", [[usage(str(i)) for i in range(1_001)], {"events": []}, "x", None])
async def test_what_is_no_batch_writes_nothing(app: FastAPI, session_factory: Sessions, batch: Any) -> None:
    async with client_of(app, ONE) as client:
        answer = await client.post("/_billing/usage/batch", json=batch)
    assert answer.status_code == 422
    assert await recorded(session_factory) == 0


async def test_a_batch_without_instants_may_be_repeated(app: FastAPI, clock: Any) -> None:
    batch = [{"metric": "tokens", "amount": 1, "idempotency_key": key} for key in "ab"]
    async with client_of(app, ONE) as client:
        await client.post("/_billing/usage/batch", json=batch)
        clock.advance(timedelta(seconds=5))
        again = (await client.post("/_billing/usage/batch", json=batch)).json()
    assert again["duplicate"] == 2


async def test_a_stream_is_recorded_line_by_line_and_may_be_repeated(
    app: FastAPI, session_factory: Sessions
) -> None:
    events = [usage(str(index)) for index in range(2_500)]
    lines = [json.dumps(event) for event in events]
    lines[1_200] = "{no json"
    lines.insert(7, "")
    text = "\n".join(lines).encode()

    async def pieces() -> Any:
        for start in range(0, len(text), 997):
            yield text[start : start + 997]

    async with client_of(app, ONE) as client:
        first = (await client.post("/_billing/usage/stream", content=pieces())).json()
        again = (await client.post("/_billing/usage/stream", content=pieces())).json()
    assert {name: first[name] for name in ("lines", "inserted", "duplicate", "invalid")} == {
        **{"lines": 2_500, "inserted": 2_499, "duplicate": 0, "invalid": 1}
    }
    assert [error["index"] for error in first["errors"]] == [1_200]
    assert (again["inserted"], again["duplicate"]) == (0, 2_499)
    assert await recorded(session_factory) == 2_499


async def test_a_line_that_can_be_read_in_two_ways_is_no_event(
    app: FastAPI, session_factory: Sessions
) -> None:
    line = json.dumps(usage("a"))[:-1]
    lines = [f'{line}, "amount": 2}}', f'{line}, "metadata": {{"x": NaN}}}}', f'{line}, "metadata": 1e400}}']
    async with client_of(app, ONE) as client:
        answer = await client.post("/_billing/usage/stream", content="\n".join(lines))
    assert (answer.json()["invalid"], answer.json()["inserted"]) == (3, 0)
    assert await recorded(session_factory) == 0


async def test_a_line_without_end_is_refused(app: FastAPI, session_factory: Sessions) -> None:
    async def endless() -> Any:
        while True:
            yield b"x" * 65_536

    async with client_of(app, ONE) as client:
        answer = await client.post("/_billing/usage/stream", content=endless())
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        for path in ("batch", "stream"):
            refused = await client.post(f"/_billing/usage/{path}", headers=READER, json=[])
            assert refused.status_code == 403
    assert await recorded(session_factory) == 0


async def test_what_lies_outside_the_limits_is_refused_and_kept(
    session_factory: Sessions, clock: FixedClock
) -> None:
    app = FastAPI()
    limits = UsageLimits(future=timedelta(hours=1))
    add_billing(app, session_factory=session_factory, principal=principal_of, clock=clock, limits=limits)
    late = usage("late", at="2025-01-01T13:00:01Z")
    async with client_of(app, ONE) as client:
        answer = await client.post("/_billing/usage/batch", json=[late, usage("a", amount=-1), usage("b")])
        single = await client.post("/_billing/usage", json=late)
        stream = await client.post("/_billing/usage/stream", content=json.dumps(late))
    results = answer.json()["results"]
    assert [result["outcome"] for result in results] == ["invalid", "invalid", "inserted"]
    assert "in the future" in results[0]["detail"]
    assert (single.status_code, stream.json()["invalid"]) == (422, 1)
    assert await recorded(session_factory) == 1
    async with session_factory() as session:
        kept = await session.run_sync(list_rejections)
    assert sorted(row.idempotency_key for row in kept) == ["a", "late", "late", "late"]
