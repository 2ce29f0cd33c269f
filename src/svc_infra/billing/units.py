"""From what was measured to what is billed: unit conversion, quantity rounding, units given free. Pure.

The order is convert, round, discount. A measured or converted quantity that never ends as a decimal is kept
to the 12 places of the quantity columns, so that a line can be rated again from what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from svc_infra.billing.money import MONEY_CONTEXT, RoundingMode, round_to
from svc_infra.exceptions import InvalidPrice

QUANTITY_PLACES = 12
_ZERO = Decimal(0)


class Operation(StrEnum):
    """How the factor of a conversion is applied."""

    MULTIPLY = "multiply"
    DIVIDE = "divide"


@dataclass(frozen=True, slots=True)
class UnitConversion:
    """Bytes to gigabytes, seconds to hours: a factor, and how the result is rounded (None: not at all).

    InvalidPrice for a factor that is not a positive number.
    """

    operation: Operation
    factor: Decimal
    rounding: RoundingMode | None = RoundingMode.CEIL
    places: int = 0

    def __post_init__(self) -> None:
        if not self.factor.is_finite() or self.factor <= 0:
            raise InvalidPrice(f"a conversion factor of {self.factor} has no meaning; use one of more than 0")

    def convert(self, quantity: Decimal) -> Decimal:
        """The quantity in the unit that is billed."""
        factor = Fraction(self.factor)
        exact = Fraction(quantity) * (factor if self.operation is Operation.MULTIPLY else 1 / factor)
        return as_quantity(exact) if self.rounding is None else round_to(exact, self.places, self.rounding)


def as_quantity(value: Fraction) -> Decimal:
    """An exact value as a quantity of at most 12 places, a half away from zero."""
    return round_to(value, QUANTITY_PLACES)


def round_quantity(
    quantity: Decimal, *, places: int = 0, mode: RoundingMode = RoundingMode.HALF_AWAY
) -> Decimal:
    """A metric's rounding of its total: to places, or with a negative number to tens, hundreds and so on."""
    return round_to(quantity, places, mode)


def less_free_units(quantity: Decimal, free_units: Decimal) -> Decimal:
    """What is billed of a quantity after the units given free; never negative."""
    return max(_ZERO, MONEY_CONTEXT.subtract(quantity, free_units))
