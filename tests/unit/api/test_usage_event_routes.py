"""Recorded usage over HTTP: lists of it, what became of an event, and correcting it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.billing import BillingService
from svc_infra.billing.usage_limits import UsageLimits
from tests.unit.api.asking import ONE, client_of

Sessions = async_sessionmaker[AsyncSession]
START = datetime(2025, 1, 1, tzinfo=UTC)
EVENTS = "/_billing/usage/events"


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app, ONE) as client:
        yield client


async def record(sessions: Sessions, tenant_id: str, metric: str, hours: list[int]) -> list[str]:
    def write(session: Session) -> list[str]:
        billing = BillingService(session, tenant_id)
        ids = [
            billing.record_usage(
                metric, f"{hour}.5", START + timedelta(hours=hour), f"{index}", {"hour": hour}
            )
            for index, hour in enumerate(hours)
        ]
        for day in {hour // 24 for hour in hours}:
            billing.aggregate_daily(metric, START + timedelta(days=day))
        return ids

    async with sessions.begin() as session:
        return await session.run_sync(write)


async def test_events_are_read_page_by_page_in_the_order_of_their_instants(
    client: httpx.AsyncClient, session_factory: Sessions
) -> None:
    ids = await record(session_factory, "t1", "calls", [30, 2, 2, 50])
    await record(session_factory, "t1", "other", [1])
    await record(session_factory, "t2", "calls", [3])
    seen, params = list[str](), {"metric": "calls", "limit": "1"}
    while True:
        page = (await client.get(EVENTS, params=params)).json()
        seen += [event["id"] for event in page["items"]]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    assert seen == [ids[1], ids[2], ids[0], ids[3]]
    bounds = {"since": "2025-01-02T06:00:00Z", "until": "2025-01-03T02:00:00Z"}
    [event] = (await client.get(EVENTS, params={"metric": "calls", **bounds})).json()["items"]
    assert event.pop("recorded_at")
    assert event == {
        "id": ids[0],
        "metric": "calls",
        "amount": "30.5",
        "at": "2025-01-02T06:00:00Z",
        "idempotency_key": "0",
        "metadata": {"hour": 30},
    }


async def test_totals_are_read_by_metric_and_day(
    client: httpx.AsyncClient, session_factory: Sessions
) -> None:
    await record(session_factory, "t1", "calls", [2, 30])
    await record(session_factory, "t1", "bytes", [1])
    await record(session_factory, "t2", "calls", [1])
    page = (await client.get("/_billing/aggregates?limit=2")).json()
    rest = (await client.get(f"/_billing/aggregates?limit=2&cursor={page['next_cursor']}")).json()
    totals = [(each["metric"], each["period_start"], each["total"]) for each in page["items"] + rest["items"]]
    assert totals == [
        ("bytes", "2025-01-01T00:00:00Z", "1.5"),
        ("calls", "2025-01-01T00:00:00Z", "2.5"),
        ("calls", "2025-01-02T00:00:00Z", "30.5"),
    ]
    late = await client.get("/_billing/aggregates?metric=calls&since=2025-01-02T00:00:00Z")
    assert [each["total"] for each in late.json()["items"]] == ["30.5"]


async def test_an_event_is_amended_and_voided_and_says_so(
    client: httpx.AsyncClient, session_factory: Sessions
) -> None:
    [event_id] = await record(session_factory, "t1", "calls", [2])
    path = f"{EVENTS}/{event_id}"
    amended = await client.post(f"{path}/amend", json={"reason": "a wrong unit", "amount": "1.25"})
    assert amended.status_code == 200
    again = await client.post(f"{path}/amend", json={"reason": "a wrong unit", "amount": "1.25"})
    assert again.json() == amended.json()
    replacement_id = amended.json()["replacement_id"]
    trace = (await client.get(path)).json()
    assert (trace["state"], trace["day_start"], trace["lines"]) == ("amended", "2025-01-01T00:00:00Z", [])
    assert trace["correction"]["replacement_id"] == replacement_id
    assert trace["correction"]["actor"] == "tenant t1"
    late = await client.post(f"{path}/void", json={"reason": "metered twice"})
    assert (late.status_code, late.json()["type"]) == (409, "urn:svc-infra:problem:already-corrected")
    void = await client.post(f"{EVENTS}/{replacement_id}/void", json={"reason": "metered twice"})
    assert (void.status_code, void.json()["kind"]) == (200, "void")
    assert (await client.get(f"{EVENTS}/{replacement_id}")).json()["state"] == "voided"
    for wrong in ({"reason": ""}, {"reason": "  "}, {}, {"reason": "x" * 2_001}, {"reason": "a\x00b"}):
        assert (await client.post(f"{path}/void", json=wrong)).status_code == 422
    for wrong in ({"reason": "why"}, {"reason": "why", "amount": 1.5}):
        assert (await client.post(f"{path}/amend", json=wrong)).status_code == 422


async def test_what_was_refused_is_listed_with_its_reason(
    app: FastAPI, client: httpx.AsyncClient, session_factory: Sessions
) -> None:
    def refuse(session: Session) -> None:
        billing = BillingService(session, "t1", limits=UsageLimits.of(1, 60))
        for key in ("a", "b"):
            with pytest.raises(Exception, match="ago"):
                billing.record_usage("calls", 1, datetime(2020, 1, 1, tzinfo=UTC), key)

    async with session_factory.begin() as session:
        await session.run_sync(refuse)
    page = (await client.get("/_billing/usage/rejections?limit=1")).json()
    rest = (await client.get(f"/_billing/usage/rejections?limit=1&cursor={page['next_cursor']}")).json()
    assert [each["idempotency_key"] for each in page["items"] + rest["items"]] == ["a", "b"]
    assert rest["items"][0]["reason"]


async def test_what_no_calendar_or_parser_holds_is_refused(client: httpx.AsyncClient) -> None:
    for at in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        answers = [
            await client.get("/_billing/aggregates", params={"since": at}),
            await client.get(EVENTS, params={"metric": "calls", "until": at}),
            await client.post("/_billing/subscriptions", json={"plan": "any", "effective_at": at}),
            await client.post("/_billing/subscriptions", json={"plan": "any", "effective_at": at[:10]}),
        ]
        assert [answer.status_code for answer in answers] == [422] * 4
    for month in ("0000-01", "0001-01", "9999-12"):
        for path in ("/_billing/preview", "/_billing/invoices"):
            answer = await client.get(path, params={"month": month, "period": month})
            assert answer.status_code in (200, 422)
    deep = await client.post("/_billing/preview", json={"catalog": "x = " + "[" * 5_000})
    assert (deep.status_code, deep.json()["type"]) == (422, "urn:svc-infra:problem:invalid-catalog")
