"""Billing cycles: how time is cut into periods of invoices, and into cells of recurring prices. Pure.

A cycle is stored by its name: ``calendar`` (months from the 1st), ``month:31`` (months anchored on a day) or
``year:02-29``. Every bound is derived from the anchor, never from the bound before it, so the 31st gives 31
January, 28 February and 31 March.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from functools import lru_cache

from svc_infra.billing.periods import Period, add_months, local_day, midnight, overlap
from svc_infra.exceptions import InvalidPeriod

CALENDAR = "calendar"
_NAME = re.compile(r"month:(\d\d?)|year:(\d\d)-(\d\d)")
# Any leap year does: only the month and the day of an anchor count.
_LEAP_YEAR = 2000


@dataclass(frozen=True, slots=True)
class Cycle:
    """Cells of so many months, counted from an anchor whose year has no meaning."""

    months: int
    anchor: date

    @property
    def name(self) -> str:
        """The text that it is stored by; ``parse_cycle`` reads it."""
        if self.months == 1:
            return CALENDAR if self.anchor.day == 1 else f"month:{self.anchor.day}"
        return f"year:{self.anchor:%m-%d}"

    @property
    def monthly(self) -> Cycle:
        """The cells of a month of the same anchor."""
        return self if self.months == 1 else Cycle(1, date(_LEAP_YEAR, 1, self.anchor.day))

    def cell(self, day: date) -> tuple[date, date]:
        """The first day of the cell that a day lies in, and that of the next."""
        apart = (day.year - self.anchor.year) * 12 + day.month - self.anchor.month
        index = apart // self.months * self.months
        if add_months(self.anchor, index) > day:
            index -= self.months
        return add_months(self.anchor, index), add_months(self.anchor, index + self.months)

    def period_at(self, instant: datetime, zone: tzinfo) -> Period:
        """The period that an aware instant lies in."""
        first, following = self.cell(local_day(instant, zone))
        return Period(midnight(first, zone), midnight(following, zone))

    def period_before(self, instant: datetime, zone: tzinfo) -> Period:
        """The period that ended last at an aware instant."""
        first, _ = self.cell(local_day(instant, zone))
        return self.period_at(midnight(first - timedelta(days=1), zone), zone)

    def cells_of(self, active: Period, zone: tzinfo) -> Iterator[tuple[Period, Period]]:
        """Every cell that shares time with ``active``, in order, and the part that it shares."""
        cell = self.period_at(active.start, zone)
        while shared := overlap(cell, active):
            yield cell, shared
            if cell.end >= active.end:
                return
            cell = self.period_at(cell.end, zone)


CALENDAR_MONTHS = Cycle(1, date(_LEAP_YEAR, 1, 1))


def anniversary(anchor: date, interval: str = "month") -> Cycle:
    """The cycle of months or years anchored on a day; months from the 1st are the calendar's."""
    if interval == "year":
        return Cycle(12, date(_LEAP_YEAR, anchor.month, anchor.day))
    if interval != "month":
        raise InvalidPeriod(f"{interval!r} is not an interval of a billing cycle; use month or year")
    return Cycle(1, date(_LEAP_YEAR, 1, anchor.day))


@lru_cache(maxsize=512)
def parse_cycle(name: str) -> Cycle:
    """The cycle of a stored name; InvalidPeriod for anything else."""
    if name == CALENDAR:
        return CALENDAR_MONTHS
    match = _NAME.fullmatch(name)
    try:
        if match is not None and match[1]:
            return Cycle(1, date(_LEAP_YEAR, 1, int(match[1])))
        if match is not None:
            return Cycle(12, date(_LEAP_YEAR, int(match[2]), int(match[3])))
    except ValueError:
        pass
    raise InvalidPeriod(f"{name!r} is not a billing cycle; it is 'calendar', 'month:15' or 'year:02-29'")
