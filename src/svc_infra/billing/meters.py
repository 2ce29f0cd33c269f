"""What a metric makes of a period's events: sum, count, maximum, latest, unique count, weighted sum. Pure.

Without events every meter but the weighted sum is 0; that one keeps what the period began with.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import NamedTuple

from svc_infra.billing.money import MONEY_CONTEXT
from svc_infra.billing.periods import Period
from svc_infra.billing.units import as_quantity

_ZERO = Decimal(0)
_MICROSECOND = timedelta(microseconds=1)


class Meter(StrEnum):
    """How the events of a metric become its quantity."""

    SUM = "sum"
    COUNT = "count"
    MAXIMUM = "maximum"
    LATEST = "latest"
    UNIQUE_COUNT = "unique_count"
    WEIGHTED_SUM = "weighted_sum"

    @property
    def adds_up(self) -> bool:
        """Whether the values of days add up to the value of their period."""
        return self in (Meter.SUM, Meter.COUNT)


class MeteredEvent(NamedTuple):
    """A usage event as a meter sees it.

    ``amount`` is a quantity; of a weighted sum it is a change and may be negative. ``key`` is the metadata
    value that a unique count counts, None where the event has none.
    """

    at: datetime
    amount: Decimal
    key: str | None = None


def measure(
    meter: Meter, events: Iterable[MeteredEvent], period: Period, *, initial: Decimal = _ZERO
) -> Decimal:
    """The quantity of a period's events, in the order in which they were recorded.

    ``initial`` is the level that a weighted sum begins the period with. Events outside the period do not
    count, except that a weighted sum takes the changes before it into the level.
    """
    if meter is Meter.WEIGHTED_SUM:
        return as_quantity(weighted_sum(events, period, initial=initial))
    within = [event for event in events if event.at in period]
    match meter:
        case Meter.SUM:
            return total(within)
        case Meter.COUNT:
            return Decimal(len(within))
        case Meter.MAXIMUM:
            return max((event.amount for event in within), default=_ZERO)
        case Meter.LATEST:
            return latest(within)
        case Meter.UNIQUE_COUNT:
            return Decimal(unique_count(within))


def total(events: Iterable[MeteredEvent]) -> Decimal:
    """The sum of the amounts, exact."""
    added = _ZERO
    for event in events:
        added = MONEY_CONTEXT.add(added, event.amount)
    return added


def latest(events: Iterable[MeteredEvent]) -> Decimal:
    """The amount of the last event in time; of several at one instant, the one recorded last."""
    last: MeteredEvent | None = None
    for event in events:
        if last is None or event.at >= last.at:
            last = event
    return _ZERO if last is None else last.amount


def unique_count(events: Iterable[MeteredEvent]) -> int:
    """How many different keys the events have; an event without a key does not count."""
    return len({event.key for event in events if event.key is not None})


def weighted_sum(events: Iterable[MeteredEvent], period: Period, *, initial: Decimal = _ZERO) -> Fraction:
    """The average level over the period, each level weighted by how long it lasted; exact.

    Every event changes the level from its instant on: a gigabyte kept for half of a month is 1/2. A change
    before the period is part of the level that it begins with; one at or after its end does not count.
    """
    whole = (period.end - period.start) // _MICROSECOND
    value = Fraction(initial)
    for event in events:
        lasts = (period.end - max(event.at, period.start)) // _MICROSECOND
        if lasts > 0:
            value += Fraction(event.amount) * Fraction(lasts, whole)
    return value
