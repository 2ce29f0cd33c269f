"""What a part of a period costs: starts, trials and changes in the middle of it. Pure.

Shares are local days over the local days of the period being prorated, kept exact and applied in the last
multiplication. Each line is rounded for itself, and a net is the sum of its lines, so it is never rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from svc_infra.billing.money import check_minor, round_half_away
from svc_infra.billing.periods import Period, active_ratio, local_day, midnight
from svc_infra.exceptions import InvalidPeriod, InvalidPrice


class Change(NamedTuple):
    """The two lines of a change in the middle of a period: minor units, the credit zero or negative."""

    credit: int
    charge: int

    @property
    def net(self) -> int:
        """What the change costs (positive) or gives back."""
        return self.credit + self.charge


def prorate(amount: Decimal | Fraction | int, ratio: Fraction) -> int:
    """An amount of minor units times an exact ratio, rounded once; InvalidPrice for a negative ratio."""
    if ratio < 0:
        raise InvalidPrice(f"cannot prorate by {ratio}; a share of a period is 0 or more")
    return check_minor(round_half_away(Fraction(amount) * ratio))


def remaining_ratio(period: Period, at: datetime, zone: tzinfo) -> Fraction:
    """The share of a period's local days from ``at`` on, whose own day counts: 1 before it, 0 after it."""
    if at >= period.end:
        return Fraction(0)
    return active_ratio(period, Period(max(at, period.start), period.end), zone)


def change_plan(old: Decimal | int, new: Decimal | int, remaining: Fraction) -> Change:
    """A change of price within a period: the rest of the old is credited and the rest of the new charged."""
    return Change(-prorate(old, remaining), prorate(new, remaining))


def change_interval(old: Decimal | int, new: Decimal | int, remaining: Fraction) -> Change:
    """A change to another interval: the rest of the old period is credited and a whole new one begins."""
    return Change(-prorate(old, remaining), prorate(new, Fraction(1)))


def trial_end(start: datetime, trial_days: int, zone: tzinfo) -> datetime:
    """The local midnight at which a trial of so many days ends; its first day is the one it starts on.

    InvalidPeriod for a negative number of days.
    """
    if trial_days < 0:
        raise InvalidPeriod(f"a trial cannot have {trial_days} days; use 0 for none")
    return midnight(local_day(start, zone) + timedelta(days=trial_days), zone)


def prorate_parts(
    amount: Decimal | int, period: Period, cuts: Sequence[datetime], zone: tzinfo
) -> tuple[int, ...]:
    """The price of a period split at instants within it: as many parts as cuts and one more.

    A part is the price up to its end less the price up to its start, so the parts add up to the rounded
    amount however the period is cut. InvalidPeriod for cuts that are not in the period or in ascending order.
    """
    bounds = [period.start, *cuts, period.end]
    if any(later < earlier for earlier, later in pairwise(bounds)):
        raise InvalidPeriod("a period is cut at ascending instants within it")
    reached = [prorate(amount, 1 - remaining_ratio(period, bound, zone)) for bound in bounds]
    return tuple(later - earlier for earlier, later in pairwise(reached))
