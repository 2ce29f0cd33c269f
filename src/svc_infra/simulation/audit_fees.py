"""The audit's own arithmetic of fixed prices: months and years, cut by local days.

A part of the independent recomputation, so it imports nothing of this package but the other parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import Any, NamedTuple

from svc_infra.simulation.audit_records import Span, StoredSubscription


class Grid(NamedTuple):
    """Cells of so many months, counted from an anchor whose year has no meaning."""

    months: int
    anchor: date


def grid_of(
    cycle: str, snapshot: dict[str, Any], subscription: StoredSubscription | None, zone: tzinfo
) -> Grid:
    """The cells that a price's amount is for, on invoices of a cycle; ValueError for a cycle that is none."""
    if snapshot.get("recurring_interval") == "year":
        if subscription is None:
            raise ValueError("a yearly price without a subscription")
        return Grid(12, subscription.anchor_on or local(subscription.effective_at, zone))
    kind, _, rest = cycle.partition(":")
    if kind not in ("calendar", "month", "year"):
        raise ValueError(f"a cycle named {cycle!r}")
    return Grid(1, date(2000, 1, int(rest.rpartition("-")[2]) if rest else 1))


def fee(snapshot: dict[str, Any], times: Fraction, span: Span, grid: Grid, zone: tzinfo) -> int:
    """What a fixed price costs over a span, ``times`` over (its seats), in minor units.

    Of each cell the part costs what is left of the cell at its start, rounded, less what is left at its end.
    """
    amount = 0
    for first, following, start, end in _cells(span, grid, zone):
        days = (following - first).days
        left = [_rounded(snapshot, times, Fraction((following - bound).days, days)) for bound in (start, end)]
        amount += left[0] - left[1]
    return amount


def share(span: Span, grid: Grid, zone: tzinfo) -> Fraction:
    """How many cells a span covers, by local days."""
    return sum(
        (
            Fraction((end - start).days, (following - first).days)
            for first, following, start, end in _cells(span, grid, zone)
        ),
        Fraction(0),
    )


def local(at: datetime, zone: tzinfo) -> date:
    """The local day of an instant."""
    return at.astimezone(zone).date()


def _rounded(snapshot: dict[str, Any], times: Fraction, ratio: Fraction) -> int:
    cost = Fraction(Decimal(snapshot["unit_amount"])) * times * ratio
    if "maximum_amount" in snapshot:
        cost = min(cost, Fraction(Decimal(snapshot["maximum_amount"])))
    if "minimum_amount" in snapshot:
        cost = max(cost, Fraction(Decimal(snapshot["minimum_amount"])))
    return floor(cost + Fraction(1, 2))  # never negative, so upwards is away from zero


def _cells(span: Span, grid: Grid, zone: tzinfo) -> Iterator[tuple[date, date, date, date]]:
    """(first day, next cell's first day, start, end) of every cell that a span has a part of."""
    day, last = local(span[0], zone), local(span[1], zone)
    while day < last:
        first, following = _cell(day, grid)
        end = min(following, last)
        yield first, following, day, end
        day = end


def _cell(day: date, grid: Grid) -> tuple[date, date]:
    months = (day.year - grid.anchor.year) * 12 + day.month - grid.anchor.month
    at = months - months % grid.months
    while _bound(grid.anchor, at) > day:
        at -= grid.months
    while _bound(grid.anchor, at + grid.months) <= day:
        at += grid.months
    return _bound(grid.anchor, at), _bound(grid.anchor, at + grid.months)


def _bound(anchor: date, months: int) -> date:
    """The anchor so many months later, or the last day of a shorter month."""
    years, month = divmod(anchor.month - 1 + months, 12)
    first = date(anchor.year + years, month + 1, 1)
    last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return first.replace(day=min(anchor.day, last.day))
