"""Each unit at the price of the tier that it lies in; as a share of money, too."""

from __future__ import annotations

from decimal import Decimal

from svc_infra.billing.money import MONEY_CONTEXT
from svc_infra.billing.rating.charge import TierCharge, charge
from svc_infra.billing.rating.percentage import amount_per_major_unit
from svc_infra.billing.rating.terms import PriceTerms
from svc_infra.billing.rating.tier import Tier

_ZERO = Decimal(0)


def rate_graduated(terms: PriceTerms, quantity: Decimal) -> tuple[TierCharge, ...]:
    """The part of the quantity in each tier at its price, plus the flat amount of each tier entered."""
    charges: list[TierCharge] = []
    reached = _ZERO
    for position, tier in enumerate(terms.tiers):
        top = quantity if tier.up_to is None else min(quantity, tier.up_to)
        part = MONEY_CONTEXT.subtract(top, reached) if position else top
        unit_amount = tier.unit_amount if tier.percent is None else unit_amount_of(terms, tier)
        charges.append(charge(position, part, unit_amount, tier.flat_amount))
        if top == quantity:
            break
        reached = top
    return tuple(charges)


def unit_amount_of(terms: PriceTerms, tier: Tier) -> Decimal:
    """What a unit costs in a tier; of a tier with a percent, what a major unit of money costs."""
    if tier.percent is None:
        return tier.unit_amount
    return amount_per_major_unit(tier.percent, terms.currency)
