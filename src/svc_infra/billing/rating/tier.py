"""One step of a tiered price."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Tier:
    """The units above the tier before and up to ``up_to`` inclusive (None: all the rest).

    ``unit_amount`` and ``flat_amount`` are minor units and may have a fraction; the flat amount is charged
    once when the quantity enters the tier. A tier of ``graduated_percentage`` has a ``percent`` and no unit
    amount; there the quantity, and so ``up_to``, is money in major units.
    """

    up_to: Decimal | None
    unit_amount: Decimal = _ZERO
    flat_amount: Decimal = _ZERO
    percent: Decimal | None = None
