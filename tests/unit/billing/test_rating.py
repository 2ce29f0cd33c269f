from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.billing.rating import PriceModel, PriceTerms, Tier, TierCharge, ZeroUsagePolicy, rate
from svc_infra.exceptions import AmountTooLarge, InvalidCurrency, InvalidPrice

D = Decimal

# The tiers of the catalog's own example: three free, then 12.5 cents up to twenty, then 9 cents and a dollar.
EXAMPLE = (Tier(D(3), D(0)), Tier(D(20), D("12.5")), Tier(None, D(9), D(100)))


def fixed(unit_amount: str) -> PriceTerms:
    return PriceTerms("base", "usd", PriceModel.FIXED, unit_amount=D(unit_amount), recurring_interval="month")


def per_unit(unit_amount: str) -> PriceTerms:
    return PriceTerms("calls", "usd", PriceModel.PER_UNIT, unit_amount=D(unit_amount), metric="calls")


def graduated(*tiers: Tier) -> PriceTerms:
    return PriceTerms("cds", "usd", PriceModel.GRADUATED, tiers=tiers, metric="cds")


amounts = st.decimals(min_value=0, max_value=10**6, places=4)
quantities = st.decimals(min_value=0, max_value=10**6, places=6)
ratios = st.fractions(min_value=0, max_value=1)


@st.composite
def tiered_terms(draw: st.DrawFn) -> PriceTerms:
    bounds = sorted(draw(st.sets(st.decimals(min_value=D("0.001"), max_value=1000, places=3), max_size=4)))
    return graduated(*(Tier(up_to, draw(amounts), draw(amounts)) for up_to in [*bounds, None]))


any_terms = st.one_of(amounts.map(str).map(fixed), amounts.map(str).map(per_unit), tiered_terms())


@pytest.mark.parametrize(
    ("unit_amount", "quantity", "amount"),
    [
        ("12.5", "3", 38),
        ("12.5", "1", 13),
        ("0.4", "1", 0),
        ("833", "49.5", 41234),  # 41233.5; binary floats give 41233
        ("0.000000000001", "500000000000", 1),
        ("0.000000000001", "499999999999", 0),
        ("100", "1.996", 200),
    ],
)
def test_a_line_is_rounded_once_and_its_unit_price_never(
    unit_amount: str, quantity: str, amount: int
) -> None:
    assert rate(per_unit(unit_amount), D(quantity)).amount == amount


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [
        ("0.5", 0),
        ("3", 0),
        ("3.04", 1),  # 0.5 rounded away from zero
        ("4", 13),
        ("20", 213),  # 17 * 12.5
        ("20.000000000001", 313),  # entering the last tier by any fraction adds its flat amount
        ("21", 322),
        ("120", 1213),
    ],
)
def test_graduated_tiers_are_inclusive_at_the_top_and_real_valued(quantity: str, amount: int) -> None:
    assert rate(graduated(*EXAMPLE), D(quantity)).amount == amount


def test_a_rated_amount_explains_itself_tier_by_tier() -> None:
    rated = rate(graduated(*EXAMPLE), D(21))
    assert rated.precise == Fraction("321.5")
    assert rated.breakdown == (
        TierCharge(0, D(3), D(0), D(0), D(0)),
        TierCharge(1, D(17), D("12.5"), D(0), D("212.5")),
        TierCharge(2, D(1), D(9), D(100), D(109)),
    )


def test_proration_is_applied_in_the_last_multiplication() -> None:
    rated = rate(fixed("2495"), D(1), ratio=Fraction(9, 31))
    assert (rated.amount, rated.precise) == (724, Fraction(2495 * 9, 31))
    assert rated.breakdown[0].amount == D(2495)


def test_a_fixed_price_is_charged_as_often_as_it_applies() -> None:
    assert rate(fixed("500"), D(1)).amount == 500
    assert rate(fixed("500"), D(3)).amount == 1500


@given(any_terms, ratios)
def test_zero_usage_costs_nothing(terms: PriceTerms, ratio: Fraction) -> None:
    assert rate(terms, D(0), ratio=ratio) == (0, Fraction(0), ())


def test_negative_usage_does_not_refund() -> None:
    assert rate(per_unit("100"), D(-5)).amount == 0


def test_zero_usage_can_cost_the_first_flat_amount_where_the_price_says_so() -> None:
    terms = graduated(Tier(D(10), D(10), D(200)), Tier(None, D(5)))
    billed = replace(terms, zero_usage_policy=ZeroUsagePolicy.BILL_FIRST_FLAT)
    assert rate(terms, D(0)).amount == 0
    assert rate(billed, D(0)).amount == 200
    assert rate(billed, D(1)).amount == rate(terms, D(1)).amount == 210


@given(tiered_terms(), quantities, quantities)
def test_more_usage_never_costs_less(terms: PriceTerms, one: Decimal, other: Decimal) -> None:
    less, more = sorted((one, other))
    assert rate(terms, less).amount <= rate(terms, more).amount


@given(any_terms, quantities, ratios)
def test_the_amount_is_the_precise_value_rounded_once(
    terms: PriceTerms, quantity: Decimal, ratio: Fraction
) -> None:
    rated = rate(terms, quantity, ratio=ratio)
    assert rated.precise == sum(Fraction(charge.amount) for charge in rated.breakdown) * ratio
    assert abs(rated.amount - rated.precise) <= Fraction(1, 2)
    assert sum(charge.quantity for charge in rated.breakdown) == quantity


@given(amounts, quantities)
def test_one_endless_tier_is_a_price_per_unit(unit_amount: Decimal, quantity: Decimal) -> None:
    assert (
        rate(graduated(Tier(None, unit_amount)), quantity).precise
        == rate(per_unit(str(unit_amount)), quantity).precise
    )


def test_the_widest_numbers_of_the_columns_are_rated_exactly() -> None:
    quantity = D("9" * 26 + "." + "9" * 12)
    terms = per_unit("0." + "9" * 18)
    with pytest.raises(AmountTooLarge):
        rate(terms, quantity)
    share = Fraction(1, 10**20)
    assert (
        rate(terms, quantity, ratio=share).precise == Fraction(quantity) * Fraction("0." + "9" * 18) * share
    )


@pytest.mark.parametrize("quantity", ["NaN", "sNaN", "Infinity", "-Infinity"])
def test_a_quantity_that_is_no_number_is_refused(quantity: str) -> None:
    with pytest.raises(InvalidPrice, match="finite"):
        rate(per_unit("1"), D(quantity))


def test_a_negative_share_is_refused() -> None:
    with pytest.raises(InvalidPrice):
        rate(per_unit("1"), D(1), ratio=Fraction(-1, 2))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"key": ""}, "needs a key"),
        ({"model": PriceModel.PER_UNIT, "metric": None}, "needs the metric"),
        ({"model": PriceModel.FIXED, "recurring_interval": "month"}, "no metric"),
        ({"model": PriceModel.FIXED, "metric": None}, "recurring_interval"),
        ({"recurring_interval": "week"}, "use 'month' or 'year'"),
        ({"recurring_interval": "year"}, "leave recurring_interval out"),
        ({"is_advance": True}, "cannot be billed in advance"),
        ({"unit_amount": None}, "a unit_amount and no tiers"),
        ({"tiers": EXAMPLE}, "a unit_amount and no tiers"),
        ({"model": PriceModel.GRADUATED}, "tiers and no unit_amount"),
        ({"model": PriceModel.GRADUATED, "tiers": EXAMPLE}, "tiers and no unit_amount"),
        ({"unit_amount": D(-1)}, "zero or more"),
        ({"unit_amount": D("NaN")}, "zero or more"),
        ({"unit_amount": D("1e-19")}, "more than 18 digits after the point"),
        ({"unit_amount": D(10) ** 20}, "more than 20 digits before the point"),
        ({"unit_amount": D("1e5000")}, "digits"),
    ],
)
def test_terms_that_do_not_fit_together_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidPrice, match=complaint):
        replace(per_unit("1"), **changes)


@pytest.mark.parametrize(
    ("tiers", "complaint"),
    [
        ((Tier(D(3), D(0)),), "every tier but the last"),
        ((Tier(None, D(0)), Tier(None, D(1))), "every tier but the last"),
        ((Tier(D(3), D(0)), Tier(D(3), D(1)), Tier(None, D(1))), "must be more than 3"),
        ((Tier(D(0), D(0)), Tier(None, D(1))), "must be more than 0"),
        ((Tier(D(-1), D(0)), Tier(None, D(1))), "zero or more"),
        ((Tier(D("1e-13"), D(0)), Tier(None, D(1))), "more than 12 digits"),
        ((Tier(None, D(1), D(-1)),), "flat_amount -1 must be zero or more"),
    ],
)
def test_tiers_that_leave_a_quantity_unpriced_or_twice_are_refused(
    tiers: tuple[Tier, ...], complaint: str
) -> None:
    with pytest.raises(InvalidPrice, match=complaint):
        graduated(*tiers)


def test_the_currency_is_checked_and_kept_in_lower_case() -> None:
    assert replace(per_unit("1"), currency="EUR").currency == "eur"
    with pytest.raises(InvalidCurrency):
        replace(per_unit("1"), currency="zzz")


def test_a_snapshot_is_json_with_canonical_decimals() -> None:
    assert graduated(Tier(D("3.50"), D("0.0")), Tier(None, D("9E+1"), D(100))).to_snapshot() == {
        "key": "cds",
        "currency": "usd",
        "model": "graduated",
        "metric": "cds",
        "tiers": [
            {"up_to": "3.5", "unit_amount": "0"},
            {"unit_amount": "90", "flat_amount": "100"},
        ],
    }
    assert fixed("500").to_snapshot() == {
        "key": "base",
        "currency": "usd",
        "model": "fixed",
        "unit_amount": "500",
        "recurring_interval": "month",
    }


@given(any_terms, st.sampled_from(ZeroUsagePolicy))
def test_a_snapshot_gives_the_same_terms_back(terms: PriceTerms, policy: ZeroUsagePolicy) -> None:
    terms = replace(terms, zero_usage_policy=policy)
    snapshot = json.loads(json.dumps(terms.to_snapshot()))
    assert PriceTerms.from_snapshot(snapshot) == terms


@pytest.mark.parametrize(
    "changes",
    [{"model": "barter"}, {"tiers": [{"up_to": "1"}]}, {"unit_amount": 1.5}, {"extra": 1}],
)
def test_anything_but_a_snapshot_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidPrice):
        PriceTerms.from_snapshot(per_unit("1").to_snapshot() | changes)
