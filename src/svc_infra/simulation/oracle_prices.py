"""The independent recomputation's prices: what the default plan of a catalog charges for a quantity.

A part of the oracle, so it imports nothing of this package either, and calculates with ``Fraction``. What it
does not know it refuses before anything is billed: a rule that it passed over would be a false proof. That
the rest of the catalog is valid it trusts, because the catalog parser has refused it otherwise.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any, TypeAlias

Price: TypeAlias = dict[str, Any]
"""A ``[[prices]]`` table as the file has it, its decimal strings read as exact fractions."""

_MODEL_KEYS = {
    "fixed": {"unit_amount"},
    "per_unit": {"unit_amount"},
    "graduated": {"tiers"},
    "volume": {"tiers"},
    "graduated_percentage": {"tiers"},
    "package": {"unit_amount", "package_size", "package_rounding", "free_units"},
    "percentage": {"percent", "free_units"},
}
_KEYS = {
    "key",
    "plan",
    "currency",
    "metric",
    "model",
    "zero_usage_policy",
    "minimum_amount",
    "maximum_amount",
}
# Keys of which one value changes nothing about any price, so that it may stand at every model.
_WITHOUT_EFFECT = {"advance": False, "tiers": [], "package_rounding": "up", "free_units": Fraction(0)}
_CHOICES = {
    "recurring_interval": {"month"},
    "package_rounding": {"up", "down"},
    "zero_usage_policy": {"bill_nothing", "bill_first_flat"},
}
_PLAN_KEYS = {"key", "name", "description", "default", "entitlements"}
_AMOUNTS = (
    *("up_to", "unit_amount", "flat_amount", "percent", "package_size", "free_units"),
    *("minimum_amount", "maximum_amount"),
)
# Decimals of the minor unit (ISO 4217) where there are not two.
_DECIMALS = {
    **dict.fromkeys("bif clp djf gnf isk jpy kmf krw pyg rwf ugx uyi vnd vuv xaf xof xpf".split(), 0),
    **dict.fromkeys("bhd iqd jod kwd lyd omr tnd".split(), 3),
    **dict.fromkeys("clf uyw".split(), 4),
}


def check_catalog(path: Path) -> None:
    """Refuse a catalog that the recomputation does not fully know.

    Raises:
        ValueError: the message names the file and the first model, key or value that is not known. Also for
            text that is not TOML or not UTF-8.
    """
    try:
        prices_of_default_plan(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def prices_of_default_plan(catalog: dict[str, Any]) -> list[Price]:
    """The prices that bill a tenant of the default plan: that plan's own and those without a plan.

    ``catalog`` is the TOML document. ValueError names what in them is not known.
    """
    _refuse_others(catalog, {"plans", "prices"}, "the catalog")
    plan: dict[str, Any] = next((plan for plan in catalog.get("plans", ()) if plan.get("default")), {})
    _refuse_others(plan, _PLAN_KEYS, f"plan {plan.get('key')!r}")
    default = plan.get("key")
    tables = (price for price in catalog.get("prices", ()) if price.get("plan", default) == default)
    prices = [_with_fractions(table) for table in tables]
    for price in prices:
        _check(price)
    currencies = sorted({price["currency"].lower() for price in prices})
    if len(currencies) > 1:
        raise ValueError(f"prices in {' and '.join(currencies)}; the recomputation adds up one currency")
    return prices


def bills_zero_usage(price: Price) -> bool:
    """Whether a month without usage has a line all the same."""
    has_first_flat = price.get("zero_usage_policy") == "bill_first_flat" and bool(price.get("tiers"))
    return has_first_flat or bool(price.get("minimum_amount", 0) > 0)


def amount_minor(price: Price, quantity: Fraction) -> int:
    """What a month's quantity costs in minor units, rounded once, a half away from zero."""
    return _bounded(price, _cost(price, quantity), Fraction(1))


def line_amount(snapshot: dict[str, Any], quantity: Fraction, *, minimum_ratio: Fraction) -> int:
    """What a line's quantity costs by the terms that it keeps, in minor units, rounded once.

    ``minimum_ratio`` is the share of a month that a minimum is due for. ValueError names what is not known.
    """
    price = _with_fractions(snapshot)
    _check(price)
    cost = _cost(price, quantity) if quantity > 0 else _first_flat(price)
    return _bounded(price, cost, minimum_ratio)


def event_line_amount(
    snapshot: dict[str, Any], amounts: Iterable[Decimal], *, minimum_ratio: Fraction
) -> int:
    """What a line of a price by the event costs: each amount (money in major units) for itself, in order.

    The free part ends with the first of its limits that is reached. ValueError names what is not known.
    """
    price = _with_fractions({key: value for key, value in snapshot.items() if key != "per_event"})
    _check(price)
    rules = {key: Fraction(Decimal(value)) for key, value in snapshot["per_event"].items()}
    free_events, free_amount = rules.get("free_events", 0), price.get("free_units", Fraction(0))
    is_free = bool(free_events or free_amount)
    used = cost = Fraction(0)
    for number, amount in enumerate((Fraction(amount) for amount in amounts if amount >= 0), start=1):
        charged = amount
        if is_free:
            used += amount
            is_free = number != free_events and not (free_amount and used >= free_amount)
            if not free_amount or used <= free_amount:
                continue
            charged = used - free_amount
        fee = charged * _unit_amount(price, price) + rules.get("fixed_amount", 0)
        fee = max(fee, rules.get("minimum_amount", fee))
        cost += min(fee, rules.get("maximum_amount", fee))
    return _bounded(price, cost, minimum_ratio)


def _bounded(price: Price, cost: Fraction, minimum_ratio: Fraction) -> int:
    if "maximum_amount" in price:
        cost = min(cost, price["maximum_amount"])
    if "minimum_amount" in price:
        cost = max(cost, price["minimum_amount"] * minimum_ratio)
    return floor(cost + Fraction(1, 2))  # never negative, so upwards is away from zero


def _cost(price: Price, quantity: Fraction) -> Fraction:
    """What a quantity costs by the model of its price, exact."""
    if quantity == 0:
        return _first_flat(price)
    charged: Fraction = max(Fraction(0), quantity - price.get("free_units", 0))
    match _model(price):
        case "fixed" | "per_unit":
            return Fraction(price["unit_amount"] * quantity)
        case "package":
            count = floor if price.get("package_rounding") == "down" else ceil
            return Fraction(price["unit_amount"] * count(charged / price["package_size"]))
        case "percentage":
            return _unit_amount(price, price) * charged
        case "volume":
            return _volume(price, quantity)
        case "graduated" | "graduated_percentage":
            return _graduated(price, quantity)
        case other:
            raise ValueError(f"the recomputation does not know model {other!r}")


def _first_flat(price: Price) -> Fraction:
    is_billed = price.get("zero_usage_policy") == "bill_first_flat" and price.get("tiers")
    return Fraction(price["tiers"][0].get("flat_amount", 0)) if is_billed else Fraction(0)


def _volume(price: Price, quantity: Fraction) -> Fraction:
    """Everything at the price of the first tier that is wide enough."""
    tier = next(tier for tier in price["tiers"] if quantity <= tier.get("up_to", quantity))
    return _unit_amount(price, tier) * quantity + Fraction(tier.get("flat_amount", 0))


def _graduated(price: Price, quantity: Fraction) -> Fraction:
    """Each tier's part at its own price, and the flat amount of every tier that was entered."""
    cost, lower = Fraction(0), Fraction(0)
    for tier in price["tiers"]:
        if quantity <= lower:
            break
        upper = tier.get("up_to", quantity)
        cost += Fraction(tier.get("flat_amount", 0))
        cost += _unit_amount(price, tier) * (min(quantity, upper) - lower)
        lower = upper
    return cost


def _unit_amount(price: Price, table: dict[str, Any]) -> Fraction:
    """Minor units for one of the quantity, which a percentage has in major units of the currency."""
    if "percent" not in table:
        return Fraction(table["unit_amount"])
    return Fraction(table["percent"]) * Fraction(10 ** _DECIMALS.get(price["currency"].lower(), 2), 100)


def _model(price: Price) -> str:
    return str(price.get("model", "per_unit" if "metric" in price else "fixed"))


def _with_fractions(table: dict[str, Any]) -> dict[str, Any]:
    """A price or a tier with its decimal strings read once, exactly."""
    amounts = {key: Fraction(Decimal(table[key])) for key in _AMOUNTS if key in table}
    tiers = {"tiers": [_with_fractions(tier) for tier in table["tiers"]]} if "tiers" in table else {}
    return table | amounts | tiers


def _check(price: Price) -> None:
    """Refuse a price whose model, keys or choices are not known here."""
    name, model = f"price {price.get('key')!r}", _model(price)
    if model not in _MODEL_KEYS:
        raise ValueError(f"{name}: the recomputation does not know model {model!r}")
    without_effect = {key for key, value in _WITHOUT_EFFECT.items() if price.get(key) == value}
    known = _KEYS | _MODEL_KEYS[model] | without_effect | {"recurring_interval"}
    _refuse_others(price, known, f"{name} of model {model!r}")
    for key, values in _CHOICES.items():
        if key in price and price[key] not in values:
            raise ValueError(f"{name}: the recomputation does not know {key} {price[key]!r}")
    unit = "percent" if model == "graduated_percentage" else "unit_amount"
    for tier in price.get("tiers", ()):
        _refuse_others(tier, {"up_to", "flat_amount", unit}, f"a tier of {name} of model {model!r}")


def _refuse_others(table: dict[str, Any], known: set[str], name: str) -> None:
    if others := sorted(table.keys() - known):
        raise ValueError(f"{name}: the recomputation does not know {', '.join(map(repr, others))}")
