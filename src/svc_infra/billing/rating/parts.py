"""Rating in parts: what an increment costs, what each group costs, and a prorated quantity."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import TypeVar

from svc_infra.billing.money import MONEY_CONTEXT
from svc_infra.billing.rating.charge import RatedAmount
from svc_infra.billing.rating.line import breakdown_of, finish, rate
from svc_infra.billing.rating.terms import PriceModel, PriceTerms
from svc_infra.billing.rating.volume import rate_volume
from svc_infra.exceptions import InvalidPrice

_ONE = Fraction(1)

Key = TypeVar("Key", bound=Hashable)


def rate_increment(terms: PriceTerms, previous_quantity: Decimal, quantity: Decimal) -> int:
    """What a further quantity costs after a previous one was billed, in minor units.

    It is the price of both together less the price of the previous one, so the parts of a quantity add up to
    its single bill. Before the first part nothing has been billed, not even a minimum. Under a volume price
    an increment can be negative.
    """
    whole = rate(terms, MONEY_CONTEXT.add(previous_quantity, quantity)).amount
    return whole - rate(terms, previous_quantity).amount if previous_quantity > 0 else whole


def rate_grouped(terms: PriceTerms, quantities: Mapping[Key, Decimal]) -> dict[Key, RatedAmount]:
    """The price of each group's quantity: the tiers begin anew in every group, each is a line of its own."""
    return {key: rate(terms, quantity) for key, quantity in quantities.items()}


def rate_volume_prorated(
    terms: PriceTerms, full_quantity: Decimal, prorated_quantity: Decimal
) -> RatedAmount:
    """A quantity that counts for a part of the period: the full one chooses the tier of a volume price.

    The tier's flat amount is charged whole. InvalidPrice for another model or a number that is not finite.
    """
    if terms.model is not PriceModel.VOLUME:
        raise InvalidPrice(f"price {terms.key!r} has model {terms.model.value!r}; only volume has one tier")
    if not (full_quantity.is_finite() and prorated_quantity.is_finite()):
        raise InvalidPrice(f"price {terms.key!r} cannot rate {prorated_quantity} of {full_quantity}")
    if full_quantity <= 0 or prorated_quantity < 0:
        return finish(terms, breakdown_of(terms, Decimal(0)), _ONE, _ONE)
    return finish(terms, rate_volume(terms, prorated_quantity, full_quantity), _ONE, _ONE)
