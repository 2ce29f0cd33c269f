from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.billing.periods import (
    Period,
    active_ratio,
    add_months,
    day_bounds,
    days_in,
    floor_to_day,
    interval_start,
    is_local_midnight,
    local_day,
    month_bounds,
    overlap,
    previous_day,
    previous_month,
    zone,
)
from svc_infra.exceptions import InvalidPeriod

HOUR = timedelta(hours=1)
ZONES = ["UTC", "Europe/Zurich", "America/New_York", "Asia/Kolkata", "America/Sao_Paulo", "Africa/Cairo"]

any_zone = st.sampled_from(ZONES).map(zone)
# Local clocks went back over midnight in some zones of the past; days are then not in one piece.
modern_days = st.dates(min_value=date(2000, 1, 1), max_value=date(2037, 12, 1))
modern_instants = st.integers(0, 37 * 365 * 24 * 3600).map(
    lambda seconds: datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def days(start: str, end: str) -> Period:
    return Period(utc(start), utc(end))


def test_a_period_contains_its_start_and_not_its_end() -> None:
    period = days("2025-01-01", "2025-02-01")
    assert period.start in period
    assert period.end not in period
    assert period.end - timedelta(microseconds=1) in period


def test_a_period_is_kept_in_utc() -> None:
    east = timezone(timedelta(hours=2))
    period = Period(datetime(2025, 1, 1, 2, tzinfo=east), datetime(2025, 1, 2, 2, tzinfo=east))
    assert period == days("2025-01-01", "2025-01-02")
    assert period.start.tzinfo is UTC


@pytest.mark.parametrize("end", ["2025-01-01", "2024-12-31"])
def test_an_empty_or_inverted_period_is_refused(end: str) -> None:
    with pytest.raises(InvalidPeriod, match="must start before it ends"):
        days("2025-01-01", end)


def test_an_instant_without_an_offset_is_refused() -> None:
    naive = utc("2025-01-01").replace(tzinfo=None)
    with pytest.raises(InvalidPeriod, match="no offset"):
        Period(naive, utc("2025-01-02"))
    with pytest.raises(InvalidPeriod, match="no offset"):
        local_day(naive, UTC)
    with pytest.raises(InvalidPeriod, match="no offset"):
        local_day(naive, zone("Asia/Kolkata"))


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "Europe", "\0"])
def test_an_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidPeriod, match="not a known time zone"):
        zone(name)


@pytest.mark.parametrize(
    ("instant", "name", "day"),
    [
        ("2023-02-12T18:00:00", "Asia/Kolkata", "2023-02-12"),
        ("2023-02-28T19:00:00", "Asia/Kolkata", "2023-03-01"),
        ("2025-01-01T00:00:00", "UTC", "2025-01-01"),
        ("2025-01-01T04:59:59", "America/New_York", "2024-12-31"),
    ],
)
def test_an_event_belongs_to_the_local_day(instant: str, name: str, day: str) -> None:
    assert local_day(utc(instant), zone(name)).isoformat() == day


@pytest.mark.parametrize(
    ("day", "name", "start", "hours"),
    [
        ("2025-03-30", "Europe/Zurich", "2025-03-29T23:00:00", 23),
        ("2025-10-26", "Europe/Zurich", "2025-10-25T22:00:00", 25),
        ("2025-06-01", "UTC", "2025-06-01T00:00:00", 24),
        # The clocks went from midnight to one o'clock, so the day began at one.
        ("2018-11-04", "America/Sao_Paulo", "2018-11-04T03:00:00", 23),
        ("2023-04-28", "Africa/Cairo", "2023-04-27T22:00:00", 23),
        # Midnight was passed twice: the day began with the first.
        ("2024-11-03", "America/Havana", "2024-11-03T04:00:00", 25),
        # From half past eleven to half past twelve: the day began with the jump.
        ("1919-03-31", "America/Toronto", "1919-03-31T04:30:00", 23.5),
    ],
)
def test_a_day_runs_from_its_first_instant_to_the_next_days(
    day: str, name: str, start: str, hours: float
) -> None:
    bounds = day_bounds(date.fromisoformat(day), zone(name))
    assert bounds.start == utc(start)
    assert bounds.end - bounds.start == hours * HOUR
    assert bounds.start.tzinfo is UTC


def test_a_date_that_the_zone_left_out_has_no_bounds_and_leaves_no_hole() -> None:
    apia = zone("Pacific/Apia")
    with pytest.raises(InvalidPeriod):
        day_bounds(date(2011, 12, 30), apia)
    assert day_bounds(date(2011, 12, 29), apia).end == day_bounds(date(2011, 12, 31), apia).start
    assert previous_day(day_bounds(date(2011, 12, 31), apia).start, apia) == day_bounds(
        date(2011, 12, 29), apia
    )


def test_the_bounds_of_an_instant_are_those_of_its_local_day() -> None:
    kolkata = zone("Asia/Kolkata")
    assert day_bounds(utc("2023-02-28T19:00:00"), kolkata) == day_bounds(date(2023, 3, 1), kolkata)


def test_the_last_day_of_the_calendar_is_refused_and_no_overflow() -> None:
    with pytest.raises(InvalidPeriod):
        day_bounds(date.max, UTC)
    with pytest.raises(InvalidPeriod):
        day_bounds(date.min, zone("Asia/Kolkata"))
    with pytest.raises(InvalidPeriod):
        month_bounds(9999, 12, UTC)
    with pytest.raises(InvalidPeriod):
        month_bounds(2025, 13, UTC)


@given(modern_instants, any_zone)
def test_an_instant_lies_in_the_bounds_of_its_local_day(instant: datetime, where: tzinfo) -> None:
    bounds = day_bounds(instant, where)
    assert instant in bounds
    assert bounds.start == floor_to_day(instant, where)
    assert is_local_midnight(bounds.start, where)
    assert is_local_midnight(bounds.end, where)
    assert is_local_midnight(instant, where) == (instant == bounds.start)


@given(modern_days, any_zone)
def test_days_tile_without_gap_or_overlap(day: date, where: tzinfo) -> None:
    today = day_bounds(day, where)
    tomorrow = day_bounds(day + timedelta(days=1), where)
    assert today.end == tomorrow.start
    assert previous_day(today.end, where) == today
    assert previous_day(today.end + HOUR, where) == today


@given(modern_days, any_zone)
def test_the_days_of_a_month_add_up_to_the_month(day: date, where: tzinfo) -> None:
    month = month_bounds(day.year, day.month, where)
    first = day.replace(day=1)
    every_day = [day_bounds(first + timedelta(days=n), where) for n in range(days_in(month, where))]
    assert (every_day[0].start, every_day[-1].end) == (month.start, month.end)
    assert sum((one.end - one.start for one in every_day), timedelta()) == month.end - month.start


@given(modern_days, any_zone)
def test_months_tile_and_the_previous_one_is_the_one_that_ended(day: date, where: tzinfo) -> None:
    this = month_bounds(day.year, day.month, where)
    following = add_months(day.replace(day=1), 1)
    assert this.end == month_bounds(following.year, following.month, where).start
    assert previous_month(this.end, where) == this


@given(modern_days, any_zone)
def test_the_local_date_changes_at_the_start_of_the_day(day: date, where: tzinfo) -> None:
    start = day_bounds(day, where).start
    assert local_day(start, where) == day
    assert local_day(start - timedelta(microseconds=1), where) == day - timedelta(days=1)


def test_the_day_that_ended_is_local() -> None:
    assert previous_day(utc("2025-01-01T00:00:00"), UTC) == days("2024-12-31", "2025-01-01")
    new_york = zone("America/New_York")
    assert previous_day(utc("2025-01-01T04:00:00"), new_york) == day_bounds(date(2024, 12, 30), new_york)
    assert previous_month(utc("2025-01-01T04:00:00"), new_york) == month_bounds(2024, 11, new_york)


@pytest.mark.parametrize(
    ("anchor", "interval", "starts"),
    [
        ("2023-01-31", "month", ["2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30"]),
        ("2024-02-29", "year", ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]),
        ("2024-11-30", "quarter", ["2024-11-30", "2025-02-28", "2025-05-30"]),
        ("2024-12-30", "day", ["2024-12-30", "2024-12-31", "2025-01-01"]),
        ("2024-08-31", "semiannual", ["2024-08-31", "2025-02-28", "2025-08-31"]),
        ("2024-12-30", "week", ["2024-12-30", "2025-01-06"]),
    ],
)
def test_every_period_is_derived_from_the_original_anchor(
    anchor: str, interval: str, starts: list[str]
) -> None:
    found = [interval_start(date.fromisoformat(anchor), interval, index) for index in range(len(starts))]
    assert [day.isoformat() for day in found] == starts


def test_an_unknown_interval_is_refused() -> None:
    with pytest.raises(InvalidPeriod, match="not an interval"):
        interval_start(date(2025, 1, 1), "fortnight", 1)


def test_months_can_be_counted_back_and_stop_at_the_calendars_ends() -> None:
    assert add_months(date(2025, 3, 31), -1) == date(2025, 2, 28)
    assert add_months(date(2025, 1, 15), -13) == date(2023, 12, 15)
    for months in (12 * 9999, -12 * 9999):
        with pytest.raises(InvalidPeriod):
            add_months(date(2025, 1, 1), months)


def test_periods_that_touch_have_nothing_in_common() -> None:
    january, february = days("2025-01-01", "2025-02-01"), days("2025-02-01", "2025-03-01")
    assert overlap(january, february) is None
    assert overlap(january, days("2025-01-31", "2025-03-01")) == days("2025-01-31", "2025-02-01")


@pytest.mark.parametrize(
    ("active", "ratio"),
    [
        (("2022-08-10", "2022-09-01"), Fraction(22, 31)),
        (("2022-07-01", "2022-10-01"), Fraction(1)),
        (("2022-07-01", "2022-08-02"), Fraction(1, 31)),
        (("2022-09-01", "2022-10-01"), Fraction(0)),
    ],
)
def test_a_share_is_counted_in_days_of_the_period_being_prorated(
    active: tuple[str, str], ratio: Fraction
) -> None:
    assert active_ratio(days("2022-08-01", "2022-09-01"), days(*active), UTC) == ratio


def test_a_day_with_a_clock_change_counts_as_one_day() -> None:
    zurich = zone("Europe/Zurich")
    march = month_bounds(2025, 3, zurich)
    short_day = day_bounds(date(2025, 3, 30), zurich)
    assert days_in(march, zurich) == 31
    assert active_ratio(march, short_day, zurich) == Fraction(1, 31)


@given(modern_days, st.integers(0, 27), any_zone)
def test_the_shares_of_both_sides_of_a_cut_add_up_to_one(day: date, offset: int, where: tzinfo) -> None:
    month = month_bounds(day.year, day.month, where)
    cut = day_bounds(day.replace(day=1) + timedelta(days=offset), where).start
    parts = [Period(a, b) for a, b in ((month.start, cut), (cut, month.end)) if a < b]
    assert sum(active_ratio(month, part, where) for part in parts) == 1


def test_a_period_within_a_day_cannot_be_prorated() -> None:
    noon = days("2025-01-01T12:00:00", "2025-01-01T18:00:00")
    with pytest.raises(InvalidPeriod, match="less than one local day"):
        active_ratio(noon, noon, UTC)
