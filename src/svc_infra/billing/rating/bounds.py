"""Minimum, maximum and minimum commitment: what a line is cut to, and what is missing to a promise.

The line is rounded first and then completed, so that line and true-up together are exactly the minimum.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from svc_infra.billing.money import check_minor, round_half_away

_ONE = Fraction(1)


class MinimumCommitment(NamedTuple):
    """The plan's own line, the commitment due for the period, and the true-up line; minor units."""

    plan: int
    commitment: int
    true_up: int


def capped(amount: int, maximum: Decimal | int, previously_billed: int = 0) -> int:
    """What a line of an amount may still cost when the period's cap counts what was billed before."""
    return max(0, min(amount, round_half_away(maximum) - previously_billed))


def true_up(billed: int, minimum: Decimal | int, *, ratio: Fraction = _ONE) -> int:
    """What is missing from the billed amount to the minimum, prorated by an exact ratio; never negative."""
    return max(0, check_minor(round_half_away(Fraction(minimum) * ratio)) - billed)


def minimum_commitment(
    plan_amount: Decimal | int,
    commitment: Decimal | int,
    *,
    usage_billed: int = 0,
    ratio: Fraction = _ONE,
) -> MinimumCommitment:
    """A plan whose fee and usage together are to reach a commitment; both are prorated by the same ratio."""
    plan = check_minor(round_half_away(Fraction(plan_amount) * ratio))
    due = check_minor(round_half_away(Fraction(commitment) * ratio))
    return MinimumCommitment(plan, due, true_up(plan + usage_billed, due))
