from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.billing.periods import Period, zone
from svc_infra.billing.proration import (
    change_interval,
    change_plan,
    prorate,
    prorate_parts,
    remaining_ratio,
    trial_end,
)
from svc_infra.exceptions import AmountTooLarge, InvalidPeriod, InvalidPrice

AUGUST = Period(datetime(2022, 8, 1, tzinfo=UTC), datetime(2022, 9, 1, tzinfo=UTC))
ratios = st.fractions(min_value=0, max_value=1)
prices = st.integers(min_value=0, max_value=10**9)


@pytest.mark.parametrize(
    ("at", "ratio"),
    [
        (datetime(2022, 7, 5, tzinfo=UTC), Fraction(1)),
        (datetime(2022, 8, 1, tzinfo=UTC), Fraction(1)),
        (datetime(2022, 8, 10, tzinfo=UTC), Fraction(22, 31)),
        (datetime(2022, 8, 10, 23, 59, tzinfo=UTC), Fraction(22, 31)),
        (datetime(2022, 8, 31, tzinfo=UTC), Fraction(1, 31)),
        (datetime(2022, 9, 1, tzinfo=UTC), Fraction(0)),
        (datetime(2023, 9, 1, tzinfo=UTC), Fraction(0)),
    ],
)
def test_what_remains_of_a_period_is_counted_in_days_with_the_first_one(
    at: datetime, ratio: Fraction
) -> None:
    assert remaining_ratio(AUGUST, at, UTC) == ratio


def test_days_are_local_however_long_they_are() -> None:
    zurich = zone("Europe/Zurich")
    march = Period(datetime(2025, 2, 28, 23, tzinfo=UTC), datetime(2025, 3, 31, 22, tzinfo=UTC))
    assert remaining_ratio(march, datetime(2025, 3, 30, 22, tzinfo=UTC), zurich) == Fraction(1, 31)


def test_the_lines_of_a_change_are_rounded_and_its_net_is_their_sum() -> None:
    change = change_plan(1000, 2000, Fraction(17, 31))
    assert (change.credit, change.charge, change.net) == (-548, 1097, 549)
    change = change_interval(10000, 100000, Fraction(1, 2))
    assert (change.credit, change.charge, change.net) == (-5000, 100000, 95000)


@given(prices, ratios)
def test_a_change_to_the_same_price_costs_nothing(price: int, ratio: Fraction) -> None:
    assert change_plan(price, price, ratio).net == 0


@pytest.mark.parametrize(
    ("start", "days", "ends"),
    [
        (datetime(2025, 3, 29, 15, tzinfo=UTC), 1, datetime(2025, 3, 29, 23, tzinfo=UTC)),
        (datetime(2025, 3, 29, 15, tzinfo=UTC), 2, datetime(2025, 3, 30, 22, tzinfo=UTC)),
        (datetime(2025, 3, 28, 23, tzinfo=UTC), 0, datetime(2025, 3, 28, 23, tzinfo=UTC)),
    ],
)
def test_a_trial_ends_at_a_local_midnight(start: datetime, days: int, ends: datetime) -> None:
    assert trial_end(start, days, zone("Europe/Zurich")) == ends


@given(prices, st.lists(st.integers(min_value=0, max_value=31), max_size=8))
def test_the_parts_of_a_period_add_up_to_its_price(price: int, days: list[int]) -> None:
    cuts = [AUGUST.start + timedelta(days=day) for day in sorted(days)]
    amounts = prorate_parts(price, AUGUST, cuts, UTC)
    assert len(amounts) == len(cuts) + 1
    assert sum(amounts) == price
    assert min(amounts) >= 0


@given(prices, st.integers(min_value=0, max_value=31))
def test_a_part_is_within_a_minor_unit_of_its_share(price: int, day: int) -> None:
    first, second = prorate_parts(price, AUGUST, [AUGUST.start + timedelta(days=day)], UTC)
    assert first == prorate(price, Fraction(day, 31))
    assert abs(second - price * Fraction(31 - day, 31)) < 1


def test_what_cannot_be_prorated_is_refused() -> None:
    with pytest.raises(InvalidPrice):
        prorate(1, Fraction(-1, 2))
    with pytest.raises(AmountTooLarge):
        prorate(2**63, Fraction(1))
    with pytest.raises(InvalidPeriod, match="trial"):
        trial_end(AUGUST.start, -1, UTC)
    for cuts in ([AUGUST.end, AUGUST.start], [AUGUST.start - timedelta(days=1)]):
        with pytest.raises(InvalidPeriod, match="ascending"):
            prorate_parts(1, AUGUST, cuts, UTC)
