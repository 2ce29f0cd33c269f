"""What subscriptions cost: seats, trials, changes, years, prices in advance, commitments, anniversaries."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from sqlalchemy.exc import IntegrityError

from svc_infra.billing.invoice_closing import generate_closing_invoices
from svc_infra.billing.invoicing import InvoiceRequest
from svc_infra.billing.models import Subscription
from svc_infra.billing.subscription_changes import change_subscription, end_subscription
from svc_infra.exceptions import InvalidCatalog, InvalidSubscription, NotFound
from svc_infra.simulation.audit import audit
from tests.contract.billing_shop import MONTHS, Sessions, Shop

BASE = (
    '[[prices]]\nkey = "base"\nplan = "{0}"\ncurrency = "usd"\nunit_amount = "{1}"\n'
    'recurring_interval = "month"\n'
)
CATALOG = (
    '[[plans]]\nkey = "small"\ndefault = true\n[[plans]]\nkey = "large"\n[[plans]]\nkey = "ahead"\n'
    '[[plans]]\nkey = "yearly"\n[[plans]]\nkey = "promise"\n[[plans]]\nkey = "swap"\n'
    + BASE.format("small", 3100)
    + BASE.format("large", 6200)
    + BASE.format("ahead", 3000)
    + "advance = true\n"
    + '[[prices]]\nkey = "calls"\nplan = "ahead"\ncurrency = "usd"\nmetric = "calls"\nunit_amount = "100"\n'
    + BASE.format("swap", 2000)
    + BASE.format("yearly", 36500).replace("month", "year")
    + BASE.format("promise", 1000)
    + BASE.format("promise", 5000).replace('"base"', '"commitment"')
    + "commitment = true\n"
    + '[[prices]]\nkey = "calls"\nplan = "promise"\ncurrency = "usd"\nmetric = "calls"\nunit_amount = "100"\n'
)


def day(month: int, number: int) -> datetime:
    return datetime(2025, month, number, tzinfo=UTC)


@pytest.fixture
async def shop(session_factory: Sessions) -> Shop:
    shop = Shop(session_factory)
    await shop.apply(CATALOG)
    return shop


async def bill(shop: Shop, *months: int) -> list[list[tuple[str, int]]]:
    """(kind, amount) of the lines of each month's invoice, each made when its month is over."""
    found = []
    for month in months:
        shop.now = MONTHS[month]
        found.append([(line[0], line[3]) for line in await shop.lines(await shop.invoice(month))])
    return found


async def test_seats_multiply_the_fee_and_a_trial_costs_none(shop: Shop) -> None:
    await shop.subscribe("small", day(1, 1), quantity=3, trial_days=10)
    [lines] = await bill(shop, 1)
    assert lines == [("fixed", 3 * 3100 * 21 // 31)]


async def test_a_change_of_plan_now_costs_the_days_of_each(shop: Shop) -> None:
    old = await shop.subscribe("small")
    shop.now = datetime(2025, 1, 11, 15, 30, tzinfo=UTC)
    new = await shop.call(change_subscription, "t", old, plan_key="large", quantity=2, now=shop.now)
    assert new != old
    assert await bill(shop, 1, 2) == [[("fixed", 1000), ("fixed", 2 * 6200 * 21 // 31)], [("fixed", 12400)]]


async def test_two_changes_on_one_day_leave_the_last(shop: Shop) -> None:
    old = await shop.subscribe("small")
    shop.now = day(1, 11)
    second = await shop.call(change_subscription, "t", old, plan_key="large", now=shop.now)
    assert await shop.call(change_subscription, "t", second, plan_key="swap", now=shop.now) == second
    assert await bill(shop, 1) == [[("fixed", 1000), ("fixed", 1355)]]


async def test_a_change_at_the_period_end_waits_for_it(shop: Shop) -> None:
    old = await shop.subscribe("small")
    shop.now = day(1, 11)
    await shop.call(change_subscription, "t", old, plan_key="large", at_period_end=True, now=shop.now)
    assert await bill(shop, 1, 2) == [[("fixed", 3100)], [("fixed", 6200)]]


async def test_what_was_invoiced_is_not_changed_or_ended(shop: Shop) -> None:
    old = await shop.subscribe("small")
    await bill(shop, 1)
    with pytest.raises(InvalidSubscription, match="invoiced until 2025-02-01"):
        await shop.call(change_subscription, "t", old, quantity=2, at=day(1, 20), now=shop.now)
    with pytest.raises(InvalidSubscription, match="invoiced until"):
        await shop.call(end_subscription, "t", old, ended_at=day(1, 20), now=shop.now)
    with pytest.raises(InvalidSubscription, match="not a midnight"):
        await shop.call(
            end_subscription, "t", old, ended_at=datetime(2025, 3, 1, 7, tzinfo=UTC), now=shop.now
        )
    with pytest.raises(NotFound):
        await shop.call(end_subscription, "t", "nothing", now=shop.now)
    assert await shop.call(end_subscription, "t", old, now=shop.now) == MONTHS[2]


async def test_a_change_may_not_bill_a_metric_twice(shop: Shop) -> None:
    await shop.apply('[[plans]]\nkey = "other"\ndefault = true\n' + BASE.format("other", 1))
    first = await shop.subscribe("other")
    await shop.subscribe("small")
    with pytest.raises(InvalidSubscription, match="is on this plan already"):
        await shop.call(change_subscription, "t", first, plan_key="small", now=shop.now)


@pytest.mark.postgres_only
async def test_the_database_itself_refuses_a_plan_twice_at_a_time(shop: Shop) -> None:
    held = await shop.subscribe("small")
    async with shop.session_factory() as session:
        stored = await session.get_one(Subscription, ("t", held))
        session.add(Subscription(id="x", tenant_id="t", plan_id=stored.plan_id, effective_at=day(3, 1)))
        with pytest.raises(IntegrityError, match="ex_subscriptions_period"):
            await session.flush()


async def test_a_price_in_advance_is_charged_to_the_end_of_the_next_month(shop: Shop) -> None:
    await shop.subscribe("ahead", day(1, 17))
    # The half month that is over, and February; then a month each.
    assert await bill(shop, 1, 2) == [[("fixed", 1452), ("fixed", 3000)], [("fixed", 3000)]]


async def test_what_was_paid_in_advance_is_given_back_at_a_change(shop: Shop) -> None:
    old = await shop.subscribe("ahead")
    await bill(shop, 1)  # January and February
    shop.now = day(2, 15)
    await shop.call(change_subscription, "t", old, plan_key="swap", now=shop.now)
    # Half of February back, half of the other plan's.
    assert await bill(shop, 2, 3) == [
        [("fixed", 1000), ("unused", -1500), ("credit", 500)],
        [("fixed", 2000), ("credit", -500)],
    ]


async def test_the_end_of_a_fee_in_advance_is_given_back_once_beside_late_usage(shop: Shop) -> None:
    held = await shop.subscribe("ahead")
    await bill(shop, 1)
    shop.now = day(2, 10)
    await shop.call(end_subscription, "t", held, ended_at=day(2, 15), now=shop.now)
    await shop.use("5", day(1, 20))
    assert await bill(shop, 2) == [[("unused", -1500), ("adjustment", 500), ("credit", 1000)]]
    shop.now = day(3, 2)
    await shop.use("8", day(2, 3))
    assert await shop.call(generate_closing_invoices, ["t"], now=shop.now) == [], "nothing to pay yet"
    await shop.use("4", day(1, 3))
    [closing] = await shop.call(generate_closing_invoices, ["t"], now=shop.now)
    amounts = [(line[0], line[3]) for line in await shop.lines(closing.id)]
    assert sorted(amounts) == [("adjustment", 400), ("adjustment", 800), ("credit", -1000)]
    assert (closing.total_amount, await shop.pending()) == (200, [])
    assert (await audit(shop.session_factory)).is_clean


async def test_a_yearly_price_is_due_when_its_year_ends(shop: Shop) -> None:
    held = await shop.subscribe("yearly", datetime(2024, 2, 10, tzinfo=UTC))
    assert await bill(shop, 1, 2, 3) == [[], [("fixed", 36500)], []]
    shop.now = day(4, 20)
    await shop.call(end_subscription, "t", held, ended_at=day(5, 10), now=shop.now)
    assert await bill(shop, 4, 5) == [[], [("fixed", 8900)]]  # 89 of 365 days


async def test_a_commitment_is_made_up_for_with_late_usage_counted(shop: Shop) -> None:
    await shop.subscribe("promise")
    await shop.use("7", day(1, 5))
    assert await bill(shop, 1) == [[("fixed", 1000), ("usage", 700), ("true_up", 3300)]]
    await shop.use("5", day(1, 6))  # 500 more of usage, 500 less to make up for: nothing to pay
    [february] = await bill(shop, 2)
    assert february == [
        ("fixed", 1000),
        ("true_up", 4000),
        ("adjustment", 500),
        ("adjustment", -500),
    ] or february == [("fixed", 1000), ("true_up", 4000), ("adjustment", -500), ("adjustment", 500)]


async def test_an_anniversary_has_periods_of_its_own_beside_the_calendar(shop: Shop) -> None:
    await shop.subscribe("small", day(1, 31), anchor_on=date(2025, 1, 31))
    await shop.subscribe("swap", day(1, 1))
    shop.now = day(3, 31)
    cells = [(day(1, 31), day(2, 28)), (day(2, 28), day(3, 31))]
    for start, end in cells:
        invoice_id = await shop.bill(InvoiceRequest("t", start, end, "usd", "month:31"))
        assert await shop.lines(invoice_id) == [("fixed", "base", 1, 3100)]
    assert await bill(shop, 2) == [[("fixed", 2000)]]


async def test_a_price_keeps_its_kind(shop: Shop) -> None:
    with pytest.raises(InvalidCatalog, match="cannot change its advance"):
        await shop.apply(CATALOG.replace("advance = true\n", ""))


async def test_a_changed_price_counts_for_periods_that_begin_on_its_day(shop: Shop) -> None:
    await shop.subscribe("small")
    shop.now = day(1, 20)
    await shop.apply(CATALOG.replace("3100", "9900"))
    assert await bill(shop, 1, 2) == [[("fixed", 3100)], [("fixed", 9900)]]
