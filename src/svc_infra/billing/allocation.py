"""Dividing an amount into whole minor units that add up to it. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def allocate(amount: int, weights: Sequence[int]) -> list[int]:
    """Divide an amount of minor units in proportion to weights of 0 or more, by largest remainder.

    The shares add up to the amount exactly, and none differs from its exact share by a whole unit; of equal
    remainders the earlier one gets the unit. ValueError for a negative amount or weight, or if every weight
    is 0 and the amount is not.
    """
    whole = sum(weights)
    if amount < 0 or any(weight < 0 for weight in weights) or (amount and not whole):
        raise ValueError(f"cannot divide {amount} by the weights {list(weights)}")
    if not amount:
        return [0] * len(weights)
    shares = [divmod(amount * weight, whole) for weight in weights]
    amounts = [share for share, _ in shares]
    by_remainder = sorted(range(len(weights)), key=lambda at: -shares[at][1])
    for at in by_remainder[: amount - sum(amounts)]:
        amounts[at] += 1
    return amounts
