"""Half-open periods and a tenant's local days and months, as aware UTC instants.

A day runs from one local midnight to the next, so it has 23 or 25 hours when the clocks change. Where the
clocks jump over midnight, the day begins at the first instant that exists. Shares of a period are counted in
local days, never in seconds.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from fractions import Fraction
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from svc_infra.exceptions import InvalidPeriod

_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
_MONTHS_OF = {"month": 1, "quarter": 3, "semiannual": 6, "year": 12}


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """The instants from ``start`` up to, but not including, ``end``; both are kept as aware UTC.

    InvalidPeriod if one of them has no offset or the period would be empty.
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is not UTC or self.end.tzinfo is not UTC:
            object.__setattr__(self, "start", _as_utc(self.start))
            object.__setattr__(self, "end", _as_utc(self.end))
        if self.start >= self.end:
            raise InvalidPeriod(
                f"a period must start before it ends, not {self.start.isoformat()} to {self.end.isoformat()}"
            )

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end


def zone(name: str) -> tzinfo:
    """The time zone of an IANA name; InvalidPeriod if there is none.

    UTC comes back as ``datetime.UTC``, which every function here answers without a table look-up.
    """
    if name in ("UTC", "Etc/UTC"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidPeriod(
            f"{name!r} is not a known time zone; use an IANA name such as 'Europe/Zurich'"
        ) from error


def local_day(instant: datetime, zone: tzinfo) -> date:
    """The date on the wall of ``zone`` at an aware instant."""
    if instant.tzinfo is zone:
        return instant.date()
    if instant.tzinfo is None:
        raise _naive(instant)
    return instant.astimezone(zone).date()


def day_bounds(day: date, zone: tzinfo) -> Period:
    """The local day of a date, or of an aware instant, as a period.

    InvalidPeriod for a date that the zone left out (2011-12-30 in Pacific/Apia).
    """
    # A datetime is a date, too: an instant means the day that it falls on.
    local = local_day(day, zone) if isinstance(day, datetime) else day
    return Period(midnight(local, zone), midnight(_next_day(local), zone))


def floor_to_day(instant: datetime, zone: tzinfo) -> datetime:
    """The start of the local day that an aware instant falls on, in UTC."""
    return midnight(local_day(instant, zone), zone)


def is_local_midnight(instant: datetime, zone: tzinfo) -> bool:
    """Whether a local day of ``zone`` begins at this aware instant."""
    return floor_to_day(instant, zone) == instant


def month_bounds(year: int, month: int, zone: tzinfo) -> Period:
    """A calendar month of ``zone`` as a period."""
    try:
        first = date(year, month, 1)
    except ValueError as error:
        raise InvalidPeriod(f"there is no month {month} of the year {year}") from error
    return Period(midnight(first, zone), midnight(add_months(first, 1), zone))


def previous_month(instant: datetime, zone: tzinfo) -> Period:
    """The calendar month before the one that an aware instant falls on."""
    first = add_months(local_day(instant, zone).replace(day=1), -1)
    return month_bounds(first.year, first.month, zone)


def previous_day(instant: datetime, zone: tzinfo) -> Period:
    """The local day that ended last at an aware instant."""
    today = floor_to_day(instant, zone)
    return day_bounds(today - _SECOND, zone)


def days_in(period: Period, zone: tzinfo) -> int:
    """How many local dates a period bounded by local midnights has, whatever their length in hours."""
    return (local_day(period.end, zone) - local_day(period.start, zone)).days


def add_months(anchor: date, months: int) -> date:
    """The anchor's day ``months`` later, or the last day of a shorter month.

    Always count from the original anchor: the 31st gives 28 February and then 31 March, where adding one
    month at a time would stay on the 28th.
    """
    year, month = divmod(anchor.year * 12 + anchor.month - 1 + months, 12)
    if not 1 <= year <= 9999:
        raise InvalidPeriod(f"{months} months from {anchor} is not in the years 1 to 9999")
    return date(year, month + 1, min(anchor.day, monthrange(year, month + 1)[1]))


def interval_start(anchor: date, interval: str, index: int) -> date:
    """The first day of period number ``index`` (from 0) of a cycle anchored at a date.

    ``interval`` is ``day``, ``week``, ``month``, ``quarter``, ``semiannual`` or ``year``; anything else is
    InvalidPeriod.
    """
    if interval in ("day", "week"):
        return anchor + timedelta(days=index if interval == "day" else 7 * index)
    months = _MONTHS_OF.get(interval)
    if months is None:
        raise InvalidPeriod(
            f"{interval!r} is not an interval; use day, week, month, quarter, semiannual or year"
        )
    return add_months(anchor, months * index)


def overlap(a: Period, b: Period) -> Period | None:
    """What two periods have in common, or None if they only touch or lie apart."""
    start, end = max(a.start, b.start), min(a.end, b.end)
    return Period(start, end) if start < end else None


def active_ratio(period: Period, active: Period, zone: tzinfo) -> Fraction:
    """The share of a period's local days that lie in ``active``: exact, from 0 to 1.

    The denominator is the days of the period being prorated. Apply it in the last multiplication, as
    ``rating.rate(..., ratio=...)`` does. InvalidPeriod for a period of less than a day.
    """
    whole = days_in(period, zone)
    if whole == 0:
        raise InvalidPeriod("a period of less than one local day has no days to prorate")
    shared = overlap(period, active)
    return Fraction(days_in(shared, zone), whole) if shared else Fraction(0)


def _as_utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise _naive(instant)
    return instant.astimezone(UTC)


def _naive(instant: datetime) -> InvalidPeriod:
    return InvalidPeriod(f"{instant.isoformat()} has no offset; pass an aware datetime")


def _next_day(day: date) -> date:
    try:
        return day + _DAY
    except OverflowError as error:
        raise InvalidPeriod(f"the day after {day} is beyond the calendar") from error


def midnight(day: date, zone: tzinfo) -> datetime:
    """The instant, in UTC, at which a local date begins."""
    if zone is UTC:
        return datetime(day.year, day.month, day.day, tzinfo=UTC)
    return _zoned_midnight(day, zone)


# Tenants of one zone ask for the same few days again and again.
@lru_cache(maxsize=4096)
def _zoned_midnight(day: date, zone: tzinfo) -> datetime:
    wall = datetime(day.year, day.month, day.day)  # noqa: DTZ001  # a wall time; its zone is put on below
    try:
        instant = wall.replace(tzinfo=zone).astimezone(UTC)
        if instant.astimezone(zone).replace(tzinfo=None) == wall:
            return instant
        # The clocks jump over this midnight. Read with the offset of after the jump it lies before the jump,
        # and with that of before the jump (fold 0) behind it; the jump itself is the first valid instant.
        before = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    except OverflowError as error:
        raise InvalidPeriod(f"midnight of {day} in {zone} is beyond the calendar") from error
    return _first_instant(lambda at: at.astimezone(zone).replace(tzinfo=None) >= wall, before, instant)


def _first_instant(has_begun: Callable[[datetime], bool], before: datetime, after: datetime) -> datetime:
    """The first whole second at which ``has_begun``, known to be false at ``before``, true at ``after``."""
    while after - before > _SECOND:
        middle = before + (after - before) // 2
        middle = middle.replace(microsecond=0)
        if has_begun(middle):
            after = middle
        else:
            before = middle
    return after
