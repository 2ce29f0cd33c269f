"""Prices filtered by metadata, lines grouped by it, meters that are no sums, and prices by the event."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from svc_infra.billing.metering import Metering
from svc_infra.billing.meters import Meter
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.billing.usage_meters import register_meter
from svc_infra.exceptions import InvalidCatalog
from tests.contract.billing_shop import MONTHS, Sessions, Shop

PRICE = '[[prices]]\nkey = "{0}"\ncurrency = "usd"\nmetric = "tokens"\nunit_amount = "{1}"\n'
FILTERED = (
    PRICE.format("gpt", 10)
    + 'filter = { model = "gpt" }\n'
    + PRICE.format("mini", 1)
    + 'filter = { model = ["gpt-mini", "mini"] }\n'
    + PRICE.format("other", 3)
)


async def use(shop: Shop, *events: tuple[str, dict[str, Any]]) -> None:
    usage = [
        NewUsage("t", "tokens", Decimal(amount), MONTHS[0], f"{amount} {at} {shop.now}", metadata)
        for at, (amount, metadata) in enumerate(events)
    ]
    await shop.call(record_many, usage, now=shop.now)


@pytest.fixture
async def shop(session_factory: Sessions) -> Shop:
    shop = Shop(session_factory)
    meter = Metering("tokens", Meter.SUM, dimensions=("model", "region"))
    await shop.call(register_meter, meter, now=shop.now)
    return shop


async def test_each_event_falls_under_one_filter_or_the_default(shop: Shop) -> None:
    await shop.apply(FILTERED)
    await use(shop, ("2", {"model": "gpt"}), ("5", {"model": "mini"}), ("7", {}), ("1", {"model": "x"}))
    shop.now = MONTHS[1]
    january = await shop.invoice(1)
    assert [line[1:] for line in await shop.lines(january)] == [
        ("gpt", 2, 20),
        ("mini", 5, 5),
        ("other", 8, 24),
    ]
    await use(shop, ("4", {"model": "gpt-mini"}), ("3", {"model": "gpt"}))  # late, each by its own price
    shop.now = MONTHS[2]
    late = await shop.lines(await shop.invoice(2))
    assert sorted(line[1:] for line in late) == [("gpt, late usage", 3, 30), ("mini, late usage", 4, 4)]


async def test_lines_are_grouped_by_a_key(shop: Shop) -> None:
    await shop.apply(PRICE.format("tokens", 10) + 'group_by = ["region"]\n')
    await use(shop, ("2", {"region": "eu"}), ("5", {"region": "us"}), ("1", {}))
    shop.now = MONTHS[1]
    assert [line[1:] for line in await shop.lines(await shop.invoice(1))] == [
        ("tokens (none)", 1, 10),
        ("tokens (eu)", 2, 20),
        ("tokens (us)", 5, 50),
    ]
    await use(shop, ("4", {"region": "eu"}))
    shop.now = MONTHS[2]
    assert [line[2:] for line in await shop.lines(await shop.invoice(2))] == [(4, 40)]


async def test_a_metric_is_billed_by_its_meter(shop: Shop) -> None:
    await shop.call(register_meter, Metering("peak", Meter.MAXIMUM), now=shop.now)
    await shop.apply(PRICE.format("peak", 10).replace('"tokens"', '"peak"'))
    for amount in ("3", "8", "5"):
        await shop.use(amount, MONTHS[0], "peak")
    shop.now = MONTHS[1]
    assert await shop.lines(await shop.invoice(1)) == [("usage", "peak", 8, 80)]


async def test_a_percentage_is_charged_by_the_event(shop: Shop) -> None:
    await shop.apply(
        '[[prices]]\nkey = "fee"\ncurrency = "usd"\nmetric = "tokens"\nmodel = "percentage"\npercent = "1"\n'
        'per_event = { fixed_amount = "30", free_events = 1 }\n'
    )
    await use(shop, ("100", {}), ("200", {}), ("50", {}))
    shop.now = MONTHS[1]
    [line] = await shop.lines(await shop.invoice(1))
    # The first is free; 2 dollars and 50 cents, and twice 30 cents.
    assert line == ("usage", "fee", 350, 310)


async def test_two_prices_for_the_same_filter_are_refused(shop: Shop) -> None:
    with pytest.raises(InvalidCatalog, match="would bill the same usage twice"):
        await shop.apply(FILTERED + PRICE.format("again", 9) + 'filter = { model = "gpt" }\n')
