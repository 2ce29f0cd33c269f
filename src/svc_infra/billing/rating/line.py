"""The amount of a line: its price model added up, prorated, bounded and rounded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction

from svc_infra.billing.money import MONEY_CONTEXT, check_minor, round_half_away
from svc_infra.billing.rating.charge import RatedAmount, TierCharge, charge
from svc_infra.billing.rating.graduated import rate_graduated, unit_amount_of
from svc_infra.billing.rating.package import rate_package
from svc_infra.billing.rating.per_unit import rate_per_unit
from svc_infra.billing.rating.percentage import rate_percentage, rate_percentage_events
from svc_infra.billing.rating.terms import PriceModel, PriceTerms, ZeroUsagePolicy
from svc_infra.billing.rating.volume import rate_volume
from svc_infra.exceptions import InvalidPrice

_ZERO = Decimal(0)
_ONE = Fraction(1)

_MODELS: dict[PriceModel, Callable[[PriceTerms, Decimal], tuple[TierCharge, ...]]] = {
    PriceModel.FIXED: rate_per_unit,
    PriceModel.PER_UNIT: rate_per_unit,
    PriceModel.GRADUATED: rate_graduated,
    PriceModel.VOLUME: rate_volume,
    PriceModel.PACKAGE: rate_package,
    PriceModel.PERCENTAGE: rate_percentage,
    PriceModel.GRADUATED_PERCENTAGE: rate_graduated,
}


def rate(
    terms: PriceTerms, quantity: Decimal, *, ratio: Fraction = _ONE, minimum_ratio: Fraction = _ONE
) -> RatedAmount:
    """Price a quantity (not money) under the terms, prorated by an exact ``ratio``.

    Zero or negative usage costs 0 unless the price has a minimum or a policy for zero usage: it does not
    refund, a credit mirrors the charge it takes back. A fixed price is rated with the number of times it
    applies, usually 1. ``minimum_ratio`` is the share of the period that a minimum is due for.

    Raises:
        AmountTooLarge: beyond 64-bit minor units.
        InvalidPrice: the quantity is not a finite number, a ratio is negative, or the price asks for the
            single events (``rate_events``).
    """
    _check_ratios(terms, quantity, ratio, minimum_ratio)
    if terms.per_event is not None:
        raise InvalidPrice(
            f"price {terms.key!r} charges by the event; rate its single events with rate_events"
        )
    return finish(terms, breakdown_of(terms, quantity), ratio, minimum_ratio)


def rate_events(
    terms: PriceTerms,
    events: Iterable[Decimal],
    *,
    ratio: Fraction = _ONE,
    minimum_ratio: Fraction = _ONE,
) -> RatedAmount:
    """Price the single amounts (money in major units, in their order) of a percentage price.

    Raises:
        AmountTooLarge: beyond 64-bit minor units.
        InvalidPrice: the price has another model, an amount is not a finite number or a ratio is negative.
    """
    if terms.model is not PriceModel.PERCENTAGE:
        raise InvalidPrice(
            f"price {terms.key!r} has model {terms.model.value!r}; rate its quantity with rate"
        )
    amounts = list(events)
    for amount in amounts or [_ZERO]:
        _check_ratios(terms, amount, ratio, minimum_ratio)
    return finish(terms, rate_percentage_events(terms, amounts), ratio, minimum_ratio)


def rate_with_true_up(
    terms: PriceTerms, quantity: Decimal, *, ratio: Fraction = _ONE, minimum_ratio: Fraction = _ONE
) -> tuple[RatedAmount, int]:
    """The line of the usage alone and the true-up to the minimum, where that is a line of its own.

    Together they are the amount of ``rate``.
    """
    whole = rate(terms, quantity, ratio=ratio, minimum_ratio=minimum_ratio)
    if terms.minimum_amount is None:
        return whole, 0
    usage = finish(terms, whole.breakdown, ratio, Fraction(0))
    return usage, whole.amount - usage.amount


def breakdown_of(terms: PriceTerms, quantity: Decimal) -> tuple[TierCharge, ...]:
    """What each tier contributes to the price of a quantity, exact."""
    if quantity > 0:
        return _MODELS[terms.model](terms, quantity)
    if terms.zero_usage_policy is ZeroUsagePolicy.BILL_FIRST_FLAT and terms.tiers:
        first = terms.tiers[0]
        return (charge(0, _ZERO, unit_amount_of(terms, first), first.flat_amount),)
    return ()


def finish(
    terms: PriceTerms, breakdown: tuple[TierCharge, ...], ratio: Fraction, minimum_ratio: Fraction
) -> RatedAmount:
    """Add up, prorate, cap, raise to the minimum and round, in this order.

    Rounding is monotone, so rounding the bounded value gives the same as bounding the rounded one.
    """
    total = breakdown[0].amount if breakdown else _ZERO
    for part in breakdown[1:]:
        total = MONEY_CONTEXT.add(total, part.amount)
    precise = Fraction(total)
    if ratio is not _ONE:
        precise *= ratio
    if terms.maximum_amount is not None:
        precise = min(precise, Fraction(terms.maximum_amount))
    if terms.minimum_amount is not None:
        precise = max(precise, Fraction(terms.minimum_amount) * minimum_ratio)
    return RatedAmount(check_minor(round_half_away(precise)), precise, breakdown)


def _check_ratios(terms: PriceTerms, quantity: Decimal, ratio: Fraction, minimum_ratio: Fraction) -> None:
    # Comparing fractions costs as much as rating a tier, so the usual ones are told by identity.
    is_negative = (ratio is not _ONE and ratio < 0) or (minimum_ratio is not _ONE and minimum_ratio < 0)
    if is_negative or not quantity.is_finite():
        raise InvalidPrice(
            f"price {terms.key!r} cannot rate {quantity} times {ratio}; pass finite quantities"
        )
