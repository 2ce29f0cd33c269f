"""What a quantity costs under a price: pure, exact, rounded once per line.

A price model is one function in ``_MODELS``: it takes the terms and a positive quantity and returns, exact
and unrounded, what each tier contributes. ``rate`` adds that up, applies the proration ratio in the last
multiplication and rounds half away from zero. Neither a unit price nor a quantity is ever rounded.
Tiers are real-valued and inclusive at the top; entering one by any fraction adds its flat amount.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Any, NamedTuple

from svc_infra.billing.money import (
    MONEY_CONTEXT,
    check_minor,
    normalize_currency,
    parse_decimal,
    round_half_away,
)
from svc_infra.canonical import canonical_decimal
from svc_infra.exceptions import InvalidPayload, InvalidPrice

_ZERO = Decimal(0)
_ONE = Fraction(1)
# What the columns hold: unit prices Numeric(38, 18), tier bounds Numeric(38, 12) like quantities.
_UNIT_INTEGER_DIGITS, _UNIT_DECIMAL_DIGITS = 20, 18
_BOUND_INTEGER_DIGITS, _BOUND_DECIMAL_DIGITS = 26, 12


class PriceModel(StrEnum):
    """How a quantity turns into money."""

    FIXED = "fixed"
    PER_UNIT = "per_unit"
    GRADUATED = "graduated"


class ZeroUsagePolicy(StrEnum):
    """Whether zero usage costs the flat amount of the first tier. Vendors disagree; we default to no."""

    BILL_NOTHING = "bill_nothing"
    BILL_FIRST_FLAT = "bill_first_flat"


@dataclass(frozen=True, slots=True)
class Tier:
    """The units above the tier before and up to ``up_to`` inclusive (None: all the rest).

    ``unit_amount`` and ``flat_amount`` are minor units and may have a fraction; the flat amount is charged
    once when the quantity enters the tier.
    """

    up_to: Decimal | None
    unit_amount: Decimal
    flat_amount: Decimal = _ZERO


class TierCharge(NamedTuple):
    """What one tier (position from 0) contributes: ``quantity * unit_amount + flat_amount``, not rounded."""

    position: int
    quantity: Decimal
    unit_amount: Decimal
    flat_amount: Decimal
    amount: Decimal


class RatedAmount(NamedTuple):
    """The price of a quantity: ``amount`` in whole minor units, and how it came about.

    ``precise`` is the exact value that was rounded; ``breakdown`` stands before the proration ratio.
    """

    amount: int
    precise: Fraction
    breakdown: tuple[TierCharge, ...]


@dataclass(frozen=True, slots=True)
class PriceTerms:
    """The terms that a quantity is rated with, independent of where they are stored.

    A fixed price has a ``recurring_interval`` and no ``metric``; the other models bill a metric.
    ``unit_amount`` is in minor units and may have a fraction. InvalidPrice says what does not fit together,
    InvalidCurrency that the currency is unknown.
    """

    key: str
    currency: str
    model: PriceModel
    unit_amount: Decimal | None = None
    tiers: tuple[Tier, ...] = ()
    metric: str | None = None
    recurring_interval: str | None = None
    zero_usage_policy: ZeroUsagePolicy = ZeroUsagePolicy.BILL_NOTHING

    def __post_init__(self) -> None:
        object.__setattr__(self, "currency", normalize_currency(self.currency))
        _check_shape(self)
        if self.unit_amount is not None:
            _check_stored(self, "unit_amount", self.unit_amount, parse_unit_amount)
        _check_tiers(self)

    def to_snapshot(self) -> dict[str, Any]:
        """The terms as JSON, decimals as canonical strings; what is absent or the default is left out."""
        snapshot: dict[str, Any] = {"key": self.key, "currency": self.currency, "model": self.model.value}
        if self.unit_amount is not None:
            snapshot["unit_amount"] = canonical_decimal(self.unit_amount)
        if self.tiers:
            snapshot["tiers"] = tiers_to_snapshot(self.tiers)
        if self.metric is not None:
            snapshot["metric"] = self.metric
        if self.recurring_interval is not None:
            snapshot["recurring_interval"] = self.recurring_interval
        if self.zero_usage_policy is not ZeroUsagePolicy.BILL_NOTHING:
            snapshot["zero_usage_policy"] = self.zero_usage_policy.value
        return snapshot

    @classmethod
    def from_snapshot(cls, snapshot: Mapping[str, Any]) -> PriceTerms:
        """The terms that ``to_snapshot`` wrote; InvalidPrice for anything else."""
        known = dict(snapshot)
        try:
            known["model"] = PriceModel(known["model"])
            if "unit_amount" in known:
                known["unit_amount"] = parse_unit_amount(known["unit_amount"])
            if "tiers" in known:
                known["tiers"] = tiers_from_snapshot(known["tiers"])
            if "zero_usage_policy" in known:
                known["zero_usage_policy"] = ZeroUsagePolicy(known["zero_usage_policy"])
            return cls(**known)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidPrice(f"not a price snapshot: {error}") from error


def rate(terms: PriceTerms, quantity: Decimal, *, ratio: Fraction = _ONE) -> RatedAmount:
    """Price a quantity (not money) under the terms, prorated by an exact ``ratio``.

    Zero or negative usage costs 0: it does not refund, a credit mirrors the charge it takes back. A fixed
    price is rated with the number of times it applies, usually 1. AmountTooLarge beyond 64-bit minor units;
    InvalidPrice for a quantity that is not a finite number or a negative ratio.
    """
    if not quantity.is_finite() or ratio < 0:
        raise InvalidPrice(
            f"price {terms.key!r} cannot rate {quantity} times {ratio}; pass finite quantities"
        )
    if quantity > 0:
        breakdown = _MODELS[terms.model](terms, quantity)
    else:
        breakdown = _zero_usage(terms)
    total = breakdown[0].amount if breakdown else _ZERO
    for charge in breakdown[1:]:
        total = MONEY_CONTEXT.add(total, charge.amount)
    precise = Fraction(total)
    if ratio is not _ONE:
        precise *= ratio
    return RatedAmount(check_minor(round_half_away(precise)), precise, breakdown)


def _rate_per_unit(terms: PriceTerms, quantity: Decimal) -> tuple[TierCharge, ...]:
    unit_amount = terms.unit_amount
    assert unit_amount is not None  # PriceTerms refuses these models without one
    amount = MONEY_CONTEXT.multiply(quantity, unit_amount)
    return (TierCharge(0, quantity, unit_amount, _ZERO, amount),)


def _rate_graduated(terms: PriceTerms, quantity: Decimal) -> tuple[TierCharge, ...]:
    charges: list[TierCharge] = []
    reached = _ZERO
    for position, tier in enumerate(terms.tiers):
        top = quantity if tier.up_to is None else min(quantity, tier.up_to)
        charges.append(_tier_charge(position, tier, MONEY_CONTEXT.subtract(top, reached)))
        if top == quantity:
            break
        reached = top
    return tuple(charges)


# A model of the later price kinds (package, volume, percentage …) is one more function and one more row.
_MODELS: dict[PriceModel, Callable[[PriceTerms, Decimal], tuple[TierCharge, ...]]] = {
    PriceModel.FIXED: _rate_per_unit,
    PriceModel.PER_UNIT: _rate_per_unit,
    PriceModel.GRADUATED: _rate_graduated,
}


def _zero_usage(terms: PriceTerms) -> tuple[TierCharge, ...]:
    if terms.zero_usage_policy is ZeroUsagePolicy.BILL_FIRST_FLAT and terms.tiers:
        return (_tier_charge(0, terms.tiers[0], _ZERO),)
    return ()


def _tier_charge(position: int, tier: Tier, quantity: Decimal) -> TierCharge:
    amount = MONEY_CONTEXT.fma(quantity, tier.unit_amount, tier.flat_amount)
    return TierCharge(position, quantity, tier.unit_amount, tier.flat_amount, amount)


def _check_shape(terms: PriceTerms) -> None:
    """Refuse terms whose parts do not belong to their model."""
    if not terms.key:
        raise InvalidPrice("a price needs a key")
    if terms.recurring_interval not in (None, "month"):
        raise InvalidPrice(
            f"price {terms.key!r}: recurring_interval {terms.recurring_interval!r} is not billed yet; "
            "use 'month'"
        )
    if terms.model is PriceModel.FIXED:
        if terms.metric is not None or terms.recurring_interval is None:
            raise InvalidPrice(
                f"price {terms.key!r}: a fixed price has a recurring_interval and no metric; "
                "give it recurring_interval = 'month', or a metric and another model"
            )
    elif not terms.metric:
        raise InvalidPrice(f"price {terms.key!r}: model {terms.model.value!r} needs the metric that it bills")
    is_tiered = terms.model is PriceModel.GRADUATED
    if is_tiered != bool(terms.tiers) or is_tiered == (terms.unit_amount is not None):
        raise InvalidPrice(
            f"price {terms.key!r}: model {terms.model.value!r} takes "
            + ("tiers and no unit_amount of its own" if is_tiered else "a unit_amount and no tiers")
        )


def _check_tiers(terms: PriceTerms) -> None:
    """Refuse tiers that leave a quantity unpriced, price it twice, or hold an amount we could not store."""
    reached = _ZERO
    for position, tier in enumerate(terms.tiers, start=1):
        is_last = position == len(terms.tiers)
        if (tier.up_to is None) != is_last:
            raise InvalidPrice(
                f"price {terms.key!r}, tier {position}: every tier but the last has an up_to, and only those"
            )
        if tier.up_to is not None:
            _check_stored(terms, "up_to", tier.up_to, parse_tier_bound)
            if tier.up_to <= reached:
                raise InvalidPrice(
                    f"price {terms.key!r}, tier {position}: up_to {tier.up_to} must be more than {reached}"
                )
            reached = tier.up_to
        _check_stored(terms, "unit_amount", tier.unit_amount, parse_unit_amount)
        _check_stored(terms, "flat_amount", tier.flat_amount, parse_unit_amount)


def _check_stored(terms: PriceTerms, name: str, value: Decimal, parse: Callable[[str], Decimal]) -> None:
    if not value.is_finite() or value < 0:
        raise InvalidPrice(f"price {terms.key!r}: {name} {value} must be zero or more")
    try:
        parse(canonical_decimal(value))
    except (ValueError, InvalidPayload) as error:
        raise InvalidPrice(f"price {terms.key!r}: {name} {error}") from error


def parse_unit_amount(text: str) -> Decimal:
    """Read an amount of minor units that may have a fraction; ValueError if the column could not hold it."""
    return parse_decimal(
        text, max_integer_digits=_UNIT_INTEGER_DIGITS, max_decimal_digits=_UNIT_DECIMAL_DIGITS
    )


def parse_tier_bound(text: str) -> Decimal:
    """Read the quantity that a tier ends with; ValueError if no quantity could reach it."""
    return parse_decimal(
        text, max_integer_digits=_BOUND_INTEGER_DIGITS, max_decimal_digits=_BOUND_DECIMAL_DIGITS
    )


def tiers_to_snapshot(tiers: tuple[Tier, ...]) -> list[dict[str, str]]:
    """Tiers as JSON, in the catalog's own shape; the last has no ``up_to``."""
    return [
        ({} if tier.up_to is None else {"up_to": canonical_decimal(tier.up_to)})
        | {"unit_amount": canonical_decimal(tier.unit_amount)}
        | ({"flat_amount": canonical_decimal(tier.flat_amount)} if tier.flat_amount else {})
        for tier in tiers
    ]


def tiers_from_snapshot(tiers: Any) -> tuple[Tier, ...]:
    """The tiers that ``tiers_to_snapshot`` wrote; KeyError, TypeError or ValueError for anything else."""
    return tuple(
        Tier(
            up_to=parse_tier_bound(tier["up_to"]) if "up_to" in tier else None,
            unit_amount=parse_unit_amount(tier["unit_amount"]),
            flat_amount=parse_unit_amount(tier["flat_amount"]) if "flat_amount" in tier else _ZERO,
        )
        for tier in tiers
    )
