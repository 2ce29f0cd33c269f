"""Reading the inputs of a golden case, and comparing with what it expects."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from svc_infra.billing.money import RoundingMode, currency_exponent
from svc_infra.billing.periods import Period
from svc_infra.billing.rating import PriceModel, PriceTerms, Tier, ZeroUsagePolicy, rate

Case = dict[str, Any]

# Every way in which the files may name a rounding.
ROUNDINGS = {mode.value: mode for mode in RoundingMode} | {
    "half_up": RoundingMode.HALF_AWAY,
    "half_away": RoundingMode.HALF_AWAY,
    "round": RoundingMode.HALF_AWAY,
    "nearest": RoundingMode.HALF_AWAY,
    "bankers": RoundingMode.HALF_EVEN,
    "ceiling": RoundingMode.CEIL,
}


def rounding_mode(name: str) -> RoundingMode:
    return ROUNDINGS[name.removesuffix("_per_line")]


def places(inputs: Case) -> int:
    """How many decimals the case's minor unit has: as it says, or as its currency has."""
    if inputs.get("precision") is not None:
        return int(inputs["precision"])
    return currency_exponent(inputs["currency"])


def minor(inputs: Case, name: str) -> Decimal:
    """An amount of the inputs, given in major or in minor units, as minor units."""
    if f"{name}_minor" in inputs:
        return Decimal(inputs[f"{name}_minor"])
    return Decimal(inputs[name]).scaleb(places(inputs))


def optional_minor(inputs: Case, name: str) -> Decimal | None:
    is_given = inputs.get(name) is not None or inputs.get(f"{name}_minor") is not None
    return minor(inputs, name) if is_given else None


def matches(found: dict[str, int | Fraction], inputs: Case, expected: Case) -> None:
    """Compare what was computed, in minor units, with every expectation in major or minor units."""
    assert expected, "the case expects nothing"
    scale = 10 ** places(inputs)
    for name, text in expected.items():
        if name.endswith("_minor"):
            assert found[name.removesuffix("_minor")] == Fraction(text), name
        else:
            assert found[name] == Fraction(text) * scale, name


def tiers_of(inputs: Case) -> tuple[Tier, ...]:
    none = Decimal(0)
    return tuple(
        Tier(
            up_to=None if tier.get("up_to") is None else Decimal(tier["up_to"]),
            unit_amount=optional_minor({"currency": inputs["currency"]} | tier, "unit_price") or none,
            flat_amount=optional_minor({"currency": inputs["currency"]} | tier, "flat_fee") or none,
            percent=Decimal(tier["percent"]) if "percent" in tier else None,
        )
        for tier in inputs["tiers"]
    )


def tiered(inputs: Case, model: PriceModel) -> PriceTerms:
    policy = ZeroUsagePolicy(inputs.get("zero_usage_policy", "bill_first_flat"))
    return PriceTerms(
        "tiers",
        inputs["currency"],
        model,
        tiers=tiers_of(inputs),
        metric="m",
        zero_usage_policy=policy,
    )


def per_unit_terms(inputs: Case) -> PriceTerms:
    return PriceTerms(
        "unit",
        inputs["currency"],
        PriceModel.PER_UNIT,
        unit_amount=minor(inputs, "unit_price"),
        metric="m",
    )


def fixed(inputs: Case, name: str, ratio: Fraction = Fraction(1)) -> int:
    unit_amount = minor(inputs, name)
    terms = PriceTerms(
        "fixed", inputs["currency"], PriceModel.FIXED, unit_amount=unit_amount, recurring_interval="month"
    )
    return rate(terms, Decimal(1), ratio=ratio).amount


def instant(text: str) -> datetime:
    """An instant, or the beginning of a date; without a zone the days of a case are those of UTC."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def period_of(inputs: Case) -> Period:
    start, end = inputs["period"]
    return Period(instant(start), instant(end))
