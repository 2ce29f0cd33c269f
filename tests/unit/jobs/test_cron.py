from __future__ import annotations

import calendar
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_infra.exceptions import InvalidSchedule
from svc_infra.jobs.cron import CronSchedule

NEW_YORK, LORD_HOWE, APIA, CHATHAM = (
    "America/New_York",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Chatham",
)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def local_fires(expression: str, zone: str, after: str, until: str) -> list[str]:
    """The fires between two wall-clock times of ``zone``, as local times with their offset."""
    tz = ZoneInfo(zone)
    bounds = [datetime.fromisoformat(text).replace(tzinfo=tz) for text in (after, until)]
    fires = CronSchedule(expression, zone).fires_between(*bounds)
    return [fire_at.astimezone(tz).strftime("%d %H:%M %z") for fire_at in fires]


@pytest.mark.parametrize(
    ("expression", "zone", "after", "until", "expected"),
    [
        # New York 2026: 02:00 to 03:00 is skipped on 8 March, 01:00 to 02:00 comes twice on 1 November.
        ("30 2 * * *", NEW_YORK, "2026-03-07T12", "2026-03-09T12", ["08 03:00 -0400", "09 02:30 -0400"]),
        ("0 3 * * *", NEW_YORK, "2026-03-07T12", "2026-03-08T12", ["08 03:00 -0400"]),
        ("*/10 2 * * *", NEW_YORK, "2026-03-07T12", "2026-03-08T12", ["08 03:00 -0400"]),
        ("30 2,3 * * *", NEW_YORK, "2026-03-07T12", "2026-03-08T12", ["08 03:00 -0400", "08 03:30 -0400"]),
        ("0 2,3 * * *", NEW_YORK, "2026-03-07T12", "2026-03-08T12", ["08 03:00 -0400"]),
        ("30 1 * * *", NEW_YORK, "2026-10-31T12", "2026-11-02T12", ["01 01:30 -0400", "02 01:30 -0500"]),
        ("0 9 * * *", NEW_YORK, "2026-10-31T12", "2026-11-01T12", ["01 09:00 -0500"]),
        ("0,30 1 * * *", NEW_YORK, "2026-10-31T12", "2026-11-01T12", ["01 01:00 -0400", "01 01:30 -0400"]),
        (
            "0 * * * *",
            NEW_YORK,
            "2026-11-01T00:00",
            "2026-11-01T02:00",
            ["01 01:00 -0400", "01 01:00 -0500", "01 02:00 -0500"],
        ),
        (
            "30 1-3/2 * * *",
            NEW_YORK,
            "2026-10-31T12",
            "2026-11-01T12",
            ["01 01:30 -0400", "01 01:30 -0500", "01 03:30 -0500"],
        ),
        (
            "0 * * * *",
            NEW_YORK,
            "2026-03-08T00:30",
            "2026-03-08T04:00",
            ["08 01:00 -0500", "08 03:00 -0400", "08 04:00 -0400"],
        ),
        ("7 * * * *", NEW_YORK, "2026-03-08T01:00", "2026-03-08T03:30", ["08 01:07 -0500", "08 03:07 -0400"]),
        # What does not run every hour loses nothing in a gap.
        (
            "0 */2 * * *",
            NEW_YORK,
            "2026-03-08T00:30",
            "2026-03-08T04:30",
            ["08 03:00 -0400", "08 04:00 -0400"],
        ),
        ("0 */24 * * *", "America/Havana", "2026-03-07T12", "2026-03-08T12", ["08 01:00 -0400"]),
        # Lord Howe shifts by 30 minutes: 02:00 to 02:30 is skipped, 01:30 to 02:00 comes twice.
        ("15 2 * * *", LORD_HOWE, "2026-10-03T12", "2026-10-04T12", ["04 02:30 +1100"]),
        ("45 1 * * *", LORD_HOWE, "2026-04-04T12", "2026-04-05T12", ["05 01:45 +1100"]),
        (
            "*/15 * * * *",
            LORD_HOWE,
            "2026-04-05T01:30",
            "2026-04-05T02:00",
            ["05 01:45 +1100", "05 01:30 +1030", "05 01:45 +1030", "05 02:00 +1030"],
        ),
        # Apia had no 30 December 2011 at all.
        (
            "0 9 * * *",
            APIA,
            "2011-12-28T12",
            "2011-12-31T12",
            ["29 09:00 -1000", "31 00:00 +1400", "31 09:00 +1400"],
        ),
        ("0 0 30 * *", APIA, "2011-12-01T00", "2012-01-01T00", ["31 00:00 +1400"]),
        (
            "0 0 * * *",
            APIA,
            "2011-12-28T12",
            "2012-01-01T00",
            ["29 00:00 -1000", "31 00:00 +1400", "01 00:00 +1400"],
        ),
        (
            "0 * * * *",
            APIA,
            "2011-12-29T22:30",
            "2011-12-31T01:00",
            ["29 23:00 -1000", "31 00:00 +1400", "31 01:00 +1400"],
        ),
        # Chatham is 45 minutes off the hour and changes at 02:45 and 03:45.
        ("0 3 * * *", CHATHAM, "2026-09-26T12", "2026-09-27T12", ["27 03:45 +1345"]),
        ("0 3 * * *", CHATHAM, "2026-04-04T12", "2026-04-05T12", ["05 03:00 +1345"]),
        # A day that the clocks cut short at midnight.
        ("0 0 * * *", "America/Sao_Paulo", "2018-11-03T12", "2018-11-04T12", ["04 01:00 -0200"]),
    ],
)
def test_fires_on_days_on_which_the_clocks_change(
    expression: str, zone: str, after: str, until: str, expected: list[str]
) -> None:
    assert local_fires(expression, zone, after, until) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ("0 0 31 * *", ["2026-01-31", "2026-03-31", "2026-05-31"]),
        ("0 0 L * *", ["2026-01-31", "2026-02-28", "2026-03-31"]),
        ("0 0 1,l * *", ["2026-01-31", "2026-02-01", "2026-02-28"]),
        ("@monthly", ["2026-02-01", "2026-03-01", "2026-04-01"]),
        ("@yearly", ["2027-01-01", "2028-01-01", "2029-01-01"]),
        ("@annually", ["2027-01-01", "2028-01-01", "2029-01-01"]),
        ("@weekly", ["2026-01-04", "2026-01-11", "2026-01-18"]),
        ("@daily", ["2026-01-02", "2026-01-03", "2026-01-04"]),
        ("@midnight", ["2026-01-02", "2026-01-03", "2026-01-04"]),
        ("0 0 * JAN-Mar mon", ["2026-01-05", "2026-01-12", "2026-01-19"]),
        ("0 0 * * 7", ["2026-01-04", "2026-01-11", "2026-01-18"]),
        ("0 0 * * sat-sun", ["2026-01-03", "2026-01-04", "2026-01-10"]),
        ("0 0 * * 5-7", ["2026-01-02", "2026-01-03", "2026-01-04"]),
        ("0 0 13 * fri", ["2026-01-02", "2026-01-09", "2026-01-13"]),
        ("0 0 31 12 *", ["2026-12-31", "2027-12-31", "2028-12-31"]),
    ],
)
def test_fires_on_calendar_days(expression: str, expected: list[str]) -> None:
    fires = CronSchedule(expression).fires_between(utc("2026-01-01"), utc("2050-01-01"))
    assert [fire_at.date().isoformat() for fire_at in islice(fires, 3)] == expected


def test_an_hourly_alias_fires_every_hour() -> None:
    assert CronSchedule("@hourly").next_fire(utc("2026-01-01T00:00:01")) == utc("2026-01-01T01:00")


def test_a_leap_day_is_found_across_a_century_without_one() -> None:
    assert CronSchedule("0 0 29 2 *").next_fire(utc("2096-03-01")) == utc("2104-02-29")


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "0 0 1 1",
        "* * * * * *",
        "0 0 1 1 * 0 2099",
        "@reboot",
        "@every_minute",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * 32 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "5/15 * * * *",
        "22-2 * * * *",
        "R * * * *",
        "H * * * *",
        "? * * * *",
        "1,,2 * * * *",
        "1.5 * * * *",
        "-1 * * * *",
        "* * * foo *",
        "* * L-2 * *",
        "0 0 30 2 *",
        "0 0 31 2,4,6,9,11 *",
    ],
)
def test_an_expression_that_cannot_be_read_or_never_fires_is_refused(expression: str) -> None:
    with pytest.raises(InvalidSchedule):
        CronSchedule(expression)


def test_a_refusal_names_the_field() -> None:
    with pytest.raises(InvalidSchedule, match=r"the hour field '25' .* 0 to 23"):
        CronSchedule("0 25 * * *")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "America", "../etc/passwd", "/etc/localtime", "a\x00b"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(InvalidSchedule, match="time zone"):
        CronSchedule("@daily", zone)


def test_a_naive_instant_is_refused() -> None:
    with pytest.raises(ValueError, match="offset"):
        CronSchedule("@daily").next_fire(datetime(2026, 1, 1))  # noqa: DTZ001 - a naive one is the case


def test_the_start_is_excluded_and_the_end_included() -> None:
    fires = list(CronSchedule("0 0 * * *").fires_between(utc("2026-01-01"), utc("2026-01-03")))
    assert fires == [utc("2026-01-02"), utc("2026-01-03")]


def test_schedules_with_the_same_rule_are_equal() -> None:
    assert CronSchedule("@daily", "UTC") == CronSchedule("@daily", "UTC")


class Field(NamedTuple):
    text: str
    values: set[int]


def fields(low: int, high: int) -> st.SearchStrategy[Field]:
    """Cron fields together with the numbers that they mean, so that no parser is needed to judge."""
    numbers = st.integers(low, high)
    every = st.just(Field("*", set(range(low, high + 1))))
    steps = st.integers(2, 12).map(lambda n: Field(f"*/{n}", set(range(low, high + 1, n))))
    lists = st.sets(numbers, min_size=1, max_size=3).map(lambda s: Field(",".join(map(str, sorted(s))), s))
    ranges = st.tuples(numbers, numbers).map(
        lambda pair: Field(f"{min(pair)}-{max(pair)}", set(range(min(pair), max(pair) + 1)))
    )
    return every | steps | lists | ranges


CHANGES = [
    (NEW_YORK, "2026-03-08T07:00"),
    (NEW_YORK, "2026-11-01T06:00"),
    (LORD_HOWE, "2026-04-04T15:00"),
    (LORD_HOWE, "2026-10-03T15:30"),
    (APIA, "2011-12-30T10:00"),
    (CHATHAM, "2026-04-04T14:00"),
    (CHATHAM, "2026-09-26T14:00"),
    ("Europe/Berlin", "2026-10-25T01:00"),
    ("America/Havana", "2026-03-08T05:00"),
    ("America/Havana", "2026-11-01T05:00"),
    ("Pacific/Kwajalein", "1993-08-21T12:00"),
    ("Asia/Kolkata", "2024-02-29T00:00"),
]


def is_match(wall: datetime, minute: Field, hour: Field, day: Field, weekday: Field) -> bool:
    day_fits, weekday_fits = wall.day in day.values, wall.isoweekday() % 7 in weekday.values
    day_is_free, weekday_is_free = len(day.values) == 31, len(weekday.values) == 7
    either = day_fits or weekday_fits
    date_fits = (day_fits and weekday_fits) if day_is_free or weekday_is_free else either
    return wall.minute in minute.values and wall.hour in hour.values and date_fits


def expected_fires(
    zone: str, start: datetime, end: datetime, minute: Field, hour: Field, day: Field, weekday: Field
) -> list[datetime]:
    """A second implementation: walk through every minute of real time and look at the local clock."""
    tz, at, fires = ZoneInfo(zone), start, []
    follows_elapsed_time = "*" in hour.text or len(hour.values) == 24
    before = at.astimezone(tz)
    while (at := at + MINUTE) <= end:
        local = at.astimezone(tz)
        wall, skipped = before.replace(tzinfo=None, fold=0) + MINUTE, False
        while wall < local.replace(tzinfo=None, fold=0):
            skipped = skipped or is_match(wall, minute, hour, day, weekday)
            wall += MINUTE
        matches = is_match(local, minute, hour, day, weekday) and (local.fold == 0 or follows_elapsed_time)
        if matches or (skipped and len(hour.values) < 24):
            fires.append(at)
        before = local
    return fires


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(CHANGES),
    fields(0, 59),
    fields(0, 23),
    st.just(Field("*", set(range(1, 32)))) | fields(1, 31),
    st.just(Field("*", set(range(7)))) | fields(0, 6),
    st.integers(-2_000, 100),
)
def test_fires_are_those_of_a_minute_by_minute_walk(
    change: tuple[str, str], minute: Field, hour: Field, day: Field, weekday: Field, start_minutes: int
) -> None:
    zone, changed_at = change
    start = utc(changed_at) + start_minutes * MINUTE
    end = utc(changed_at) + 30 * HOUR
    schedule = CronSchedule(f"{minute.text} {hour.text} {day.text} * {weekday.text}", zone)
    fires = list(islice(schedule.fires_between(start, end), 400))
    assert fires == expected_fires(zone, start, end, minute, hour, day, weekday)[:400]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(CHANGES),
    st.sampled_from(["*/15 * * * *", "0 * * * *", "30 1 * * *", "30 2 * * *", "0 */6 * * *", "0 0 L * *"]),
    st.timedeltas(-2 * DAY, 2 * DAY),
)
def test_a_scheduler_restarted_at_any_instant_goes_on_where_it_was(
    change: tuple[str, str], expression: str, shift: timedelta
) -> None:
    zone, changed_at = change
    schedule = CronSchedule(expression, zone)
    start, end = utc(changed_at) - 2 * DAY, utc(changed_at) + 2 * DAY
    restart_at = utc(changed_at) + shift
    fires = list(schedule.fires_between(start, end))
    resumed = [*schedule.fires_between(start, restart_at), *schedule.fires_between(restart_at, end)]
    assert resumed == fires
    assert all(one < other for one, other in pairwise(fires))
    assert all(fire_at.tzinfo is UTC for fire_at in fires)
    assert schedule.next_fire(restart_at) > restart_at


@settings(deadline=None, max_examples=30)
@given(st.dates(date(1970, 1, 1), date(2200, 1, 1)))
def test_a_month_end_never_drifts(day: date) -> None:
    fire_at = CronSchedule("0 0 L * *").next_fire(datetime(day.year, day.month, 1, tzinfo=UTC))
    assert fire_at.day == calendar.monthrange(day.year, day.month)[1]
