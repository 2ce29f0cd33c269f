"""What makes the terms of a price fit together; InvalidPrice names the price and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING

from svc_infra.billing.rating.snapshot import AMOUNTS, QUANTITIES, parse_tier_bound, parse_unit_amount
from svc_infra.canonical import canonical_decimal
from svc_infra.exceptions import InvalidPayload, InvalidPrice

if TYPE_CHECKING:
    from svc_infra.billing.rating.terms import PriceTerms

_ZERO = Decimal(0)
_INTERVALS = ("month", "year")
_TIERED = ("graduated", "volume", "graduated_percentage")
# The models that may have each of the optional parts; whatever is not here is refused.
_MODELS_WITH = {
    "package_size": ("package",),
    "package_rounding": ("package",),
    "free_units": ("package", "percentage"),
    "percent": ("percentage",),
    "per_event": ("percentage",),
    "zero_usage_policy": ("graduated", "volume", "graduated_percentage", "per_unit", "fixed"),
}
_DEFAULTS = {"package_rounding": "up", "free_units": _ZERO, "zero_usage_policy": "bill_nothing"}


def check_terms(terms: PriceTerms) -> None:
    """Refuse terms whose parts do not belong to their model, or that could not be stored."""
    if not terms.key:
        raise InvalidPrice("a price needs a key")
    _check_subject(terms)
    _check_parts(terms)
    for name in AMOUNTS:
        _check_optional(terms, name, getattr(terms, name), parse_unit_amount)
    for name in QUANTITIES:
        _check_optional(terms, name, getattr(terms, name), parse_tier_bound)
    if terms.model == "package" and not terms.package_size:
        raise InvalidPrice(f"price {terms.key!r}: model 'package' needs a package_size of more than 0")
    _check_bounds(terms, terms.minimum_amount, terms.maximum_amount)
    _check_per_event(terms)
    _check_tiers(terms)


def _check_subject(terms: PriceTerms) -> None:
    """A fixed price recurs, any other one bills a metric."""
    if terms.recurring_interval not in (None, *_INTERVALS):
        raise InvalidPrice(
            f"price {terms.key!r}: recurring_interval {terms.recurring_interval!r} is not billed; "
            "use 'month' or 'year'"
        )
    if (terms.filter.values or terms.group_by) and (terms.metric is None or terms.per_event is not None):
        raise InvalidPrice(
            f"price {terms.key!r}: filter and group_by divide the usage of a metric, "
            "and a price by the event bills it whole"
        )
    if terms.model == "fixed":
        if terms.metric is not None or terms.recurring_interval is None:
            raise InvalidPrice(
                f"price {terms.key!r}: a fixed price has a recurring_interval and no metric; "
                "give it recurring_interval = 'month', or a metric and another model"
            )
        if terms.minimum_amount is not None or terms.maximum_amount is not None:
            raise InvalidPrice(
                f"price {terms.key!r}: a fixed price has no minimum_amount or maximum_amount; "
                "its unit_amount is what it costs"
            )
        if terms.is_commitment and terms.is_advance:
            raise InvalidPrice(
                f"price {terms.key!r}: what is missing to a commitment is known in arrears only"
            )
        return
    if not terms.metric:
        raise InvalidPrice(f"price {terms.key!r}: model {terms.model.value!r} needs the metric that it bills")
    if terms.recurring_interval == "year":
        raise InvalidPrice(
            f"price {terms.key!r}: usage is billed with the invoice of its period; "
            "leave recurring_interval out"
        )
    if terms.is_commitment:
        raise InvalidPrice(f"price {terms.key!r}: a commitment is a fixed price; leave the metric out")
    if terms.is_advance:
        raise InvalidPrice(f"price {terms.key!r}: usage cannot be billed in advance; leave advance out")


def _check_parts(terms: PriceTerms) -> None:
    """Every model has its own parts, and no others."""
    model = terms.model.value
    has_unit_amount = model not in (*_TIERED, "percentage")
    if (model in _TIERED) != bool(terms.tiers) or has_unit_amount == (terms.unit_amount is None):
        if model in _TIERED:
            wanted = "tiers and no unit_amount of its own"
        else:
            wanted = (
                "a unit_amount and no tiers" if has_unit_amount else "a percent, no unit_amount and no tiers"
            )
        raise InvalidPrice(f"price {terms.key!r}: model {model!r} takes {wanted}")
    if model == "percentage" and terms.percent is None:
        raise InvalidPrice(f"price {terms.key!r}: model 'percentage' needs a percent")
    for name, models in _MODELS_WITH.items():
        if model not in models and getattr(terms, name) != _DEFAULTS.get(name):
            raise InvalidPrice(
                f"price {terms.key!r}: model {model!r} has no {name}; it belongs to {' and '.join(models)}"
            )


def _check_per_event(terms: PriceTerms) -> None:
    per_event = terms.per_event
    if per_event is None:
        return
    if type(per_event.free_events) is not int or per_event.free_events < 0:
        raise InvalidPrice(f"price {terms.key!r}: free_events must be a whole number of 0 or more")
    for name in ("fixed_amount", "minimum_amount", "maximum_amount"):
        _check_optional(terms, name, getattr(per_event, name), parse_unit_amount)
    _check_bounds(terms, per_event.minimum_amount, per_event.maximum_amount)


def _check_bounds(terms: PriceTerms, minimum: Decimal | None, maximum: Decimal | None) -> None:
    if minimum is not None and maximum is not None and minimum > maximum:
        raise InvalidPrice(
            f"price {terms.key!r}: minimum_amount {minimum} is more than maximum_amount {maximum}"
        )


def _check_tiers(terms: PriceTerms) -> None:
    """Refuse tiers that leave a quantity unpriced, price it twice, or hold an amount we could not store."""
    reached = _ZERO
    is_percentage = terms.model == "graduated_percentage"
    for position, tier in enumerate(terms.tiers, start=1):
        where = f"price {terms.key!r}, tier {position}"
        is_last = position == len(terms.tiers)
        if (tier.up_to is None) != is_last:
            raise InvalidPrice(f"{where}: every tier but the last has an up_to, and only those")
        if (tier.percent is not None) != is_percentage or (is_percentage and tier.unit_amount):
            wanted = "a percent and no unit_amount" if is_percentage else "a unit_amount and no percent"
            raise InvalidPrice(f"{where}: a tier of model {terms.model.value!r} has {wanted}")
        if tier.up_to is not None:
            _check_stored(terms, "up_to", tier.up_to, parse_tier_bound)
            if tier.up_to <= reached:
                raise InvalidPrice(f"{where}: up_to {tier.up_to} must be more than {reached}")
            reached = tier.up_to
        _check_stored(terms, "unit_amount", tier.unit_amount, parse_unit_amount)
        _check_stored(terms, "flat_amount", tier.flat_amount, parse_unit_amount)
        _check_optional(terms, "percent", tier.percent, parse_unit_amount)


def _check_optional(
    terms: PriceTerms, name: str, value: Decimal | None, parse: Callable[[str], Decimal]
) -> None:
    if value is not None:
        _check_stored(terms, name, value, parse)


def _check_stored(terms: PriceTerms, name: str, value: Decimal, parse: Callable[[str], Decimal]) -> None:
    if not value.is_finite() or value < 0:
        raise InvalidPrice(f"price {terms.key!r}: {name} {value} must be zero or more")
    try:
        parse(canonical_decimal(value))
    except (ValueError, InvalidPayload) as error:
        raise InvalidPrice(f"price {terms.key!r}: {name} {error}") from error
