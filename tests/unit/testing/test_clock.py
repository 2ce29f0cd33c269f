"""``TestClock``: time stands still until it is advanced, and everything due on the way is then done."""

from __future__ import annotations

from datetime import UTC, datetime

from svc_infra.testing import TestClock

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
unit_amount = "2"
"""


async def test_a_future_is_billed_without_waiting_for_it() -> None:
    start = datetime(2031, 1, 1, tzinfo=UTC)
    async with TestClock(start, catalog=CATALOG) as clock:
        await clock.subscribe("acme", "pro")
        await clock.record("acme", "calls", 21, at=datetime(2031, 1, 31, 23, tzinfo=UTC))
        await clock.advance_to(datetime(2031, 2, 1, tzinfo=UTC))
        assert await clock.invoices() == []
        await clock.advance_to(datetime(2031, 2, 1, 1, tzinfo=UTC))
        [january] = await clock.invoices("acme")
        assert (january.total_amount, clock.now) == (542, datetime(2031, 2, 1, 1, tzinfo=UTC))
