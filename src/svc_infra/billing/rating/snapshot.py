"""Terms as JSON and back: decimals as canonical strings, in the shape of the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from svc_infra.billing.money import parse_decimal
from svc_infra.billing.rating.tier import Tier
from svc_infra.canonical import canonical_decimal

if TYPE_CHECKING:
    from svc_infra.billing.rating.terms import PerEvent, PriceTerms

# What the columns hold: unit prices Numeric(38, 18), tier bounds Numeric(38, 12) like quantities.
_UNIT_INTEGER_DIGITS, _UNIT_DECIMAL_DIGITS = 20, 18
_BOUND_INTEGER_DIGITS, _BOUND_DECIMAL_DIGITS = 26, 12

# The amounts of PriceTerms in minor units (or per cent), and those that are quantities.
AMOUNTS = ("unit_amount", "percent", "minimum_amount", "maximum_amount")
QUANTITIES = ("package_size", "free_units")
_EVENT_AMOUNTS = ("fixed_amount", "minimum_amount", "maximum_amount")


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


def terms_to_snapshot(terms: PriceTerms) -> dict[str, Any]:
    """The JSON of ``PriceTerms.to_snapshot``; what is absent or the default is left out."""
    snapshot: dict[str, Any] = {"key": terms.key, "currency": terms.currency, "model": terms.model.value}
    for name in (*AMOUNTS, *QUANTITIES):
        value = getattr(terms, name)
        if value is not None and (value or name != "free_units"):
            snapshot[name] = canonical_decimal(value)
    if terms.tiers:
        snapshot["tiers"] = tiers_to_snapshot(terms.tiers)
    for name in ("metric", "recurring_interval"):
        if (value := getattr(terms, name)) is not None:
            snapshot[name] = value
    if terms.zero_usage_policy == "bill_first_flat":
        snapshot["zero_usage_policy"] = terms.zero_usage_policy.value
    if terms.package_rounding == "down":
        snapshot["package_rounding"] = terms.package_rounding.value
    if terms.per_event is not None:
        snapshot["per_event"] = _per_event_to_snapshot(terms.per_event)
    if terms.filter.values:
        snapshot["filter"] = terms.filter.to_snapshot()
    if terms.group_by:
        snapshot["group_by"] = list(terms.group_by)
    for name in ("is_advance", "is_commitment"):
        if getattr(terms, name):
            snapshot[name] = True
    return snapshot


def parse_amounts(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a snapshot with its decimals read; TypeError or ValueError for what is none."""
    known = dict(snapshot)
    for name in AMOUNTS:
        if name in known:
            known[name] = parse_unit_amount(known[name])
    for name in QUANTITIES:
        if name in known:
            known[name] = parse_tier_bound(known[name])
    return known


def tiers_to_snapshot(tiers: tuple[Tier, ...]) -> list[dict[str, str]]:
    """Tiers as JSON, in the catalog's own shape; the last has no ``up_to``."""
    return [_tier_to_snapshot(tier) for tier in tiers]


def tiers_from_snapshot(tiers: Any) -> tuple[Tier, ...]:
    """The tiers that ``tiers_to_snapshot`` wrote; KeyError, TypeError or ValueError for anything else."""
    return tuple(_tier_from_snapshot(tier) for tier in tiers)


def _tier_to_snapshot(tier: Tier) -> dict[str, str]:
    snapshot = {} if tier.up_to is None else {"up_to": canonical_decimal(tier.up_to)}
    if tier.percent is None:
        snapshot["unit_amount"] = canonical_decimal(tier.unit_amount)
    else:
        snapshot["percent"] = canonical_decimal(tier.percent)
    if tier.flat_amount:
        snapshot["flat_amount"] = canonical_decimal(tier.flat_amount)
    return snapshot


def _tier_from_snapshot(tier: Any) -> Tier:
    up_to = parse_tier_bound(tier["up_to"]) if "up_to" in tier else None
    flat_amount = parse_unit_amount(tier["flat_amount"]) if "flat_amount" in tier else Decimal(0)
    if "percent" in tier:
        return Tier(up_to, flat_amount=flat_amount, percent=parse_unit_amount(tier["percent"]))
    return Tier(up_to, parse_unit_amount(tier["unit_amount"]), flat_amount)


def _per_event_to_snapshot(per_event: PerEvent) -> dict[str, Any]:
    snapshot: dict[str, Any] = {}
    for name in _EVENT_AMOUNTS:
        if (value := getattr(per_event, name)) is not None:
            snapshot[name] = canonical_decimal(value)
    if per_event.free_events:
        snapshot["free_events"] = per_event.free_events
    return snapshot
