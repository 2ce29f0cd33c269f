"""The same price for every unit; a fixed price is one for every time that it applies."""

from __future__ import annotations

from decimal import Decimal

from svc_infra.billing.rating.charge import TierCharge, charge
from svc_infra.billing.rating.terms import PriceTerms

_ZERO = Decimal(0)


def rate_per_unit(terms: PriceTerms, quantity: Decimal) -> tuple[TierCharge, ...]:
    """``quantity * unit_amount``."""
    unit_amount = terms.unit_amount
    assert unit_amount is not None  # PriceTerms refuses these models without one
    return (charge(0, quantity, unit_amount, _ZERO),)
