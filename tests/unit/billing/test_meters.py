from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.billing.meters import Meter, MeteredEvent, measure, weighted_sum
from svc_infra.billing.periods import Period

D = Decimal
START = datetime(2025, 4, 1, tzinfo=UTC)
APRIL = Period(START, datetime(2025, 5, 1, tzinfo=UTC))


def event(day: int, amount: str, key: str | None = None) -> MeteredEvent:
    return MeteredEvent(START + timedelta(days=day), D(amount), key)


EVENTS = [
    event(-1, "99", "z"),
    event(4, "7", "a"),
    event(2, "9", "b"),
    event(4, "3", "a"),
    event(30, "99", "y"),
]


@pytest.mark.parametrize(
    ("meter", "value"),
    [("sum", "19"), ("count", "3"), ("maximum", "9"), ("latest", "3"), ("unique_count", "2")],
)
def test_a_meter_counts_the_events_of_its_period(meter: str, value: str) -> None:
    assert measure(Meter(meter), EVENTS, APRIL) == D(value)


@pytest.mark.parametrize("meter", Meter)
def test_a_period_without_events_measures_nothing(meter: Meter) -> None:
    assert measure(meter, [], APRIL) == 0


def test_a_missing_key_is_not_counted_as_a_value() -> None:
    assert measure(Meter.UNIQUE_COUNT, [event(1, "1"), event(2, "1", "a")], APRIL) == 1


def test_a_maximum_can_be_negative() -> None:
    assert measure(Meter.MAXIMUM, [event(1, "-4"), event(2, "-3")], APRIL) == -3


@pytest.mark.parametrize(
    ("initial", "events", "value"),
    [
        ("0", [], "0"),
        ("6", [], "6"),
        ("0", [event(0, "2")], "2"),
        ("0", [event(15, "2")], "1"),
        ("10", [event(10, "-4")], "22/3"),
        ("0", [event(-5, "3")], "3"),
        ("0", [event(30, "3")], "0"),
        ("0", [event(10, "1"), event(20, "-1")], "1/3"),
    ],
)
def test_a_weighted_sum_is_the_average_level_exactly(
    initial: str, events: list[MeteredEvent], value: str
) -> None:
    assert weighted_sum(events, APRIL, initial=D(initial)) == Fraction(value)


def test_a_measured_weighted_sum_has_the_places_of_a_quantity() -> None:
    assert measure(Meter.WEIGHTED_SUM, [event(10, "1"), event(20, "-1")], APRIL) == D("0.333333333333")


levels = st.lists(st.tuples(st.integers(0, 29), st.integers(-5, 5)), max_size=6)


@given(levels, st.integers(min_value=1, max_value=29))
def test_the_halves_of_a_period_weigh_as_much_as_the_whole(changes: list[tuple[int, int]], cut: int) -> None:
    events = [event(day, str(change)) for day, change in changes]
    middle = START + timedelta(days=cut)
    first = weighted_sum(events, Period(START, middle)) * cut
    second = weighted_sum(events, Period(middle, APRIL.end)) * (30 - cut)
    assert first + second == weighted_sum(events, APRIL) * 30


def test_only_sums_and_counts_add_up_over_days() -> None:
    assert {meter for meter in Meter if meter.adds_up} == {Meter.SUM, Meter.COUNT}
