"""What late usage costs after its period was invoiced, and how a negative balance is carried. Pure.

The adjustment is the price of the period's new total less everything billed for it, so the bills of a period
add up to the bill that one would have made, whatever the order in which its events came.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from svc_infra.billing.money import check_minor
from svc_infra.billing.rating import PriceTerms, rate

_ONE = Fraction(1)


class Settlement(NamedTuple):
    """What an invoice asks for and the credit that is left for the next one; both minor units, 0 or more."""

    due: int
    credit: int


def adjustment(
    terms: PriceTerms, new_quantity: Decimal, billed: int, *, minimum_ratio: Fraction = _ONE
) -> int:
    """The amount of an adjustment line: rate(new total of the old period) - billed; negative is a credit.

    ``terms`` are those that the period was rated with, ``billed`` its line and all adjustments so far.
    AmountTooLarge and InvalidPrice as for ``rate``.
    """
    return check_minor(rate(terms, new_quantity, minimum_ratio=minimum_ratio).amount - billed)


def settle(amounts: Iterable[int], credit: int = 0) -> Settlement:
    """Offset the lines of an invoice with the credit carried to it; what is left over is carried on.

    ``due - credit`` of the result is the sum of the amounts less the credit before: nothing is lost.
    """
    balance = check_minor(sum(amounts) - credit)
    return Settlement(max(balance, 0), max(-balance, 0))
