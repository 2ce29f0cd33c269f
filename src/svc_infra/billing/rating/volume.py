"""All units at the price of the one tier that the quantity reaches."""

from __future__ import annotations

from decimal import Decimal

from svc_infra.billing.rating.charge import TierCharge, charge
from svc_infra.billing.rating.terms import PriceTerms


def rate_volume(
    terms: PriceTerms, quantity: Decimal, tier_quantity: Decimal | None = None
) -> tuple[TierCharge, ...]:
    """The quantity at the price of its tier, plus the tier's flat amount.

    ``tier_quantity`` chooses the tier in place of the quantity, where only a part of it is charged.
    """
    reached = quantity if tier_quantity is None else tier_quantity
    for position, tier in enumerate(terms.tiers):
        if tier.up_to is None or reached <= tier.up_to:
            return (charge(position, quantity, tier.unit_amount, tier.flat_amount),)
    raise AssertionError("PriceTerms refuses tiers without an open end")
