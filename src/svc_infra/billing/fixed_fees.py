"""What a recurring price costs over a part of its cells: prorated by local days, in whole minor units. Pure.

The price of a part is the price of the rest of the cell from its start, less that from its end. So the parts
of a cell add up to its price however it is cut, the part that lasts to the end is the price times the share
of days left, and taking back an unused rest mirrors its charge.
"""

from __future__ import annotations

from datetime import datetime, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from svc_infra.billing.cycles import Cycle
from svc_infra.billing.periods import Period, days_in
from svc_infra.billing.rating import PriceTerms, rate

_ZERO = Fraction(0)
_ONE = Fraction(1)


class Fee(NamedTuple):
    """An amount of minor units, and for how many cells (a month of a monthly price is one) it is."""

    amount: int
    share: Fraction


# Terms are frozen, so a fee is worked out once and not for every tenant.
@lru_cache(maxsize=4096)
def fee(terms: PriceTerms, seats: Decimal, active: Period, grid: Cycle, zone: tzinfo) -> Fee:
    """What a fixed price, times ``seats``, costs over ``active``, each cell of ``grid`` for itself."""
    amount, share = 0, _ZERO
    for cell, part in grid.cells_of(active, zone):
        before, after = _left(cell, part.start, zone), _left(cell, part.end, zone)
        amount += rate(terms, seats, ratio=before).amount - rate(terms, seats, ratio=after).amount
        share += before - after
    return Fee(amount, share)


@lru_cache(maxsize=4096)
def share_of(active: Period, grid: Cycle, zone: tzinfo) -> Fraction:
    """How many cells a period covers, each by its share of local days; a whole cell is 1."""
    parts = grid.cells_of(active, zone)
    return sum((_left(cell, part.start, zone) - _left(cell, part.end, zone) for cell, part in parts), _ZERO)


def _left(cell: Period, at: datetime, zone: tzinfo) -> Fraction:
    """The share of a cell's local days that is left at one of its midnights."""
    if at <= cell.start:
        return _ONE
    if at >= cell.end:
        return _ZERO
    return Fraction(days_in(Period(at, cell.end), zone), days_in(cell, zone))
