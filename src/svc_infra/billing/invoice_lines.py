"""Which lines an invoice has and what each costs: decided from prices and subscriptions, without I/O.

One line per price and stretch of time in which it applied, rounded once. Usage lines are planned first and
rated when their quantities have been summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from svc_infra.billing.money import check_minor
from svc_infra.billing.periods import Period, active_ratio, local_day, month_bounds, overlap
from svc_infra.billing.rating import PriceTerms, rate
from svc_infra.exceptions import AmbiguousPrice

_ZERO, _ONE = Decimal(0), Decimal(1)
_WHOLE = Fraction(1)


@dataclass(frozen=True, slots=True)
class PlanPrice:
    """A version of a stored price; without a plan it applies to every tenant.

    It bills what begins on the local day ``effective_on`` or later and before ``ended_on``.
    """

    id: str
    plan_id: str | None
    terms: PriceTerms
    effective_on: date = date.min
    ended_on: date | None = None

    def is_in_force(self, day: date) -> bool:
        """Whether it bills what begins on this day."""
        return self.effective_on <= day and (self.ended_on is None or day < self.ended_on)


class ActiveSubscription(NamedTuple):
    """A subscription and the part of the invoice's period in which it is active."""

    id: str
    plan_id: str
    active: Period


class LinePlan(NamedTuple):
    """A price that applies over a part of the invoice's period."""

    price: PlanPrice
    subscription_id: str | None
    period: Period


class Line(NamedTuple):
    """A rated line. ``quantity`` is not money; ``amount`` is, in minor units."""

    plan: LinePlan
    quantity: Decimal
    amount: int


class PriceList:
    """The prices of one currency, by plan."""

    def __init__(self, prices: Iterable[PlanPrice]) -> None:
        self._by_plan: dict[str | None, list[PlanPrice]] = {}
        # Fixed prices first, then by key: the order of the lines.
        for price in sorted(prices, key=lambda price: (price.terms.metric is not None, price.terms.key)):
            self._by_plan.setdefault(price.plan_id, []).append(price)

    def of(self, plan_id: str | None, day: date) -> list[PlanPrice]:
        """The prices of a plan, or those without one, for what begins on this day."""
        return [price for price in self._by_plan.get(plan_id, ()) if price.is_in_force(day)]


def plan_lines(
    period: Period, subscriptions: Sequence[ActiveSubscription], prices: PriceList, zone: tzinfo
) -> list[LinePlan]:
    """Every price that applies in the period, with the part of it in which it does.

    The version of a price is the one in force on the local day on which that part begins.

    Raises:
        AmbiguousPrice: two of them price the same metric at the same instant.
    """
    plans = [LinePlan(price, None, period) for price in prices.of(None, local_day(period.start, zone))]
    for subscription in subscriptions:
        plans += [
            LinePlan(price, subscription.id, subscription.active)
            for price in prices.of(subscription.plan_id, local_day(subscription.active.start, zone))
        ]
    if len(plans) > 1:
        plans.sort(key=_line_order)
        _refuse_second_prices(plans)
    return plans


def rate_lines(
    plans: Sequence[LinePlan], quantities: Mapping[int, Decimal], period: Period, zone: tzinfo
) -> list[Line]:
    """The lines of an invoice; ``quantities`` are the sums of usage by position in ``plans``.

    A fixed price is charged for its share of each calendar month, and so is the minimum of a usage price. A
    metric without usage has no line, unless its price costs something without.

    Raises:
        AmountTooLarge: an amount does not fit 64-bit minor units.
    """
    lines = []
    for position, plan in enumerate(plans):
        terms = plan.price.terms
        if terms.metric is None:
            lines.append(Line(plan, _ONE, _fixed_amount(terms, plan.period, zone)))
        elif (quantity := quantities.get(position)) or terms.bills_zero_usage:
            quantity = quantity or _ZERO
            share = months_in(plan.period, zone) if terms.minimum_amount else _WHOLE
            lines.append(Line(plan, quantity, rate(terms, quantity, minimum_ratio=share).amount))
    return lines


def total_of(lines: Iterable[Line]) -> int:
    """The sum of the lines in minor units; AmountTooLarge if it does not fit 64 bits."""
    return check_minor(sum(line.amount for line in lines))


@lru_cache(maxsize=4096)
def months_in(active: Period, zone: tzinfo) -> Fraction:
    """How many calendar months of ``zone`` a period covers, each counted by its share of local days.

    A whole month is 1, and the two halves of a month add up to 1 however it is split.
    """
    first = local_day(active.start, zone)
    year, month = first.year, first.month
    covered = Fraction(0)
    while True:
        calendar_month = month_bounds(year, month, zone)
        if calendar_month.start >= active.end:
            return covered
        if shared := overlap(calendar_month, active):
            covered += active_ratio(calendar_month, shared, zone)
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)


# Terms are frozen, so the charge of a price for a whole month is worked out once and not per tenant.
@lru_cache(maxsize=4096)
def _fixed_amount(terms: PriceTerms, active: Period, zone: tzinfo) -> int:
    return rate(terms, _ONE, ratio=months_in(active, zone)).amount


def _line_order(plan: LinePlan) -> tuple[bool, str, Period]:
    terms = plan.price.terms
    return (terms.metric is not None, terms.key, plan.period)


def _refuse_second_prices(plans: Iterable[LinePlan]) -> None:
    by_metric: dict[str, list[LinePlan]] = {}
    for plan in plans:
        metric = plan.price.terms.metric
        if metric is None:
            continue
        for other in by_metric.setdefault(metric, []):
            if overlap(plan.period, other.period):
                at = max(plan.period, other.period).start
                raise AmbiguousPrice(
                    f"metric {metric!r} has two prices at {at.isoformat()}: "
                    f"{other.price.terms.key!r} and {plan.price.terms.key!r}; end one of the subscriptions"
                )
        by_metric[metric].append(plan)
