"""Preview and explain: by the function that bills, keeping nothing; and every line says how it came about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.explanation import explain_invoice
from svc_infra.billing.invoicing import InvoiceRequest, generate_invoices
from svc_infra.billing.models import Invoice, Price, UsageDirtyDay
from svc_infra.billing.preview import InvoicePreview, preview_invoices
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.exceptions import NotFound, PeriodOverlap

Sessions = async_sessionmaker[AsyncSession]

START, END = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC)
NOW = datetime(2025, 1, 20, 12, tzinfo=UTC)
CATALOG = """
[[plans]]
key = "pro"
default = true
[[prices]]
key = "base"
plan = "pro"
currency = "usd"
unit_amount = "500"
recurring_interval = "month"
[[prices]]
key = "calls"
plan = "pro"
currency = "usd"
metric = "calls"
model = "graduated"
tiers = [{ up_to = "10", unit_amount = "1" }, { unit_amount = "0.5", flat_amount = "7" }]
"""


@pytest.fixture(autouse=True)
async def _used(session_factory: Sessions) -> None:
    def use(session: Any) -> None:
        apply_catalog(session, parse_catalog(CATALOG), now=START)
        subscribe_many(session, [NewSubscription("t1", "pro", START)], now=START)
        at = (START + timedelta(days=1), NOW)
        record_many(session, [NewUsage("t1", "calls", Decimal(8), each, f"{each}") for each in at], now=NOW)

    async with session_factory.begin() as session:
        await session.run_sync(use)


async def preview(sessions: Sessions, **options: Any) -> list[InvoicePreview]:
    async with sessions.begin() as session:
        return await session.run_sync(preview_invoices, "t1", now=NOW, **options)


async def invoice(sessions: Sessions) -> str:
    async with sessions.begin() as session:
        [made] = await session.run_sync(generate_invoices, [InvoiceRequest("t1", START, END, "usd")], now=END)
    assert made.invoice_id is not None
    return made.invoice_id


async def test_a_preview_is_what_billing_then_makes_and_keeps_nothing(session_factory: Sessions) -> None:
    [previewed] = await preview(session_factory)
    assert (previewed.total_amount, [line.amount for line in previewed.lines]) == (520, [500, 20])
    async with session_factory() as session:
        assert await session.scalar(select(func.count()).select_from(Invoice)) == 0
        assert await session.scalar(select(func.count()).select_from(UsageDirtyDay)) == 2
    invoice_id = await invoice(session_factory)
    async with session_factory() as session:
        made = await session.get_one(Invoice, ("t1", invoice_id))
    assert (made.total_amount, made.number) == (520, 1)


async def test_a_preview_under_another_catalog_changes_no_price(session_factory: Sessions) -> None:
    dearer = parse_catalog(CATALOG.replace('"500"', '"900"').replace('"0.5"', '"2"'))
    [previewed] = await preview(session_factory, catalog=dearer)
    assert [line.amount for line in previewed.lines] == [900, 29]
    async with session_factory() as session:
        assert await session.scalar(select(func.count()).select_from(Price)) == 2
    [as_it_is] = await preview(session_factory)
    assert as_it_is.total_amount == 520


async def test_a_month_that_was_invoiced_has_no_preview(session_factory: Sessions) -> None:
    await invoice(session_factory)
    with pytest.raises(PeriodOverlap, match="invoices explain"):
        await preview(session_factory)
    [february] = await preview(session_factory, month=(2025, 2))
    assert february.total_amount == 500


async def test_a_line_is_explained_tier_by_tier_with_its_days_and_events(session_factory: Sessions) -> None:
    invoice_id = await invoice(session_factory)
    async with session_factory() as session:
        found = await session.run_sync(explain_invoice, "t1", invoice_id)
        with pytest.raises(NotFound):
            await session.run_sync(explain_invoice, "t2", invoice_id)
    base, calls = found.lines
    assert (base.line.amount, base.days, base.events) == (500, (), 0)
    assert [(tier.quantity, tier.flat_amount, tier.amount) for tier in calls.tiers] == [
        (10, 0, 10),
        (6, 7, 10),
    ]
    assert calls.days == ((datetime(2025, 1, 2, tzinfo=UTC), 8), (datetime(2025, 1, 20, tzinfo=UTC), 8))
    assert (calls.events, calls.first_event_at, calls.last_event_at) == (2, START + timedelta(days=1), NOW)
    assert calls.terms is not None
    assert calls.terms.to_snapshot() == calls.line.price_snapshot
