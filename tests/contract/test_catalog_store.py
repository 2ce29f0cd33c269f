"""Applying a catalog: again and at once, and what it refuses."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import CatalogChanges, apply_catalog, default_plan, price_terms
from svc_infra.billing.models import SINCE_EVER, Plan, PlanEntitlement, Price
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.exceptions import InvalidCatalog

NOW = datetime(2025, 1, 1, tzinfo=UTC)

CATALOG = """
[[plans]]
key = "standard"
name = "Standard"
default = true
[[plans.entitlements]]
key = "cds"
limit = 1000
window = "month"
[[plans]]
key = "pro"
[[prices]]
key = "base"
plan = "standard"
currency = "usd"
unit_amount = "500"
recurring_interval = "month"
[[prices]]
key = "cds"
plan = "standard"
currency = "usd"
metric = "cds"
model = "graduated"
tiers = [ { up_to = "3", unit_amount = "0" }, { unit_amount = "0.000000000000000001", flat_amount = "100" } ]
"""

Sessions = async_sessionmaker[AsyncSession]


async def apply(session_factory: Sessions, text: str) -> CatalogChanges:
    async with session_factory() as session, session.begin():
        return await session.run_sync(apply_catalog, parse_catalog(text), now=NOW)


async def test_a_catalog_is_created_once_and_unchanged_when_applied_again(session_factory: Sessions) -> None:
    first = await apply(session_factory, CATALOG)
    again = await apply(session_factory, CATALOG)
    assert len(first.created) == 5
    assert (again.created, again.updated, len(again.unchanged)) == ([], [], 5)


async def test_stored_prices_are_rated_with_the_terms_of_the_file(session_factory: Sessions) -> None:
    await apply(session_factory, CATALOG)
    async with session_factory() as session:
        stored = {price.key: price_terms(price) for price in await session.scalars(select(Price))}
    assert list(stored.values()) == [price.terms for price in parse_catalog(CATALOG).prices]
    assert stored["cds"].tiers[1].unit_amount == Decimal("1E-18")


async def test_a_changed_price_is_a_new_version_and_the_old_one_stays(session_factory: Sessions) -> None:
    await apply(session_factory, CATALOG)
    changed = (
        CATALOG.replace('"500"', '"600"').replace("limit = 1000", "limit = 5").replace("Standard", "Std")
    )
    changes = await apply(session_factory, changed)
    assert changes.updated == [
        "plan standard",
        "entitlement cds per month of plan standard",
        "price base in usd of plan standard",
    ]
    async with session_factory() as session:
        assert await session.scalar(select(PlanEntitlement.limit_per_window)) == 5
        versions = select(Price).where(Price.key == "base").order_by(Price.effective_on)
        found = [(row.unit_amount, row.effective_on, row.ended_on) for row in await session.scalars(versions)]
    february = date(2025, 2, 1)
    assert found == [(500, SINCE_EVER, february), (600, february, None)]


async def test_a_change_that_has_begun_needs_to_be_called_retroactive(session_factory: Sessions) -> None:
    await apply(session_factory, CATALOG)
    dearer = parse_catalog(CATALOG.replace('"500"', '"600"'))
    async with session_factory() as session, session.begin():
        with pytest.raises(InvalidCatalog, match="choose 2025-01-02 or later, or say --retroactive"):
            await session.run_sync(apply_catalog, dearer, now=NOW, effective_on=NOW.date())
        changes = await session.run_sync(
            apply_catalog, dearer, now=NOW, effective_on=NOW.date(), is_retroactive=True
        )
    [change] = [change for change in changes.prices if change.is_change]
    assert (change.effective_on, change.is_retroactive) == (NOW.date(), True)


async def test_a_change_can_be_corrected_before_it_counts(session_factory: Sessions) -> None:
    for amount in ("500", "600", "700"):
        await apply(session_factory, CATALOG.replace('"500"', f'"{amount}"'))
    async with session_factory() as session:
        rows = (await session.scalars(select(Price).where(Price.key == "base").order_by(Price.id))).all()
    february = date(2025, 2, 1)
    assert [(row.unit_amount, row.effective_on, row.ended_on) for row in rows] == [
        (500, SINCE_EVER, february),
        (600, february, february),  # was never in force
        (700, february, None),
    ]


async def test_the_default_moves_to_another_plan_and_absent_plans_stay(session_factory: Sessions) -> None:
    await apply(session_factory, CATALOG)
    await apply(session_factory, '[[plans]]\nkey = "new"\ndefault = true\n')
    async with session_factory() as session:
        plan = await session.run_sync(default_plan)
        assert plan is not None
        assert plan.key == "new"
        assert len((await session.scalars(select(Plan))).all()) == 3


async def test_many_applies_at_once_leave_one_row_each(session_factory: Sessions) -> None:
    changes = await asyncio.gather(*(apply(session_factory, CATALOG) for _ in range(6)))
    assert sorted(len(change.created) for change in changes) == [0, 0, 0, 0, 0, 5]


async def test_a_renamed_price_that_would_bill_a_metric_twice_is_refused(session_factory: Sessions) -> None:
    await apply(session_factory, CATALOG)
    renamed = CATALOG.replace('key = "cds"\nplan', 'key = "discs"\nplan')
    with pytest.raises(InvalidCatalog, match="keeps a price 'cds'"):
        await apply(session_factory, renamed)
    assert (await apply(session_factory, CATALOG)).created == []


async def test_meters_come_from_the_file_too_and_one_with_usage_stays(session_factory: Sessions) -> None:
    meter = '[[meters]]\nmetric = "cds"\nmeter = "sum"\ndimensions = ["shop"]\n'
    assert (await apply(session_factory, meter)).created == ["meter of cds"]
    assert (await apply(session_factory, meter)).unchanged == ["meter of cds"]
    async with session_factory.begin() as session:
        await session.run_sync(record_many, [NewUsage("t", "cds", Decimal(1), NOW, "k")], now=NOW)
    changed = await apply(session_factory, meter.replace('"shop"', '"shop", "artist"'))
    assert changed.updated == ["meter of cds"]
    with pytest.raises(InvalidCatalog, match=r"catalog\.toml:2: .* is fixed"):
        await apply(session_factory, meter.replace('"sum"', '"count"'))
