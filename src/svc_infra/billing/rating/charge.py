"""What rating returns: the amount, and the parts that it is made of."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from svc_infra.billing.money import MONEY_CONTEXT


class TierCharge(NamedTuple):
    """What one tier (position from 0) contributes: ``quantity * unit_amount + flat_amount``, not rounded.

    A price without tiers has one charge. ``quantity`` is what the price counts: packages of a package price,
    and of a percentage the money in major units that is left after the free part.
    """

    position: int
    quantity: Decimal
    unit_amount: Decimal
    flat_amount: Decimal
    amount: Decimal


class RatedAmount(NamedTuple):
    """The price of a quantity: ``amount`` in whole minor units, and how it came about.

    ``precise`` is the exact value that was rounded; ``breakdown`` stands before the proration ratio and
    before a minimum or maximum.
    """

    amount: int
    precise: Fraction
    breakdown: tuple[TierCharge, ...]


def charge(position: int, quantity: Decimal, unit_amount: Decimal, flat_amount: Decimal) -> TierCharge:
    """The charge of a quantity at a unit price plus a flat amount, exact."""
    amount = MONEY_CONTEXT.fma(quantity, unit_amount, flat_amount)
    return TierCharge(position, quantity, unit_amount, flat_amount, amount)
