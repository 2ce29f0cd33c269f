"""Usage that comes after its period was invoiced: an adjustment on the next invoice, or on a closing one."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import delete, text
from sqlalchemy.orm import Session

from svc_infra.billing.aggregation import DayKey, recompute
from svc_infra.billing.invoice_closing import generate_closing_invoices, tenants_without_next_invoice
from svc_infra.billing.invoice_late import settle_late_usage
from svc_infra.billing.invoice_states import void_invoice
from svc_infra.billing.invoicing import InvoiceRequest, generate_invoices
from svc_infra.billing.models import PendingLine, Subscription
from svc_infra.billing.periods import day_bounds
from svc_infra.billing.tenant_lock import lock_tenants
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.exceptions import AmbiguousPrice
from tests.contract.billing_shop import MONTHS, Sessions, Shop

CATALOG = """
[[plans]]
key = "p"
default = true
[[prices]]
key = "calls"
plan = "p"
currency = "usd"
metric = "calls"
model = "graduated"
tiers = [ { up_to = "10", unit_amount = "10" }, { unit_amount = "4", flat_amount = "50" } ]
"""
IN_JANUARY = datetime(2025, 1, 20, tzinfo=UTC)
IN_FEBRUARY = datetime(2025, 2, 20, tzinfo=UTC)


@pytest.fixture
async def shop(session_factory: Sessions) -> Shop:
    shop = Shop(session_factory)
    await shop.apply(CATALOG)
    await shop.subscribe("p")
    return shop


async def test_late_usage_is_adjusted_on_the_next_invoice_by_the_old_tiers(shop: Shop) -> None:
    await shop.use("8", IN_JANUARY)
    shop.now = MONTHS[1]
    january = await shop.invoice(1)
    await shop.use("5", IN_JANUARY)  # 13 in all: 100 + 50 + 12, of which 80 are billed
    await shop.use("1", IN_FEBRUARY)
    shop.now = MONTHS[2]
    february = await shop.invoice(2)
    assert await shop.lines(january) == [("usage", "calls", 8, 80)]
    assert await shop.lines(february) == [
        ("usage", "calls", 1, 10),
        ("adjustment", "calls, late usage", 5, 82),
    ]
    assert (await shop.stored(february)).total_amount == 92
    shop.now = MONTHS[3]
    assert await shop.lines(await shop.invoice(3)) == []  # once only


async def test_a_daily_aggregation_in_between_does_not_hide_it(shop: Shop) -> None:
    shop.now = MONTHS[1]
    await shop.invoice(1)
    await shop.use("5", IN_JANUARY)
    key = DayKey("t", "calls", day_bounds(IN_JANUARY, UTC))
    await shop.call(recompute, [key], now=shop.now, will_publish=True)
    shop.now = MONTHS[2]
    # January had no line at all: the price of then is found again.
    assert await shop.lines(await shop.invoice(2)) == [("adjustment", "calls, late usage", 5, 50)]


async def test_the_old_period_keeps_its_price_although_a_new_one_counts(shop: Shop) -> None:
    await shop.use("8", IN_JANUARY)
    shop.now = MONTHS[1]
    await shop.invoice(1)
    await shop.apply(CATALOG.replace('"10", unit_amount = "10"', '"10", unit_amount = "99"'))
    await shop.use("1", IN_JANUARY)
    shop.now = MONTHS[2]
    assert await shop.lines(await shop.invoice(2)) == [("adjustment", "calls, late usage", 1, 10)]


@pytest.mark.parametrize("model", ["graduated", "package", "per_unit"])
async def test_a_period_costs_the_same_however_its_usage_is_split(shop: Shop, model: str) -> None:
    if model != "graduated":
        size = 'package_size = "7"\n' if model == "package" else ""
        tiers = CATALOG[CATALOG.index("tiers") :]
        plan_q = CATALOG.replace(tiers, f'unit_amount = "33.3"\n{size}').replace('"graduated"', f'"{model}"')
        await shop.apply(plan_q, effective_on=MONTHS[0].date(), is_retroactive=True)
    arrivals = ["3", "8.5", "0.25", "12", "6"]
    totals = 0
    for month, amount in enumerate(arrivals, start=1):
        await shop.use(amount, IN_JANUARY)
        shop.now = MONTHS[month]
        totals += (await shop.stored(await shop.invoice(month))).total_amount
    twin = Shop(shop.session_factory, shop.now)
    await twin.subscribe("p", tenant_id="twin")
    for amount in arrivals:
        await twin.use(amount, IN_JANUARY, tenant_id="twin")
    at_once = await twin.invoice(1, tenant_id="twin")
    assert totals == (await twin.stored(at_once, "twin")).total_amount


async def test_what_waits_where_no_invoice_is_due_gets_a_closing_one(session_factory: Sessions) -> None:
    shop = Shop(session_factory)
    await shop.apply(CATALOG)
    await shop.subscribe("p", ended_at=MONTHS[1])
    await shop.use("1", IN_JANUARY)
    shop.now = MONTHS[1]
    await shop.invoice(1)
    await shop.use("2", IN_JANUARY)
    shop.now = datetime(2025, 3, 3, 1, tzinfo=UTC)
    await shop.call(
        recompute, [DayKey("t", "calls", day_bounds(IN_JANUARY, UTC))], now=shop.now, will_publish=True
    )
    assert await shop.call(tenants_without_next_invoice, now=shop.now) == ["t"]
    [closing] = await shop.call(generate_closing_invoices, ["t"], now=shop.now)
    assert (closing.kind, closing.number, closing.total_amount) == ("adjustment", 2, 20)
    assert await shop.call(generate_closing_invoices, ["t"], now=shop.now) == []
    assert await shop.call(tenants_without_next_invoice, now=shop.now) == []


async def test_a_negative_balance_is_carried_until_it_is_used_up(shop: Shop) -> None:
    async with shop.session_factory() as session, session.begin():
        session.add(
            PendingLine(
                id="c", tenant_id="t", currency="usd", kind="credit", description="goodwill", quantity=1,
                amount=-150, period_start=MONTHS[0], period_end=MONTHS[1],
            )
        )  # fmt: skip
    totals = []
    for month in (1, 2, 3):
        await shop.use("7", MONTHS[month - 1] + timedelta(days=3))
        shop.now = MONTHS[month]
        totals.append((await shop.stored(await shop.invoice(month))).total_amount)
    assert totals == [0, 0, 60]  # 210 less 150
    assert await shop.pending() == []


async def test_voiding_gives_back_what_the_invoice_carried(shop: Shop) -> None:
    shop.now = MONTHS[1]
    await shop.invoice(1)
    await shop.use("5", IN_JANUARY)
    shop.now = MONTHS[2]
    february = await shop.invoice(2)
    await shop.call(void_invoice, "t", february, reason="wrong", now=shop.now)
    assert await shop.pending() == [("adjustment", "calls, late usage", 5, 50)]
    assert await shop.lines(await shop.invoice(2)) == [("adjustment", "calls, late usage", 5, 50)]


async def test_a_period_invoiced_again_after_its_late_usage_was_billed_is_not_billed_twice(
    shop: Shop,
) -> None:
    await shop.use("8", IN_JANUARY)
    shop.now = MONTHS[1]
    january = await shop.invoice(1)
    await shop.use("5", IN_JANUARY)
    shop.now = MONTHS[2]
    await shop.invoice(2)  # bills 5 more for 82
    await shop.use("1", IN_JANUARY)
    await shop.call(settle, now=shop.now)  # 1 more for 4 waits
    await shop.call(void_invoice, "t", january, reason="wrong", now=shop.now)
    assert await shop.pending() == [("adjustment", "calls, late usage, of a voided invoice", -5, -82)]
    assert await shop.lines(await shop.invoice(1)) == [
        ("usage", "calls", 14, 166),
        ("adjustment", "calls, late usage, of a voided invoice", -5, -82),
    ]


def settle(session: Session, now: datetime) -> None:
    tenants = lock_tenants(session, ["t"], now=now)
    assert settle_late_usage(session, tenants, MONTHS[1], now=now) == {}


async def test_two_currencies_and_every_earlier_period_are_adjusted(session_factory: Sessions) -> None:
    shop = Shop(session_factory)
    await shop.apply(CATALOG.split("[[prices]]")[0] + "".join(
        f'[[prices]]\nkey = "calls"\nplan = "p"\ncurrency = "{currency}"\nmetric = "calls"\n'
        'unit_amount = "1"\n'
        for currency in ("usd", "eur")
    ))  # fmt: skip
    await shop.subscribe("p")
    for month, currency in itertools.product((1, 2), ("usd", "eur")):
        shop.now = MONTHS[month]
        await shop.invoice(month, currency=currency)
    await shop.use("5", IN_JANUARY)
    await shop.use("6", IN_FEBRUARY)
    shop.now = MONTHS[3]
    for currency in ("usd", "eur"):
        lines = await shop.lines(await shop.invoice(3, currency=currency))
        assert [(line[0], line[3]) for line in lines] == [("adjustment", 5), ("adjustment", 6)]


@pytest.mark.parametrize(
    ("policy", "in_the_draft", "after_it"),
    [("carry_forward", True, True), ("grace", True, False), ("reject", False, False)],
)
async def test_a_policy_says_what_late_usage_is_accepted(
    shop: Shop, policy: str, in_the_draft: bool, after_it: bool
) -> None:
    async def is_accepted(key: str) -> bool:
        event = NewUsage("t", "calls", Decimal(1), IN_JANUARY, key)
        [recorded] = await shop.call(record_many, [event], now=shop.now)
        return bool(recorded.outcome == "inserted")

    await shop.settings(late_policy=policy, grace_seconds=86400)
    shop.now = MONTHS[1]
    assert await is_accepted("before")
    january = await shop.invoice(1)
    assert await is_accepted("draft") == in_the_draft
    await shop.finalize(january, is_early=True)
    assert await is_accepted("after") == after_it
    repeated = NewUsage("t", "calls", Decimal(1), IN_JANUARY, "before")
    [again] = await shop.call(record_many, [repeated], now=shop.now)
    assert again.outcome == "duplicate"
    await shop.use("1", shop.now)  # what is not late is no business of it
    billed = (await shop.stored(january)).total_amount
    assert billed == 10 * (1 + in_the_draft)


async def test_an_invoice_that_cannot_be_rated_again_holds_up_its_tenant_alone(shop: Shop) -> None:
    shop.now = MONTHS[1]
    await shop.invoice(1)
    second = '[[plans]]\nkey = "q"\n' + CATALOG[CATALOG.index("[[prices]]") :].replace('"p"', '"q"')
    await shop.apply(CATALOG + second)
    await shop.subscribe("q", tenant_id="other")
    await shop.use("5", IN_JANUARY)
    shop.now = MONTHS[2]
    async with shop.session_factory() as session, session.begin():
        # Behind the back of subscribe(), which would refuse it.
        await session.execute(text("UPDATE subscriptions SET tenant_id = 't' WHERE tenant_id = 'other'"))
    requests = [InvoiceRequest(tenant, MONTHS[1], MONTHS[2], "usd") for tenant in ("t", "u")]
    first, other = await shop.call(generate_invoices, requests, now=shop.now)
    assert isinstance(first.error, AmbiguousPrice)
    assert other.is_new
    async with shop.session_factory() as session, session.begin():
        await session.execute(delete(Subscription).where(Subscription.created_at == MONTHS[1]))
    assert await shop.lines(await shop.invoice(2)) == [("adjustment", "calls, late usage", 5, 50)]
