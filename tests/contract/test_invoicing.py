"""Invoices: once per identity, exact, numbered without gaps, and refused where a period is in the way."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.invoices import (
    EXPORT_COLUMNS,
    export_rows,
    get_invoice,
    invoice_lines,
    list_invoices,
)
from svc_infra.billing.invoicing import InvoiceRequest, InvoiceResult, generate_invoices
from svc_infra.billing.models import Invoice, InvoiceCounter, InvoiceLine, Price, Tenant
from svc_infra.billing.periods import Period
from svc_infra.billing.subscriptions import subscribe
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.exceptions import (
    AmbiguousPrice,
    AmountTooLarge,
    InvalidCurrency,
    InvalidPeriod,
    NotFound,
    PeriodOverlap,
)

Sessions = async_sessionmaker[AsyncSession]

JANUARY, FEBRUARY, MARCH = (datetime(2025, month, 1, tzinfo=UTC) for month in (1, 2, 3))
NOW = MARCH

CATALOG = """
[[plans]]
key = "standard"
default = true
[[plans]]
key = "pro"
[[prices]]
key = "base"
plan = "standard"
currency = "usd"
unit_amount = "500"
recurring_interval = "month"
[[prices]]
key = "calls"
plan = "standard"
currency = "usd"
metric = "calls"
model = "graduated"
tiers = [
  { up_to = "3", unit_amount = "0" },
  { up_to = "20", unit_amount = "12.5" },
  { unit_amount = "9", flat_amount = "100" },
]
[[prices]]
key = "calls"
plan = "pro"
currency = "usd"
metric = "calls"
unit_amount = "100"
[[prices]]
key = "bytes"
currency = "usd"
metric = "bytes"
unit_amount = "0.5"
"""


@pytest.fixture(autouse=True)
async def _catalog(session_factory: Sessions) -> None:
    async with session_factory() as session, session.begin():
        await session.run_sync(apply_catalog, parse_catalog(CATALOG), now=JANUARY)


def january(tenant_id: str = "t1", currency: str = "usd") -> InvoiceRequest:
    return InvoiceRequest(tenant_id, JANUARY, FEBRUARY, currency)


async def invoice(session_factory: Sessions, *requests: InvoiceRequest) -> list[InvoiceResult]:
    async with session_factory() as session, session.begin():
        return await session.run_sync(generate_invoices, requests, now=NOW)


async def on_plan(
    session_factory: Sessions,
    plan_key: str,
    effective_at: datetime = JANUARY,
    ended_at: datetime | None = None,
    tenant_id: str = "t1",
) -> None:
    async with session_factory() as session, session.begin():
        await session.run_sync(
            subscribe,
            tenant_id=tenant_id,
            plan_key=plan_key,
            effective_at=effective_at,
            ended_at=ended_at,
            now=NOW,
        )


async def use(
    session_factory: Sessions, metric: str, *usage: tuple[str, datetime], tenant_id: str = "t1"
) -> None:
    async with session_factory() as session, session.begin():
        events = [
            NewUsage(tenant_id, metric, Decimal(amount), at, f"{metric} {at} {amount}")
            for amount, at in usage
        ]
        await session.run_sync(record_many, events, now=NOW)


async def lines_of(session_factory: Sessions, result: InvoiceResult, tenant_id: str = "t1") -> list[Any]:
    assert result.invoice_id is not None, result.error
    async with session_factory() as session:
        lines: list[InvoiceLine] = await session.run_sync(invoice_lines, tenant_id, result.invoice_id)
    return [
        (
            line.position,
            line.kind,
            line.description,
            line.quantity,
            line.amount,
            line.period_start,
            line.period_end,
        )
        for line in lines
    ]


async def test_a_month_has_one_line_per_price_and_its_total(session_factory: Sessions) -> None:
    await on_plan(session_factory, "standard")
    await use(
        session_factory,
        "calls",
        ("21", JANUARY),
        ("1.5", FEBRUARY - timedelta(microseconds=1)),
        ("7", FEBRUARY),
    )
    [result] = await invoice(session_factory, january())
    assert await lines_of(session_factory, result) == [
        (1, "fixed", "base", 1, 500, JANUARY, FEBRUARY),
        # 3 for nothing, 17 at 12.5, 2.5 at 9 and the flat amount of the last tier: 335, rounded once
        (2, "usage", "calls", Decimal("22.5"), 335, JANUARY, FEBRUARY),
    ]
    async with session_factory() as session:
        stored = await session.run_sync(get_invoice, "t1", str(result.invoice_id))
    assert (stored.total_amount, stored.status, stored.number, stored.currency) == (
        835,
        "finalized",
        1,
        "usd",
    )


async def test_a_line_keeps_the_terms_it_was_rated_with(session_factory: Sessions) -> None:
    await on_plan(session_factory, "standard")
    [result] = await invoice(session_factory, january())
    dearer = CATALOG.replace('"500"', '"900"')
    async with session_factory() as session, session.begin():
        await session.run_sync(apply_catalog, parse_catalog(dearer), now=NOW)
        [line] = await session.run_sync(invoice_lines, "t1", str(result.invoice_id))
    assert line.price_snapshot == {
        "key": "base",
        "currency": "usd",
        "model": "fixed",
        "unit_amount": "500",
        "recurring_interval": "month",
    }
    assert line.subscription_id is not None


async def test_the_same_request_again_returns_the_invoice_and_writes_nothing(
    session_factory: Sessions,
) -> None:
    await on_plan(session_factory, "standard")
    first, twin = await invoice(session_factory, january(), january(currency="USD"))
    [again] = await invoice(session_factory, january())
    assert first.invoice_id == twin.invoice_id == again.invoice_id
    assert (first.is_new, twin.is_new, again.is_new) == (True, False, False)
    assert await counts(session_factory) == (1, 1, 1)


@pytest.mark.postgres_only
async def test_twenty_at_once_make_one_invoice_and_take_one_number(session_factory: Sessions) -> None:
    await on_plan(session_factory, "standard")
    results = await asyncio.gather(*(invoice(session_factory, january()) for _ in range(20)))
    assert len({result.invoice_id for [result] in results}) == 1
    assert sum(result.is_new for [result] in results) == 1
    assert await counts(session_factory) == (1, 1, 1)


async def test_numbers_run_from_one_without_a_gap_when_attempts_fail(session_factory: Sessions) -> None:
    months = [datetime(2024, month, 1, tzinfo=UTC) for month in range(1, 13)]
    requests = [InvoiceRequest("t1", *bounds, "usd") for bounds in itertools.pairwise(months)]

    async def attempt(request: InvoiceRequest, fails: bool) -> None:
        async with session_factory() as session:
            await session.run_sync(generate_invoices, [request], now=NOW)
            await (session.rollback() if fails else session.commit())

    await asyncio.gather(*(attempt(request, fails) for request in requests for fails in (True, False)))
    async with session_factory() as session:
        numbers = (await session.scalars(select(Invoice.number))).all()
    assert sorted(number or 0 for number in numbers) == list(range(1, 12))


async def test_a_batch_numbers_each_tenants_periods_in_order(session_factory: Sessions) -> None:
    results = await invoice(
        session_factory,
        InvoiceRequest("t1", FEBRUARY, MARCH, "usd"),
        january("t2"),
        january("t1"),
    )
    async with session_factory() as session:
        stored = {row.id: row.number for row in await session.scalars(select(Invoice))}
    assert [stored[str(result.invoice_id)] for result in results] == [2, 1, 1]


async def test_an_overlapping_period_is_refused_and_its_neighbours_are_not(session_factory: Sessions) -> None:
    await invoice(session_factory, january())
    middle, one_day = datetime(2025, 1, 16, tzinfo=UTC), timedelta(days=1)
    overlapping, after, inside_after, other = await invoice(
        session_factory,
        InvoiceRequest("t1", middle, FEBRUARY + one_day, "usd"),
        InvoiceRequest("t1", FEBRUARY, MARCH, "usd"),
        InvoiceRequest("t1", FEBRUARY, FEBRUARY + one_day, "usd"),
        InvoiceRequest("t1", middle, FEBRUARY + one_day, "eur"),
    )
    assert isinstance(overlapping.error, PeriodOverlap)
    assert isinstance(inside_after.error, PeriodOverlap)
    assert after.is_new
    assert other.is_new
    assert await counts(session_factory) == (3, 0, 3)


@pytest.mark.postgres_only
async def test_the_database_itself_refuses_an_overlapping_period(session_factory: Sessions) -> None:
    await invoice(session_factory, january())
    async with session_factory() as session:
        session.add(
            Invoice(
                id="x", tenant_id="t1", currency="usd", status="draft", series="INV", total_amount=0,
                period_start=JANUARY, period_end=MARCH, created_at=NOW,
            )
        )  # fmt: skip
        with pytest.raises(IntegrityError, match="ex_invoices_period"):
            await session.flush()


async def test_without_a_price_the_invoice_has_no_lines_and_a_total_of_zero(
    session_factory: Sessions,
) -> None:
    await use(session_factory, "calls", ("5", JANUARY))
    [result] = await invoice(session_factory, january())
    assert result.is_new
    assert await lines_of(session_factory, result) == []


async def test_a_price_without_a_plan_bills_every_tenant_in_its_own_currency_only(
    session_factory: Sessions,
) -> None:
    await use(session_factory, "bytes", ("3", JANUARY))
    in_usd, in_eur = await invoice(session_factory, january(), january(currency="eur"))
    assert await lines_of(session_factory, in_usd) == [(1, "usage", "bytes", 3, 2, JANUARY, FEBRUARY)]
    assert await lines_of(session_factory, in_eur) == []


async def test_a_change_of_plan_splits_usage_at_the_tenants_midnight(session_factory: Sessions) -> None:
    async with session_factory() as session, session.begin():
        session.add(Tenant(tenant_id="t1", timezone="America/New_York", created_at=NOW))
    start, change, end = (datetime(2025, *day, 5, tzinfo=UTC) for day in ((1, 1), (1, 11), (2, 1)))
    await on_plan(session_factory, "standard", start, change)
    await on_plan(session_factory, "pro", change)
    just_before = change - timedelta(seconds=1)
    await use(session_factory, "calls", ("4", start), ("1", just_before), ("2", change), ("9", end))
    [result] = await invoice(session_factory, InvoiceRequest("t1", start, end, "usd"))
    assert await lines_of(session_factory, result) == [
        (1, "fixed", "base", 1, 161, start, change),  # 10 of 31 local days of 500
        (2, "usage", "calls", 5, 25, start, change),
        (3, "usage", "calls", 2, 200, change, end),
    ]


async def test_a_month_billed_in_two_parts_costs_one_monthly_fee(session_factory: Sessions) -> None:
    await on_plan(session_factory, "standard")
    middle = datetime(2025, 1, 16, tzinfo=UTC)
    halves = await invoice(
        session_factory,
        InvoiceRequest("t1", JANUARY, middle, "usd"),
        InvoiceRequest("t1", middle, FEBRUARY, "usd"),
    )
    amounts = [(await lines_of(session_factory, half))[0][4] for half in halves]
    assert amounts == [242, 258]


async def test_bad_requests_are_refused_one_by_one(session_factory: Sessions) -> None:
    noon = datetime(2025, 1, 1, 12, tzinfo=UTC)
    errors = [
        result.error
        for result in await invoice(
            session_factory,
            InvoiceRequest("t1", FEBRUARY, JANUARY, "usd"),
            InvoiceRequest("t1", noon, FEBRUARY, "usd"),
            InvoiceRequest("t1", JANUARY.replace(tzinfo=None), FEBRUARY, "usd"),
            january(currency="zzz"),
            january(),
        )
    ]
    kinds = [InvalidPeriod, InvalidPeriod, InvalidPeriod, InvalidCurrency, type(None)]
    assert [type(error) for error in errors] == kinds
    assert "2025-01-01T00:00:00+00:00 and 2025-01-02T00:00:00+00:00" in str(errors[1])


async def test_an_amount_that_fits_no_column_refuses_that_request_alone(session_factory: Sessions) -> None:
    await on_plan(session_factory, "pro", tenant_id="t1")
    await use(session_factory, "calls", ("1" + "0" * 20, JANUARY))
    too_large, fine = await invoice(session_factory, january(), january("t2"))
    assert isinstance(too_large.error, AmountTooLarge)
    assert fine.is_new
    assert await counts(session_factory) == (1, 0, 1)


async def test_two_prices_of_a_metric_at_one_instant_are_refused(session_factory: Sessions) -> None:
    await on_plan(session_factory, "standard")
    await on_plan(session_factory, "pro", FEBRUARY - timedelta(days=9), tenant_id="t2")
    async with session_factory() as session, session.begin():
        # Behind the back of subscribe(), which would refuse it.
        await session.execute(text("UPDATE subscriptions SET tenant_id = 't1' WHERE tenant_id = 't2'"))
    [result] = await invoice(session_factory, january())
    assert isinstance(result.error, AmbiguousPrice)
    assert await counts(session_factory) == (0, 0, 0)


async def test_the_total_is_the_sum_of_the_lines_for_a_whole_batch(session_factory: Sessions) -> None:
    tenants = [f"t{number}" for number in range(40)]
    for number, tenant_id in enumerate(tenants):
        await on_plan(session_factory, "standard", tenant_id=tenant_id)
        await use(session_factory, "calls", (f"{number}.75", JANUARY), tenant_id=tenant_id)
    await invoice(session_factory, *(january(tenant_id) for tenant_id in tenants))
    async with session_factory() as session:
        totals = dict((await session.execute(select(Invoice.id, Invoice.total_amount))).all())
        summed = select(InvoiceLine.invoice_id, func.sum(InvoiceLine.amount)).group_by(InvoiceLine.invoice_id)
        assert dict((await session.execute(summed)).all()) == totals
    assert len(totals) == 40


async def test_what_the_session_holds_unwritten_is_billed_too(session_factory: Sessions) -> None:
    async with session_factory() as session, session.begin():
        session.add(
            Price(id="p", key="fee", currency="eur", model="fixed", unit_amount=Decimal(7),
                  recurring_interval="month", created_at=NOW)
        )  # fmt: skip
        [result] = await session.run_sync(generate_invoices, [january(currency="eur")], now=NOW)
    assert await lines_of(session_factory, result) == [(1, "fixed", "fee", 1, 7, JANUARY, FEBRUARY)]


async def test_invoices_are_read_by_tenant_and_period_and_exported(session_factory: Sessions) -> None:
    await on_plan(session_factory, "standard")
    february = InvoiceRequest("t1", FEBRUARY, MARCH, "usd")
    first, second, other = await invoice(session_factory, january(), february, january("t2"))
    async with session_factory() as session:
        of_tenant = await session.run_sync(list_invoices, tenant_id="t1")
        of_january = await session.run_sync(list_invoices, period=Period(JANUARY, FEBRUARY))
        page = await session.run_sync(list_invoices, after=("t1", str(first.invoice_id)), limit=1)
        with pytest.raises(NotFound):
            await session.run_sync(get_invoice, "t2", str(first.invoice_id))
        exported = await session.run_sync(lambda sync: list(export_rows(sync)))
    assert [row.id for row in of_tenant] == [first.invoice_id, second.invoice_id]
    assert {row.id for row in of_january} == {first.invoice_id, other.invoice_id}
    assert [row.id for row in page] == [second.invoice_id]
    assert [tuple(row) for row in exported] == [EXPORT_COLUMNS] * 3
    assert [(row["tenant_id"], row["amount"]) for row in exported] == [("t1", 500), ("t1", 500), ("t2", None)]


async def counts(session_factory: Sessions) -> tuple[int, int, int]:
    """How many invoices and lines there are, and how many numbers were taken."""
    async with session_factory() as session:
        invoices = await session.scalar(select(func.count()).select_from(Invoice))
        lines = await session.scalar(select(func.count()).select_from(InvoiceLine))
        numbers: Sequence[int] = (await session.scalars(select(InvoiceCounter.last_number))).all()
    return int(invoices or 0), int(lines or 0), sum(numbers)
