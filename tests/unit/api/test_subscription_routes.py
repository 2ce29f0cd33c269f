"""Subscriptions, the catalog and entitlements over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.entitlements import reserve
from svc_infra.billing.tenants import change_settings
from svc_infra.clock import FixedClock
from tests.unit.api.asking import ONE, TWO, client_of

Sessions = async_sessionmaker[AsyncSession]
SUBSCRIPTIONS = "/_billing/subscriptions"
CATALOG = """
[[plans]]
key = "basic"
name = "Basic"
default = true
[[plans.entitlements]]
key = "reports"
limit = 10
window = "day"
alerts = [80]
[[plans.entitlements]]
key = "sso"
value = true

[[plans]]
key = "pro"
name = "Pro"
[[plans.entitlements]]
key = "reports"
limit = "unlimited"
window = "day"

[[prices]]
key = "base"
plan = "basic"
currency = "usd"
model = "fixed"
recurring_interval = "month"
unit_amount = "500.25"
"""


@pytest.fixture(autouse=True)
async def _catalog(session_factory: Sessions, clock: FixedClock) -> None:
    async with session_factory.begin() as session:
        await session.run_sync(apply_catalog, parse_catalog(CATALOG), now=clock.now(), is_retroactive=True)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app, ONE) as client:
        yield client


async def test_a_day_is_the_tenant_s_and_every_change_is_told(
    client: httpx.AsyncClient, session_factory: Sessions, clock: FixedClock
) -> None:
    async with session_factory.begin() as session:
        await session.run_sync(change_settings, "t1", timezone="Europe/Zurich", now=clock.now())
    new = {"plan": "basic", "effective_at": "2025-01-01", "quantity": 2, "trial_days": 3}
    begun = await client.post(SUBSCRIPTIONS, json=new)
    assert begun.status_code == 201
    first = begun.json()
    assert (first["effective_at"], first["trial_ends_at"]) == (
        "2024-12-31T23:00:00Z",
        "2025-01-03T23:00:00Z",
    )

    path = f"{SUBSCRIPTIONS}/{first['id']}"
    seats = await client.post(f"{path}/change", json={"quantity": 5, "at": "2025-01-10T23:00:00Z"})
    second = seats.json()
    assert (seats.status_code, second["plan"], second["quantity"]) == (200, "basic", 5)
    later = await client.post(
        f"{SUBSCRIPTIONS}/{second['id']}/change", json={"plan": "pro", "at_period_end": True}
    )
    third = later.json()
    assert (third["plan"], third["quantity"], third["effective_at"]) == ("pro", 5, "2025-01-31T23:00:00Z")
    ended = await client.post(f"{SUBSCRIPTIONS}/{third['id']}/cancel", json={"at": "2025-03-01"})
    assert ended.json()["ended_at"] == "2025-02-28T23:00:00Z"

    for subscription in (first, second, third):
        states = (await client.get(f"{SUBSCRIPTIONS}/{subscription['id']}/changes")).json()["items"]
        assert [(each["id"], each["replaces_id"]) for each in states] == [
            (first["id"], None),
            (second["id"], first["id"]),
            (third["id"], second["id"]),
        ]
    assert [each["ended_at"] for each in states] == [
        "2025-01-10T23:00:00Z",
        "2025-01-31T23:00:00Z",
        "2025-02-28T23:00:00Z",
    ]
    page = (await client.get(SUBSCRIPTIONS, params={"limit": 2})).json()
    rest = (await client.get(SUBSCRIPTIONS, params={"limit": 2, "cursor": page["next_cursor"]})).json()
    assert [*page["items"], *rest["items"]] == states


WRONG: list[tuple[dict[str, Any], int]] = [
    ({"plan": "none"}, 404),
    ({"effective_at": "2025-01-01T05:00:00Z"}, 422),
    ({"effective_at": "2025-01-01T00:00:00"}, 422),
    ({"effective_at": 1735689600}, 422),
    ({"quantity": 0}, 422),
    ({"quantity": 1.0}, 422),
    ({"quantity": "1"}, 422),
    ({"quantity": True}, 422),
    ({"quantity": 2**63}, 422),
    ({"ended_at": "2025-01-01"}, 422),
    ({"interval": "week"}, 422),
    ({"tenant_id": "t2"}, 422),
    ({"plan": "a\x00b"}, 422),
]


async def test_a_wrong_subscription_is_refused_and_nothing_written(client: httpx.AsyncClient) -> None:
    right = {"plan": "basic", "effective_at": "2025-01-01"}
    for wrong, status in WRONG:
        answer = await client.post(SUBSCRIPTIONS, json={**right, **wrong})
        assert (wrong, answer.status_code) == (wrong, status)
    assert (await client.get(SUBSCRIPTIONS)).json()["items"] == []
    assert (await client.post(SUBSCRIPTIONS, json=right)).status_code == 201
    twice = await client.post(SUBSCRIPTIONS, json=right)
    assert twice.json()["type"] == "urn:svc-infra:problem:invalid-subscription"


async def test_the_catalog_is_read_exactly(client: httpx.AsyncClient) -> None:
    basic, pro = (await client.get("/_billing/plans")).json()["items"]
    assert (basic["key"], basic["is_default"], pro["key"]) == ("basic", True, "pro")
    assert basic["entitlements"] == [
        {
            "key": "reports",
            "window": "day",
            "limit": 10,
            "is_soft": False,
            "alert_percents": [80],
            "value": None,
        },
        {
            "key": "sso",
            "window": "always",
            "limit": None,
            "is_soft": False,
            "alert_percents": [],
            "value": True,
        },
    ]
    assert (await client.get("/_billing/plans/pro")).json() == pro
    [price] = (await client.get("/_billing/prices?plan=basic&currency=USD&on=2025-01-01")).json()["items"]
    assert (price["plan"], price["ended_on"], price["terms"]["unit_amount"]) == ("basic", None, "500.25")
    assert (await client.get("/_billing/prices?plan=pro")).json()["items"] == []


async def test_entitlements_are_told_with_what_is_used(
    client: httpx.AsyncClient, session_factory: Sessions, clock: FixedClock
) -> None:
    assert (await client.get("/_billing/entitlements")).json()["items"] == []
    assert (await client.get("/_billing/entitlements/reports")).status_code == 404
    new = {"plan": "basic", "effective_at": "2025-01-01"}
    await client.post(SUBSCRIPTIONS, json=new)
    await client.post(SUBSCRIPTIONS, json=new, headers=TWO)
    async with session_factory.begin() as session:
        await session.run_sync(reserve, "t1", "reports", "2.5", now=clock.now())
    page = (await client.get("/_billing/entitlements?limit=1")).json()
    rest = (await client.get(f"/_billing/entitlements?limit=1&cursor={page['next_cursor']}")).json()
    [reports], [sso] = page["items"], rest["items"]
    assert reports == {
        "key": "reports",
        "window": "day",
        "quota": {
            "limit": 10,
            "used": "2.5",
            "is_soft": False,
            "is_used_up": False,
            "window_start": "2025-01-01T00:00:00Z",
            "window_end": "2025-01-02T00:00:00Z",
        },
        "value": None,
    }
    assert sso == {"key": "sso", "window": "always", "quota": None, "value": True}
    theirs = await client.get("/_billing/entitlements/reports", headers=TWO)
    assert theirs.json()["items"][0]["quota"]["used"] == "0"


async def test_a_quota_is_reserved_kept_and_given_back(client: httpx.AsyncClient) -> None:
    for headers in (ONE, TWO):
        await client.post(
            SUBSCRIPTIONS, json={"plan": "basic", "effective_at": "2025-01-01"}, headers=headers
        )
    path = "/_billing/reservations"
    held = await client.post(path, json={"key": "reports", "amount": 7})
    assert (held.status_code, held.json()["quota"]["used"]) == (201, "7")
    assert held.headers["RateLimit"] == '"reports";r=3;t=43200'
    refused = await client.post(path, json={"key": "reports", "amount": 4})
    assert (refused.status_code, refused.json()["type"]) == (429, "urn:svc-infra:problem:quota-exceeded")
    assert (refused.headers["Retry-After"], refused.headers["RateLimit"]) == (
        "43200",
        '"reports";r=3;t=43200',
    )
    assert (await client.post(path, json={"key": "reports", "amount": 4}, headers=TWO)).status_code == 201
    theirs = await client.post(f"{path}/{held.json()['id']}/release", headers=TWO)
    assert theirs.status_code == 404
    kept = await client.post(f"{path}/{held.json()['id']}/commit", json={"amount": "1.5"})
    assert (kept.status_code, kept.content) == (204, b"")
    late = await client.post(f"{path}/{held.json()['id']}/release")
    assert (late.status_code, late.json()["type"]) == (409, "urn:svc-infra:problem:reservation-ended")
    other = (await client.post(path, json={"key": "reports", "amount": "8.5"})).json()["id"]
    assert (await client.post(f"{path}/{other}/release")).status_code == 204
    assert (await client.get("/_billing/entitlements/reports")).json()["items"][0]["quota"]["used"] == "1.5"
    less = await client.post(f"{path}/{other}/commit", json={"amount": "-100"})
    assert (less.status_code, less.json()["type"]) == (422, "urn:svc-infra:problem:invalid-usage")
    for wrong in (
        {"amount": 0},
        {"amount": "1e30"},
        {"amount": 1.5},
        {"window": "hour"},
        {"lives_seconds": 0},
    ):
        answer = await client.post(path, json={"key": "reports", "amount": 1, **wrong})
        assert (wrong, answer.status_code) == (wrong, 422)
