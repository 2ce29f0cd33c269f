"""Which lines an invoice has and what each costs: decided from prices and subscriptions, without I/O.

One line per price and stretch of time in which it applied, rounded once. Usage lines are planned first and
rated when their quantities have been measured. What each kind of line is: ``models.InvoiceLine``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from svc_infra.billing.cycles import CALENDAR_MONTHS, Cycle
from svc_infra.billing.fixed_fees import fee, share_of
from svc_infra.billing.money import check_minor
from svc_infra.billing.periods import Period, local_day, midnight, overlap
from svc_infra.billing.price_list import PlanPrice, PriceList
from svc_infra.billing.rating import PriceTerms, rate, rate_events
from svc_infra.canonical import canonical_decimal
from svc_infra.exceptions import AmbiguousPrice

FIXED, USAGE, TRUE_UP = "fixed", "usage", "true_up"
ADJUSTMENT, UNUSED, CREDIT = "adjustment", "unused", "credit"

_RANK = {FIXED: 0, UNUSED: 1, USAGE: 2, TRUE_UP: 3}
_ZERO, _ONE = Decimal(0), Decimal(1)
_WHOLE = Fraction(1)


class HeldSubscription(NamedTuple):
    """A subscription that is active in the invoice's period, or ended where the period begins."""

    id: str
    plan_id: str
    effective_at: datetime
    ended_at: datetime | None
    seats: Decimal = _ONE
    trial_ends_at: datetime | None = None
    anchor_on: date | None = None

    def active_in(self, period: Period) -> Period | None:
        """The part of a period in which it is active."""
        end = period.end if self.ended_at is None else min(self.ended_at, period.end)
        start = max(self.effective_at, period.start)
        return Period(start, end) if start < end else None

    def charged_from(self) -> datetime:
        """When its fixed prices begin to cost something: after the trial."""
        return self.effective_at if self.trial_ends_at is None else max(self.effective_at, self.trial_ends_at)


class ChargedFee(NamedTuple):
    """A fee that an earlier invoice charged in advance, or (``is_unused``) gave back the rest of."""

    price: PlanPrice
    subscription_id: str
    period: Period
    seats: Decimal
    is_unused: bool = False


class LinePlan(NamedTuple):
    """A price that applies over a part of time; ``grid`` are the cells that its amounts are for."""

    kind: str
    price: PlanPrice
    subscription_id: str | None
    period: Period
    seats: Decimal = _ONE
    grid: Cycle = CALENDAR_MONTHS


class Measured(NamedTuple):
    """What is billed of a planned line: in all, or of one ``group`` of it; ``events`` if those are priced.

    ``measured`` is what the events make together, where it is not the quantity that is billed, and ``units``
    the conversion and rounding that made the difference.
    """

    quantity: Decimal
    group: tuple[str | None, ...] = ()
    events: tuple[Decimal, ...] | None = None
    measured: Decimal | None = None
    units: dict[str, Any] | None = None


class Line(NamedTuple):
    """A rated line. ``quantity`` is not money; ``amount`` is, in minor units.

    ``details`` is what entered the amount beside the terms and the quantity, None if nothing did.
    """

    plan: LinePlan
    quantity: Decimal
    amount: int
    details: dict[str, Any] | None = None
    group: tuple[str | None, ...] = ()


def plan_lines(
    period: Period,
    subscriptions: Sequence[HeldSubscription],
    prices: PriceList,
    zone: tzinfo,
    cycle: Cycle = CALENDAR_MONTHS,
    charged: Sequence[ChargedFee] = (),
) -> list[LinePlan]:
    """Every price that is billed with the invoice of a period, with the part of time that it is billed for.

    The version of a price is the one in force on the local day on which that part begins. Prices without a
    plan are on the calendar's invoices. ``charged`` are the fees charged in advance before.

    Raises:
        AmbiguousPrice: two of them price the same usage at the same instant.
    """
    plans = []
    if cycle == CALENDAR_MONTHS:
        for price in prices.of(None, local_day(period.start, zone)):
            kind = FIXED if price.terms.metric is None else USAGE
            plans.append(LinePlan(kind, price, None, period))
    for held in subscriptions:
        active = held.active_in(period)
        for price in prices.of(held.plan_id, None if active is None else local_day(active.start, zone)):
            if price.terms.metric is not None and active is not None:
                plans.append(LinePlan(USAGE, price, held.id, active, grid=cycle.monthly))
        plans += _fee_plans(period, held, prices, zone, cycle, charged)
    if len(plans) > 1:
        plans.sort(key=_line_order)
        _refuse_second_prices(plans)
    return plans


def rate_lines(
    plans: Sequence[LinePlan],
    measured: Mapping[int, Sequence[Measured]],
    zone: tzinfo,
    *,
    issued: Sequence[Line] = (),
) -> list[Line]:
    """The lines of an invoice; ``measured`` is the usage by position in ``plans``.

    A fixed price is charged for its share of each month, and so is the minimum of a usage price. A metric
    without usage has no line, unless its price costs something without. ``issued`` are lines that stand as
    they are and count towards commitments.

    Raises:
        AmountTooLarge: an amount does not fit 64-bit minor units.
    """
    lines: list[Line] = []
    for position, plan in enumerate(plans):
        if plan.kind == USAGE:
            lines += _usage_lines(plan, measured.get(position, ()), zone)
        elif plan.kind == TRUE_UP:
            lines += _true_up_lines(plan, [*issued, *lines], zone)
        else:
            amount, share = fee(plan.price.terms, plan.seats, plan.period, plan.grid, zone)
            details = None if share == 1 else {"ratio": str(share)}
            lines.append(Line(plan, plan.seats, -amount if plan.kind == UNUSED else amount, details))
    return lines


def total_of(amounts: Iterable[int]) -> int:
    """The sum of amounts in minor units; AmountTooLarge if it does not fit 64 bits."""
    return check_minor(sum(amounts))


def _usage_lines(plan: LinePlan, measured: Sequence[Measured], zone: tzinfo) -> list[Line]:
    terms = plan.price.terms
    lines = []
    for found in measured or (Measured(_ZERO),):
        if not found.quantity and not terms.bills_zero_usage and not found.events:
            continue
        share = share_of(plan.period, plan.grid, zone) if terms.minimum_amount else _WHOLE
        if terms.per_event is not None:
            rated = rate_events(terms, found.events or (), minimum_ratio=share)
        else:
            rated = rate(terms, found.quantity, minimum_ratio=share)
        details: dict[str, Any] = {} if share == 1 else {"minimum_ratio": str(share)}
        if found.group:
            details["group"] = list(found.group)
        if found.measured is not None:
            details |= {"measured": canonical_decimal(found.measured), "units": found.units}
        lines.append(Line(plan, found.quantity, rated.amount, details or None, found.group))
    return lines


def _true_up_lines(plan: LinePlan, lines: Iterable[Line], zone: tzinfo) -> list[Line]:
    """What is missing from a subscription's other lines of the period to its minimum commitment."""
    due, share = fee(plan.price.terms, _ONE, plan.period, plan.grid, zone)
    billed = sum(
        line.amount
        for line in lines
        if line.plan.subscription_id == plan.subscription_id and overlap(line.plan.period, plan.period)
    )
    if due <= billed:
        return []
    details = {"commitment": due, "billed": billed} | ({} if share == 1 else {"ratio": str(share)})
    return [Line(plan, _ONE, due - billed, details)]


def _fee_plans(
    period: Period,
    held: HeldSubscription,
    prices: PriceList,
    zone: tzinfo,
    cycle: Cycle,
    charged: Sequence[ChargedFee],
) -> list[LinePlan]:
    """The fixed prices of a subscription: what of each is due with this period."""
    plans = []
    for key in prices.fixed_keys(held.plan_id):
        versions = prices.versions(held.plan_id, key)
        terms = versions[-1].terms
        grid = _grid(terms, held, cycle, zone)
        if terms.is_advance:
            mine = [
                each for each in charged if (each.subscription_id, each.price.terms.key) == (held.id, key)
            ]
            parts = _advance(period, held, grid, zone, mine)
            plans += [
                LinePlan(UNUSED, each.price, held.id, rest, each.seats, grid)
                for each, rest in _unused(period, held, mine)
            ]
        else:
            parts = _arrears(period, held, grid, zone, is_yearly=terms.recurring_interval == "year")
        kind = TRUE_UP if terms.is_commitment else FIXED
        seats = _ONE if terms.is_commitment else held.seats
        for part in parts:
            day = local_day(part.start, zone)
            plans += [
                LinePlan(kind, price, held.id, part, seats, grid)
                for price in versions
                if price.is_in_force(day)
            ]
    return plans


def _grid(terms: PriceTerms, held: HeldSubscription, cycle: Cycle, zone: tzinfo) -> Cycle:
    if terms.recurring_interval != "year":
        return cycle.monthly
    anchor = held.anchor_on or local_day(held.effective_at, zone)
    return Cycle(12, anchor.replace(year=2000))


def _arrears(
    period: Period, held: HeldSubscription, grid: Cycle, zone: tzinfo, *, is_yearly: bool
) -> list[Period]:
    """What of the past is due: the months of the period, or the years that end in it."""
    start = held.charged_from()
    if not is_yearly:
        active = held._replace(effective_at=start).active_in(period)
        return [] if active is None else [active]
    end = period.end if held.ended_at is None else min(held.ended_at, period.end)
    if start >= end:
        return []
    has_ended = held.ended_at is not None and held.ended_at <= period.end
    parts = [
        part for cell, part in grid.cells_of(Period(start, end), zone) if part.end == cell.end or has_ended
    ]
    return [part for part in parts if part.end > period.start]


def _advance(
    period: Period, held: HeldSubscription, grid: Cycle, zone: tzinfo, charged: Sequence[ChargedFee]
) -> list[Period]:
    """What is due until the end of the cell that the next period begins in, and was not charged before."""
    reached = max([held.charged_from(), *(each.period.end for each in charged if not each.is_unused)])
    if held.ended_at is not None and held.ended_at <= period.end:
        until = held.ended_at
    else:
        _, following = grid.cell(local_day(period.end, zone))
        until = midnight(following, zone)
        if held.ended_at is not None:
            until = min(until, held.ended_at)
    if reached >= until:
        return []
    return [part for _, part in grid.cells_of(Period(reached, until), zone)]


def _unused(
    period: Period, held: HeldSubscription, charged: Sequence[ChargedFee]
) -> list[tuple[ChargedFee, Period]]:
    """What was charged beyond the end of a subscription and was not given back yet."""
    ended = held.ended_at
    if ended is None or ended > period.end or any(each.is_unused for each in charged):
        return []
    return [
        (each, Period(max(each.period.start, ended), each.period.end))
        for each in charged
        if each.period.end > ended
    ]


def _line_order(plan: LinePlan) -> tuple[int, str, Period]:
    return (_RANK[plan.kind], plan.price.terms.key, plan.period)


def _refuse_second_prices(plans: Iterable[LinePlan]) -> None:
    by_metric: dict[tuple[str, object], list[LinePlan]] = {}
    for plan in plans:
        metric = plan.price.terms.metric
        if metric is None:
            continue
        key = (metric, plan.price.terms.filter)
        for other in by_metric.setdefault(key, []):
            if overlap(plan.period, other.period):
                at = max(plan.period, other.period).start
                raise AmbiguousPrice(
                    f"metric {metric!r} has two prices at {at.isoformat()}: "
                    f"{other.price.terms.key!r} and {plan.price.terms.key!r}; end one of the subscriptions"
                )
        by_metric[key].append(plan)
