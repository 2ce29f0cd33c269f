"""The amounts of a credit note: what is left of an invoice to credit, and how it falls on the lines. Pure.

A credit note never edits the invoice. Its amounts are positive minor units, add up exactly, and never exceed
what is left of a line or of the invoice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from svc_infra.billing.allocation import allocate
from svc_infra.exceptions import AmountTooLarge, NotFound


class CreditableLine(NamedTuple):
    """An invoice line in minor units, and what earlier credit notes have taken back of it (0 or more)."""

    amount: int
    credited: int = 0

    @property
    def left(self) -> int:
        """What can still be credited of the line alone; a line that is itself a credit has nothing."""
        return max(0, self.amount - self.credited)


def creditable(lines: Sequence[CreditableLine]) -> int:
    """What can still be credited of an invoice.

    Negative lines (an adjustment, a credit) lower it: crediting the whole gives back what was charged.
    """
    left = sum(line.amount - line.credited for line in lines)
    return max(0, min(left, sum(line.left for line in lines)))


def credit_whole(lines: Sequence[CreditableLine]) -> list[int]:
    """Credit all that is left of an invoice; the amount of each line, in their order."""
    return credit_amount(lines, creditable(lines))


def credit_amount(lines: Sequence[CreditableLine], amount: int) -> list[int]:
    """Credit an amount in proportion to what is left of each line, by largest remainder.

    AmountTooLarge if the invoice has less left, or for a negative amount.
    """
    _refuse_more(amount, creditable(lines), "the invoice")
    return allocate(amount, [line.left for line in lines])


def credit_lines(lines: Sequence[CreditableLine], amounts: Mapping[int, int | None]) -> list[int]:
    """Credit chosen lines, by position: an amount, or None for all that is left of the line.

    AmountTooLarge if a line or the invoice has less left, or for a negative amount; NotFound for a position
    that the invoice does not have.
    """
    credits = [0] * len(lines)
    for position, amount in amounts.items():
        if not 0 <= position < len(lines):
            raise NotFound(f"the invoice has no line {position}; credit one of its {len(lines)} lines")
        left = lines[position].left
        credits[position] = left if amount is None else amount
        _refuse_more(credits[position], left, f"line {position}")
    _refuse_more(sum(credits), creditable(lines), "the invoice")
    return credits


def _refuse_more(amount: int, left: int, of: str) -> None:
    if not 0 <= amount <= left:
        raise AmountTooLarge(f"a credit of {amount} is not within what is left of {of}: credit 0 to {left}")
