"""Published amounts of billing vendors, one test per case, through the public billing functions.

The file is the one that ``GOLDEN_CASES`` names, or the copy beside this test. A case is skipped by its
(model, klass) only; a model that nobody has listed, or an input key that its runner does not know, fails.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from svc_infra.billing.money import currency_exponent, format_minor, round_half_away
from svc_infra.billing.periods import interval_start, local_day, zone
from svc_infra.billing.rating import PriceModel, PriceTerms, RatedAmount, Tier, ZeroUsagePolicy, rate

Case = dict[str, Any]

CASES: list[Case] = json.loads(
    Path(os.environ.get("GOLDEN_CASES") or Path(__file__).with_name("golden_cases.json")).read_text("utf-8")
)

# All ways in which the files name our one rule; no other rounding exists here.
HALF_AWAY = ("half_up", "half_up_per_line", "half_away_from_zero")


def minor(inputs: Case, name: str) -> Decimal:
    """An amount of the inputs, given in major or in minor units, as minor units."""
    if f"{name}_minor" in inputs:
        return Decimal(inputs[f"{name}_minor"])
    return Decimal(inputs[name]).scaleb(currency_exponent(inputs["currency"]))


def fixed(inputs: Case, name: str, ratio: Fraction = Fraction(1)) -> RatedAmount:
    terms = PriceTerms(
        "fixed",
        inputs["currency"],
        PriceModel.FIXED,
        unit_amount=minor(inputs, name),
        recurring_interval="month",
    )
    return rate(terms, Decimal(1), ratio=ratio)


def graduated(inputs: Case) -> RatedAmount:
    tiers = tuple(
        Tier(
            up_to=None if tier["up_to"] is None else Decimal(tier["up_to"]),
            unit_amount=minor(tier | {"currency": inputs["currency"]}, "unit_price"),
            flat_amount=minor(tier | {"currency": inputs["currency"]}, "flat_fee"),
        )
        for tier in inputs["tiers"]
    )
    policy = ZeroUsagePolicy(inputs.get("zero_usage_policy", "bill_first_flat"))
    terms = PriceTerms(
        "tiers",
        inputs["currency"],
        PriceModel.GRADUATED,
        tiers=tiers,
        metric="m",
        zero_usage_policy=policy,
    )
    return rate(terms, Decimal(inputs["quantity"]))


def amount_matches(amount: int, inputs: Case, expected: Case) -> None:
    assert expected.keys() & {"amount", "amount_minor"}, "the case expects no amount"
    if "amount_minor" in expected:
        assert amount == int(expected["amount_minor"])
    if "amount" in expected:
        assert Decimal(format_minor(amount, inputs["currency"])) == Decimal(expected["amount"])


def per_unit(inputs: Case, expected: Case) -> None:
    assert inputs.get("rounding", HALF_AWAY[0]) in HALF_AWAY
    unit_amount = minor(inputs, "unit_price")
    terms = PriceTerms("unit", inputs["currency"], PriceModel.PER_UNIT, unit_amount=unit_amount, metric="m")
    rated = rate(terms, Decimal(inputs["quantity"]))
    amount_matches(rated.amount, inputs, expected)
    if "precise_amount" in expected:
        scale = 10 ** currency_exponent(inputs["currency"])
        assert rated.precise == Fraction(expected["precise_amount"]) * scale


def tiered_graduated(inputs: Case, expected: Case) -> None:
    amount_matches(graduated(inputs).amount, inputs, expected)


def base_plus_graduated(inputs: Case, expected: Case) -> None:
    amount_matches(fixed(inputs, "base").amount + graduated(inputs).amount, inputs, expected)


def proration_fraction(inputs: Case, expected: Case) -> None:
    amount_matches(fixed(inputs, "price", Fraction(inputs["fraction"])).amount, inputs, expected)


def rounding(inputs: Case, expected: Case) -> None:
    assert inputs["mode"] in HALF_AWAY
    if "amount_minor" in inputs:
        assert round_half_away(Fraction(inputs["amount_minor"])) == int(expected["amount_minor"])
        return
    decimals = inputs["precision"] if "precision" in inputs else currency_exponent(inputs["currency"])
    rounded = round_half_away(Decimal(inputs["amount"]).scaleb(int(decimals)))
    assert Decimal(rounded).scaleb(-int(decimals)) == Decimal(expected["amount"])


def period_boundary(inputs: Case, expected: Case) -> None:
    anchor = date.fromisoformat(inputs["anchor"])
    starts = [interval_start(anchor, inputs["interval"], index) for index in range(int(inputs["count"]))]
    assert [start.isoformat() for start in starts] == expected["starts"]


def local_date(inputs: Case, expected: Case) -> None:
    instant = datetime.fromisoformat(inputs["instant"])
    assert local_day(instant, zone(inputs["timezone"])).isoformat() == expected["local_date"]


# Per model: what runs it, and every input key that it takes into account.
RUNNERS: dict[str, tuple[Callable[[Case, Case], None], set[str]]] = {
    "per_unit": (per_unit, {"quantity", "unit_price", "unit_price_minor", "currency", "rounding"}),
    "tiered_graduated": (tiered_graduated, {"quantity", "tiers", "currency", "zero_usage_policy"}),
    "base_plus_graduated": (base_plus_graduated, {"base", "quantity", "tiers", "currency"}),
    "proration_fraction": (
        proration_fraction,
        {"price", "price_minor", "fraction", "service_period", "currency"},
    ),
    "rounding": (rounding, {"amount", "amount_minor", "currency", "mode", "precision"}),
    "period_boundary": (period_boundary, {"anchor", "interval", "count"}),
    "local_day": (local_date, {"instant", "timezone"}),
}

KLASSES = ("core", "optional", "policy")
BUILT_WITH_ISSUE_5 = """
    package tiered_volume tiered_graduated_grouped tiered_graduated_progressive tiered_volume_prorated
    graduated_percentage percentage minimum maximum minimum_commitment unit_conversion quantity_rounding
    weighted_sum proration_start proration_plan_change proration_interval_change trial
    graduated_prorated_recurring
"""
OUT_OF_SCOPE = """
    tax usage_discount coupons_sequential coupon_and_tax_allocation allocation credit_note_proration
    invoice_total maximum_with_discount tiered_blocks_all tiered_blocks_top dynamic_markup
"""
NOT_BUILT: dict[tuple[str, str], str] = {
    (model, klass): reason
    for reason, models in (
        ("built with issue 5", BUILT_WITH_ISSUE_5),
        ("taxes, discounts, blocks and mark-ups are out of scope", OUT_OF_SCOPE),
    )
    for model in models.split()
    for klass in KLASSES
}


def run_case(case: Case) -> None:
    identity = (case["model"], case["klass"])
    if identity in NOT_BUILT:
        pytest.skip(f"{identity[0]} ({identity[1]}): {NOT_BUILT[identity]}")
    assert case["model"] in RUNNERS, f"nobody runs the model {case['model']!r}"
    runner, known_keys = RUNNERS[case["model"]]
    unknown = case["inputs"].keys() - known_keys
    assert not unknown, f"the runner of {case['model']!r} does not know the inputs {sorted(unknown)}"
    runner(case["inputs"], case["expected"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_golden_case(case: Case) -> None:
    run_case(case)


def test_the_file_has_cases_that_are_run() -> None:
    assert any(case["model"] in RUNNERS for case in CASES)


def test_a_model_is_either_run_or_listed_as_not_built() -> None:
    assert not RUNNERS.keys() & {model for model, _ in NOT_BUILT}


def test_an_unknown_model_fails() -> None:
    case = {"id": "x", "model": "barter", "klass": "core", "inputs": {}, "expected": {}}
    with pytest.raises(AssertionError, match="nobody runs the model 'barter'"):
        run_case(case)


def test_an_unknown_input_key_fails() -> None:
    inputs = {"quantity": "1", "unit_price": "1", "currency": "USD", "free_units": "1"}
    case = {"id": "x", "model": "per_unit", "klass": "core", "inputs": inputs, "expected": {"amount": "1"}}
    with pytest.raises(AssertionError, match="free_units"):
        run_case(case)


def test_a_wrong_amount_fails() -> None:
    inputs = {"quantity": "1", "unit_price": "1", "currency": "USD"}
    case = {"id": "x", "model": "per_unit", "klass": "core", "inputs": inputs, "expected": {"amount": "2"}}
    with pytest.raises(AssertionError):
        run_case(case)
