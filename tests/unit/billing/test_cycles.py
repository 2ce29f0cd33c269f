"""Billing cycles and the fees of their cells."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.billing.cycles import CALENDAR_MONTHS, Cycle, anniversary, parse_cycle
from svc_infra.billing.fixed_fees import fee, share_of
from svc_infra.billing.periods import Period, midnight, zone
from svc_infra.billing.rating import PriceModel, PriceTerms
from svc_infra.exceptions import InvalidPeriod

ZONES = st.sampled_from([UTC, zone("America/New_York"), zone("Pacific/Apia"), zone("Asia/Kolkata")])
DAYS = st.dates(date(2012, 1, 1), date(2040, 12, 31))
CYCLES = st.one_of(
    st.integers(1, 31).map(lambda day: anniversary(date(2000, 1, day))),
    DAYS.map(lambda day: anniversary(day, "year")),
)


def monthly(amount: str) -> PriceTerms:
    return PriceTerms(
        "base", "usd", PriceModel.FIXED, unit_amount=Decimal(amount), recurring_interval="month"
    )


def test_the_31st_gives_the_last_day_of_shorter_months() -> None:
    cycle = anniversary(date(2025, 1, 31))
    assert cycle.cell(date(2025, 2, 27)) == (date(2025, 1, 31), date(2025, 2, 28))
    assert cycle.cell(date(2025, 2, 28)) == (date(2025, 2, 28), date(2025, 3, 31))
    assert cycle.cell(date(2024, 3, 30)) == (date(2024, 2, 29), date(2024, 3, 31))


def test_a_leap_day_anchors_years() -> None:
    cycle = anniversary(date(2024, 2, 29), "year")
    assert cycle.cell(date(2025, 2, 28)) == (date(2025, 2, 28), date(2026, 2, 28))
    assert cycle.cell(date(2024, 2, 29)) == (date(2024, 2, 29), date(2025, 2, 28))


def test_months_from_the_first_are_the_calendars() -> None:
    assert anniversary(date(2025, 7, 1)) == CALENDAR_MONTHS
    assert parse_cycle("calendar") == CALENDAR_MONTHS


@given(CYCLES)
def test_a_cycle_is_read_from_its_name(cycle: Cycle) -> None:
    assert parse_cycle(cycle.name) == cycle


@pytest.mark.parametrize("name", ["", "week:1", "month:32", "month:0", "year:02-30", "month:1x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidPeriod):
        parse_cycle(name)


@given(CYCLES, DAYS, ZONES)
def test_periods_of_a_cycle_tile_all_time(cycle: Cycle, day: date, where: tzinfo) -> None:
    instant = midnight(day, where) + timedelta(hours=5)
    period = cycle.period_at(instant, where)
    assert instant in period
    assert cycle.period_at(period.end, where).start == period.end
    assert cycle.period_before(period.end, where) == period
    assert cycle.period_at(period.end - timedelta(seconds=1), where) == period


@given(
    CYCLES,
    st.lists(DAYS, min_size=2, max_size=6, unique=True),
    st.decimals("0", "100000", places=3),
    st.integers(1, 9),
    ZONES,
)
def test_the_parts_of_any_time_cost_what_it_costs(
    cycle: Cycle, cuts: list[date], amount: Decimal, seats: int, where: tzinfo
) -> None:
    terms, grid = monthly(str(amount)), cycle.monthly
    bounds = [midnight(day, where) for day in sorted(cuts)]
    periods = [Period(a, b) for a, b in itertools.pairwise(bounds) if a < b]
    if not periods:
        return
    whole = Period(bounds[0], bounds[-1])
    fees = [fee(terms, Decimal(seats), period, grid, where) for period in periods]
    assert sum(each.amount for each in fees) == fee(terms, Decimal(seats), whole, grid, where).amount
    assert sum(each.share for each in fees) == share_of(whole, grid, where)


def test_a_start_in_the_middle_costs_the_share_of_days_left() -> None:
    half = Period(datetime(2025, 1, 16, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC))
    assert fee(monthly("500"), Decimal(1), half, CALENDAR_MONTHS, UTC) == (258, Fraction(16, 31))
    first = Period(datetime(2025, 1, 1, tzinfo=UTC), half.start)
    assert fee(monthly("500"), Decimal(1), first, CALENDAR_MONTHS, UTC) == (242, Fraction(15, 31))
