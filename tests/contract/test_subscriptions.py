"""Subscriptions: local midnights, no overlap that bills twice, a whole customer base at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.models import Tenant
from svc_infra.billing.subscriptions import NewSubscription, list_subscriptions, subscribe, subscribe_many
from svc_infra.exceptions import InvalidSubscription, NotFound

Sessions = async_sessionmaker[AsyncSession]

NOW = datetime(2025, 1, 1, tzinfo=UTC)
FEBRUARY = datetime(2025, 2, 1, tzinfo=UTC)
MARCH = datetime(2025, 3, 1, tzinfo=UTC)

_METERED = '[[prices]]\nkey = "{0}"\nplan = "{0}"\ncurrency = "{1}"\nmetric = "{2}"\nunit_amount = "1"\n'
CATALOG = (
    '[[plans]]\nkey = "small"\ndefault = true\n[[plans]]\nkey = "large"\n[[plans]]\nkey = "storage"\n'
    + _METERED.format("small", "usd", "calls")
    + _METERED.format("large", "usd", "calls")
    + _METERED.format("storage", "usd", "bytes")
)


@pytest.fixture(autouse=True)
async def _catalog(session_factory: Sessions) -> None:
    async with session_factory() as session, session.begin():
        await session.run_sync(apply_catalog, parse_catalog(CATALOG), now=NOW)


async def add(session_factory: Sessions, plan_key: str, effective_at: datetime = NOW, **more: Any) -> str:
    async with session_factory() as session, session.begin():
        wanted = {"tenant_id": "t1", "plan_key": plan_key, "effective_at": effective_at, "now": NOW, **more}
        return await session.run_sync(subscribe, **wanted)


async def test_a_subscription_is_stored_and_listed_with_its_plan(session_factory: Sessions) -> None:
    subscription_id = await add(session_factory, "small", ended_at=MARCH)
    async with session_factory() as session:
        listed = await session.run_sync(list_subscriptions, tenant_id="t1")
    assert listed == [(subscription_id, "t1", "small", NOW, MARCH, 1, None, "calendar", NOW, None)]


async def test_a_plan_may_follow_another_from_the_instant_it_ends(session_factory: Sessions) -> None:
    await add(session_factory, "small", ended_at=FEBRUARY)
    await add(session_factory, "large", FEBRUARY)
    await add(session_factory, "storage")


@pytest.mark.parametrize("plan_key", ["small", "large"])
async def test_overlapping_plans_of_one_metric_are_refused(session_factory: Sessions, plan_key: str) -> None:
    await add(session_factory, "small", FEBRUARY)
    with pytest.raises(InvalidSubscription, match="end that subscription first"):
        await add(session_factory, plan_key, NOW)
    await add(session_factory, plan_key, NOW, ended_at=FEBRUARY)


async def test_only_midnights_of_the_tenants_zone_are_accepted(session_factory: Sessions) -> None:
    async with session_factory() as session, session.begin():
        session.add(_zurich("t1"))
    with pytest.raises(
        InvalidSubscription, match=r"2025-01-31T23:00:00\+00:00 and 2025-02-01T23:00:00\+00:00"
    ):
        await add(session_factory, "small", FEBRUARY)
    await add(session_factory, "small", datetime(2025, 1, 31, 23, tzinfo=UTC))


async def test_an_unknown_plan_and_an_inverted_or_naive_period_are_refused(session_factory: Sessions) -> None:
    with pytest.raises(NotFound, match="'gold'"):
        await add(session_factory, "gold")
    with pytest.raises(InvalidSubscription, match="before it starts"):
        await add(session_factory, "small", FEBRUARY, ended_at=NOW)
    with pytest.raises(InvalidSubscription, match="no offset"):
        await add(session_factory, "small", NOW.replace(tzinfo=None))


async def test_of_many_at_once_for_one_tenant_one_wins(session_factory: Sessions) -> None:
    attempts = (add(session_factory, plan) for plan in ["small", "large"] * 4)
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(isinstance(result, str) for result in results) == 1
    assert sum(isinstance(result, InvalidSubscription) for result in results) == 7


async def test_a_batch_is_stored_whole_or_not_at_all(session_factory: Sessions) -> None:
    batch = [NewSubscription(f"t{number}", "small", NOW) for number in range(300)]
    async with session_factory() as session, session.begin():
        ids = await session.run_sync(subscribe_many, batch, now=NOW)
    assert len(set(ids)) == 300
    async with session_factory() as session:
        with pytest.raises(InvalidSubscription):
            await session.run_sync(
                subscribe_many, [NewSubscription("new", "small", NOW), *batch[-1:]], now=NOW
            )
        await session.rollback()
        assert await session.run_sync(list_subscriptions, tenant_id="new") == []
        first = await session.run_sync(list_subscriptions, limit=200)
        rest = await session.run_sync(
            list_subscriptions, after=(first[-1].tenant_id, first[-1].id), limit=200
        )
    assert sorted(row.id for row in first + rest) == sorted(ids)


def _zurich(tenant_id: str) -> Tenant:
    return Tenant(tenant_id=tenant_id, timezone="Europe/Zurich", created_at=NOW)
