"""One table per price model; the golden cases have the published amounts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.billing.rating import (
    PackageRounding,
    PerEvent,
    PriceModel,
    PriceTerms,
    Tier,
    TierCharge,
    ZeroUsagePolicy,
    rate,
    rate_events,
    rate_grouped,
    rate_increment,
    rate_volume_prorated,
    rate_with_true_up,
)
from svc_infra.exceptions import InvalidPrice

D = Decimal

PACKAGE = PriceTerms(
    "sms", "usd", PriceModel.PACKAGE, unit_amount=D(500), metric="sms", package_size=D(100), free_units=D(50)
)
VOLUME = PriceTerms(
    "seats",
    "usd",
    PriceModel.VOLUME,
    tiers=(Tier(D(5), D(700)), Tier(D(10), D(650), D(30)), Tier(None, D(100))),
    metric="seats",
)
PERCENTAGE = PriceTerms("fee", "usd", PriceModel.PERCENTAGE, metric="sales", percent=D("1.3"))
GRADUATED = PriceTerms(
    "cds", "usd", PriceModel.GRADUATED, tiers=(Tier(D(3), D(0)), Tier(None, D("12.5"), D(100))), metric="cds"
)
GRADUATED_PERCENTAGE = PriceTerms(
    "volume",
    "usd",
    PriceModel.GRADUATED_PERCENTAGE,
    tiers=(Tier(D(1000), percent=D(2)), Tier(None, flat_amount=D(300), percent=D("0.5"))),
    metric="sales",
)
PER_UNIT = PriceTerms("calls", "usd", PriceModel.PER_UNIT, unit_amount=D("2.5"), metric="calls")
USAGE_PRICES = (PER_UNIT, PACKAGE, VOLUME, PERCENTAGE, GRADUATED, GRADUATED_PERCENTAGE)
MONOTONE = tuple(terms for terms in USAGE_PRICES if terms.is_monotone)

quantities = st.decimals(min_value=0, max_value=10**5, places=4)
parts = st.lists(st.decimals(min_value=D("0.0001"), max_value=10**4, places=4), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [("0", 0), ("50", 0), ("50.000000000001", 500), ("150", 500), ("150.5", 1000), ("151", 1000), ("-9", 0)],
)
def test_package_charges_whole_packages_after_the_free_units(quantity: str, amount: int) -> None:
    assert rate(PACKAGE, D(quantity)).amount == amount


@pytest.mark.parametrize(("quantity", "amount"), [("149.9", 0), ("150", 500), ("249", 500), ("250", 1000)])
def test_package_rounded_down_does_not_charge_a_package_that_was_begun(quantity: str, amount: int) -> None:
    assert rate(replace(PACKAGE, package_rounding=PackageRounding.DOWN), D(quantity)).amount == amount


def test_package_explains_itself_in_packages() -> None:
    assert rate(PACKAGE, D(151)).breakdown == (TierCharge(0, D(2), D(500), D(0), D(1000)),)


def test_package_sizes_far_from_the_quantity_are_exact() -> None:
    tiny = replace(PACKAGE, package_size=D("1e-12"), unit_amount=D("1e-18"), free_units=D(0))
    assert rate(tiny, D("123456789.000000000001")).precise == Fraction(123456789000000000001, 10**18)


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [("0", 0), ("5", 3500), ("5.001", 3281), ("6", 3930), ("10", 6530), ("10.5", 1050), ("11", 1100)],
)
def test_volume_prices_everything_at_the_tier_that_is_reached(quantity: str, amount: int) -> None:
    assert rate(VOLUME, D(quantity)).amount == amount


def test_volume_explains_itself_by_its_one_tier() -> None:
    assert rate(VOLUME, D(6)).breakdown == (TierCharge(1, D(6), D(650), D(30), D(3930)),)


def test_volume_prorated_lets_the_full_quantity_choose_the_tier() -> None:
    assert rate_volume_prorated(VOLUME, D(6), D("1.5")).amount == 1005
    assert rate_volume_prorated(VOLUME, D(0), D(0)).amount == 0
    with pytest.raises(InvalidPrice, match="only volume"):
        rate_volume_prorated(GRADUATED, D(6), D("1.5"))
    with pytest.raises(InvalidPrice):
        rate_volume_prorated(VOLUME, D("NaN"), D(1))


@pytest.mark.parametrize(
    ("currency", "quantity", "amount"),
    [("usd", "100", 130), ("usd", "0.5", 1), ("usd", "-100", 0), ("jpy", "1000", 13), ("kwd", "100", 1300)],
)
def test_percentage_is_a_share_of_major_units_in_every_currency(
    currency: str, quantity: str, amount: int
) -> None:
    assert rate(replace(PERCENTAGE, currency=currency), D(quantity)).amount == amount


def test_percentage_leaves_the_free_amount_out() -> None:
    terms = replace(PERCENTAGE, free_units=D(250))
    assert [rate(terms, D(quantity)).amount for quantity in (250, 350)] == [0, 130]


@pytest.mark.parametrize(
    ("events", "per_event", "free_amount", "amount"),
    [
        ((), {"fixed_amount": D(200)}, 0, 0),
        ((50, 100, 250, 400), {"fixed_amount": D(200)}, 0, 1840),
        ((50, 100, 250, 400), {"fixed_amount": D(200)}, 250, 1115),
        ((50, 100, 250, 400), {"fixed_amount": D(200), "free_events": 3}, 0, 720),
        ((50, 100, 250, 400), {"fixed_amount": D(200), "free_events": 3}, 250, 1115),
        ((50, 100, 250, 400), {"fixed_amount": D(200), "free_events": 3}, 500, 720),
        ((50, 100, 250, 400), {"fixed_amount": D(200), "free_events": 5}, 0, 0),
        ((50, 100), {"fixed_amount": D(200)}, 150, 0),  # wholly within the free amount
        ((50, 100), {"fixed_amount": D(200)}, 50, 330),
        ((0,), {"fixed_amount": D(200)}, 0, 200),
        ((-50, 100), {"fixed_amount": D(200)}, 0, 330),  # a refund is no event to charge
        ((10, 80, 10000), {"minimum_amount": D(175), "maximum_amount": D(1200)}, 0, 1550),
        ((10, 80), {"minimum_amount": D(175), "free_events": 1}, 0, 175),  # a free event has no minimum
    ],
)
def test_percentage_of_events_has_fees_free_events_and_bounds(
    events: Sequence[int], per_event: dict[str, Any], free_amount: int, amount: int
) -> None:
    terms = replace(PERCENTAGE, per_event=PerEvent(**per_event), free_units=D(free_amount))
    rated = rate_events(terms, [D(event) for event in events])
    assert rated.amount == amount
    for charge in rated.breakdown:
        assert charge.amount == charge.quantity * charge.unit_amount + charge.flat_amount


def test_a_price_by_the_event_is_not_rated_from_a_total_nor_another_by_events() -> None:
    by_event = replace(PERCENTAGE, per_event=PerEvent(D(30)))
    with pytest.raises(InvalidPrice, match="rate_events"):
        rate(by_event, D(1))
    with pytest.raises(InvalidPrice, match="with rate"):
        rate_events(PER_UNIT, [D(1)])
    with pytest.raises(InvalidPrice, match="finite"):
        rate_events(by_event, [D("NaN")])


@given(parts)
def test_a_percentage_without_event_rules_is_the_same_from_events_and_from_their_total(
    amounts: list[Decimal],
) -> None:
    terms = replace(PERCENTAGE, free_units=D(500))
    assert rate_events(terms, amounts).precise == rate(terms, sum(amounts, D(0))).precise


@pytest.mark.parametrize(
    ("quantity", "amount"), [("0", 0), ("100", 200), ("1000", 2000), ("1000.01", 2300), ("1200", 2400)]
)
def test_graduated_percentage_takes_a_share_per_tier(quantity: str, amount: int) -> None:
    assert rate(GRADUATED_PERCENTAGE, D(quantity)).amount == amount


@pytest.mark.parametrize("model", [PriceModel.GRADUATED, PriceModel.VOLUME, PriceModel.GRADUATED_PERCENTAGE])
def test_zero_usage_costs_the_first_flat_amount_only_where_the_price_says_so(model: PriceModel) -> None:
    percent = D(1) if model is PriceModel.GRADUATED_PERCENTAGE else None
    terms = PriceTerms(
        "zero", "usd", model, tiers=(Tier(None, flat_amount=D(200), percent=percent),), metric="m"
    )
    billed = replace(terms, zero_usage_policy=ZeroUsagePolicy.BILL_FIRST_FLAT)
    assert (rate(terms, D(0)).amount, terms.bills_zero_usage) == (0, False)
    assert (rate(billed, D(0)).amount, billed.bills_zero_usage) == (200, True)


@pytest.mark.parametrize(
    ("quantity", "amount", "true_up"),
    [("0", 100, 100), ("1", 100, 97), ("40", 100, 0), ("41", 103, 0), ("400", 900, 0)],
)
def test_minimum_and_maximum_bound_the_line(quantity: str, amount: int, true_up: int) -> None:
    terms = replace(PER_UNIT, minimum_amount=D(100), maximum_amount=D("900.4"))
    assert rate(terms, D(quantity)).amount == amount
    usage, missing = rate_with_true_up(terms, D(quantity))
    assert (usage.amount + missing, missing) == (amount, true_up)
    assert terms.bills_zero_usage


def test_a_minimum_is_prorated_by_a_ratio_of_its_own() -> None:
    terms = replace(PER_UNIT, minimum_amount=D(100))
    rated = rate(terms, D(4), minimum_ratio=Fraction(1, 3))
    assert (rated.amount, rated.precise) == (33, Fraction(100, 3))
    assert rate_with_true_up(terms, D(4), minimum_ratio=Fraction(1, 3))[1] == 23
    assert rate_with_true_up(PER_UNIT, D(4)) == (rate(PER_UNIT, D(4)), 0)
    with pytest.raises(InvalidPrice):
        rate(terms, D(4), minimum_ratio=Fraction(-1))


def test_groups_begin_their_tiers_anew() -> None:
    rated = rate_grouped(GRADUATED, {"a": D(3), "b": D(4), None: D(0)})
    assert {key: group.amount for key, group in rated.items()} == {"a": 0, "b": 113, None: 0}


@given(st.sampled_from(USAGE_PRICES), parts, st.booleans())
def test_the_increments_of_any_split_add_up_to_the_single_bill(
    terms: PriceTerms, amounts: list[Decimal], has_minimum: bool
) -> None:
    terms = replace(terms, minimum_amount=D(1234) if has_minimum else None, maximum_amount=D(50_000))
    reached, billed = D(0), 0
    for amount in amounts:
        billed += rate_increment(terms, reached, amount)
        reached += amount
    assert billed == rate(terms, reached).amount


@given(st.sampled_from(MONOTONE), quantities, quantities)
def test_more_usage_never_costs_less_but_under_a_volume_price(
    terms: PriceTerms, previous: Decimal, more: Decimal
) -> None:
    assert rate_increment(terms, previous, more) >= 0


def test_an_increment_of_a_volume_price_can_be_negative() -> None:
    assert not VOLUME.is_monotone
    assert rate_increment(VOLUME, D(10), D(1)) == 1100 - 6530


ANY_TERMS = (
    *USAGE_PRICES,
    replace(PACKAGE, package_rounding=PackageRounding.DOWN, free_units=D(0)),
    replace(PERCENTAGE, per_event=PerEvent(), free_units=D("0.5")),
    replace(PERCENTAGE, per_event=PerEvent(D("0.5"), 3, D(0), D("12.5"))),
    replace(PER_UNIT, minimum_amount=D(0), maximum_amount=D("1.5")),
    PriceTerms("base", "usd", PriceModel.FIXED, unit_amount=D(5), recurring_interval="year", is_advance=True),
)


@pytest.mark.parametrize("terms", ANY_TERMS, ids=lambda terms: terms.key)
def test_a_snapshot_of_every_model_gives_the_same_terms_back(terms: PriceTerms) -> None:
    snapshot = json.loads(json.dumps(terms.to_snapshot()))
    assert PriceTerms.from_snapshot(snapshot) == terms
    assert PriceTerms.from_snapshot(snapshot).to_snapshot() == snapshot


@pytest.mark.parametrize(
    "changes",
    [
        {"package_rounding": "sideways"},
        {"package_size": 5},
        {"per_event": {"tip": "1"}},
        {"per_event": ["1"]},
        {"per_event": {"free_events": "1"}},
    ],
)
def test_a_snapshot_with_a_part_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidPrice):
        PriceTerms.from_snapshot(PACKAGE.to_snapshot() | changes)


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: replace(PACKAGE, package_size=None), "needs a package_size"),
        (lambda: replace(PACKAGE, package_size=D(0)), "needs a package_size"),
        (lambda: replace(PACKAGE, package_size=D("1e-13")), "more than 12 digits"),
        (lambda: replace(PACKAGE, free_units=D(-1)), "free_units -1 must be zero or more"),
        (lambda: replace(PER_UNIT, package_size=D(1)), "has no package_size; it belongs to package"),
        (lambda: replace(PER_UNIT, package_rounding=PackageRounding.DOWN), "has no package_rounding"),
        (lambda: replace(VOLUME, free_units=D(1)), "it belongs to package and percentage"),
        (lambda: replace(PERCENTAGE, percent=None), "needs a percent"),
        (lambda: replace(PERCENTAGE, unit_amount=D(1)), "takes a percent, no unit_amount"),
        (lambda: replace(PERCENTAGE, per_event=PerEvent(free_events=-1)), "free_events"),
        (lambda: replace(PERCENTAGE, per_event=PerEvent(D(-1))), "fixed_amount -1"),
        (
            lambda: replace(PERCENTAGE, per_event=PerEvent(minimum_amount=D(2), maximum_amount=D(1))),
            "minimum_amount 2 is more",
        ),
        (lambda: replace(VOLUME, tiers=(Tier(None, percent=D(1)),)), "a unit_amount and no percent"),
        (lambda: replace(GRADUATED_PERCENTAGE, tiers=(Tier(None, D(1)),)), "a percent and no unit_amount"),
        (
            lambda: replace(GRADUATED_PERCENTAGE, tiers=(Tier(None, D(1), percent=D(1)),)),
            "a percent and no unit_amount",
        ),
        (lambda: replace(GRADUATED_PERCENTAGE, tiers=(Tier(None, percent=D(-1)),)), "percent -1 must be"),
        (lambda: replace(ANY_TERMS[-1], minimum_amount=D(1)), "a fixed price has no minimum_amount"),
    ],
)
def test_parts_of_another_model_are_refused(build: Callable[[], PriceTerms], complaint: str) -> None:
    with pytest.raises(InvalidPrice, match=complaint):
        build()
