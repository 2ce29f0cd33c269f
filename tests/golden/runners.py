"""One runner per in-scope model of the golden cases: it feeds the inputs to the public billing functions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

from svc_infra.billing.meters import MeteredEvent, weighted_sum
from svc_infra.billing.money import percent_of, round_half_away, round_to
from svc_infra.billing.proration import remaining_ratio
from svc_infra.billing.rating import (
    PackageRounding,
    PerEvent,
    PriceModel,
    PriceTerms,
    RatedAmount,
    capped,
    minimum_commitment,
    rate,
    rate_events,
    rate_grouped,
    rate_increment,
    rate_volume_prorated,
    true_up,
)
from svc_infra.billing.units import Operation, UnitConversion, less_free_units, round_quantity
from tests.golden.case_inputs import (
    Case,
    fixed,
    instant,
    matches,
    minor,
    optional_minor,
    per_unit_terms,
    period_of,
    places,
    rounding_mode,
    tiered,
)
from tests.golden.period_runners import (
    interval_change,
    local_date,
    period_boundary,
    plan_change,
    proration_fraction,
    proration_start,
    trial,
)


def rated_matches(rated: RatedAmount, inputs: Case, expected: Case) -> None:
    matches({"amount": rated.amount, "precise_amount": rated.precise}, inputs, expected)


def per_unit(inputs: Case, expected: Case) -> None:
    rated = rate(per_unit_terms(inputs), Decimal(inputs["quantity"]))
    mode = rounding_mode(inputs.get("rounding", "half_up_per_line"))
    amount = int(round_to(rated.precise, mode=mode))
    matches({"amount": amount, "precise_amount": rated.precise}, inputs, expected)


def package(inputs: Case, expected: Case) -> None:
    name = inputs.get("round") or "up"
    terms = PriceTerms(
        "package",
        inputs["currency"],
        PriceModel.PACKAGE,
        unit_amount=minor(inputs, "package_price"),
        metric="m",
        package_size=Decimal(inputs["package_size"]),
        package_rounding=PackageRounding({"ceil": "up", "floor": "down"}.get(name, name)),
        free_units=Decimal(inputs.get("free_units") or 0),
    )
    rated_matches(rate(terms, Decimal(inputs["quantity"])), inputs, expected)


def tiered_model(model: PriceModel) -> Callable[[Case, Case], None]:
    def run(inputs: Case, expected: Case) -> None:
        rated_matches(rate(tiered(inputs, model), Decimal(inputs["quantity"])), inputs, expected)

    return run


def grouped(inputs: Case, expected: Case) -> None:
    quantities = {key: Decimal(quantity) for key, quantity in inputs["groups"].items()}
    rated = rate_grouped(tiered(inputs, PriceModel.GRADUATED), quantities)
    scale = 10 ** places(inputs)
    wanted = {key: Fraction(amount) * scale for key, amount in expected["group_amounts"].items()}
    assert {key: group.amount for key, group in rated.items()} == wanted
    total = sum(group.amount for group in rated.values())
    matches({"amount": total}, inputs, {key: expected[key] for key in expected if key != "group_amounts"})


def progressive(inputs: Case, expected: Case) -> None:
    terms = tiered(inputs, PriceModel.GRADUATED)
    amount = rate_increment(terms, Decimal(inputs["previous_quantity"]), Decimal(inputs["quantity"]))
    matches({"amount": amount}, inputs, expected)


def volume_prorated(inputs: Case, expected: Case) -> None:
    full, prorated = Decimal(inputs["full_quantity"]), Decimal(inputs["prorated_quantity"])
    rated_matches(rate_volume_prorated(tiered(inputs, PriceModel.VOLUME), full, prorated), inputs, expected)


def base_plus_graduated(inputs: Case, expected: Case) -> None:
    usage = rate(tiered(inputs, PriceModel.GRADUATED), Decimal(inputs["quantity"])).amount
    matches({"amount": fixed(inputs, "base") + usage}, inputs, expected)


def percentage(inputs: Case, expected: Case) -> None:
    terms = PriceTerms(
        "percentage",
        inputs["currency"],
        PriceModel.PERCENTAGE,
        metric="m",
        percent=Decimal(inputs["rate_percent"]),
        free_units=Decimal(inputs.get("free_amount") or 0),
        per_event=PerEvent(
            fixed_amount=optional_minor(inputs, "fixed_fee_per_event") or Decimal(0),
            free_events=int(inputs.get("free_events") or 0),
            minimum_amount=optional_minor(inputs, "per_transaction_min"),
            maximum_amount=optional_minor(inputs, "per_transaction_max"),
        ),
    )
    rated_matches(rate_events(terms, transactions(inputs)), inputs, expected)


def transactions(inputs: Case) -> list[Decimal]:
    """The single amounts; a bare quantity is one of them, and none if it is 0."""
    if "transactions" in inputs:
        return [Decimal(amount) for amount in inputs["transactions"]]
    if "transactions_cumulative" in inputs:
        totals = [Decimal(0), *map(Decimal, inputs["transactions_cumulative"])]
        return [later - earlier for earlier, later in pairwise(totals)]
    quantity = Decimal(inputs["quantity"])
    return [quantity] if quantity > 0 else []


def minimum(inputs: Case, expected: Case) -> None:
    usage = round_half_away(optional_minor(inputs, "usage") or optional_minor(inputs, "usage_amount") or 0)
    billed = round_half_away(optional_minor(inputs, "billed") or 0)
    ratio = Fraction(inputs.get("prorate_fraction") or 1)
    missing = true_up(usage + billed, minor(inputs, "minimum"), ratio=ratio)
    tax = percent_of(missing, Decimal(inputs.get("tax_percent") or 0))
    found = {
        "usage_line": usage,
        "true_up_line": missing,
        "true_up": missing,
        "total": usage + billed + missing,
        "true_up_tax": tax,
    }
    matches(found, inputs, expected)


def maximum(inputs: Case, expected: Case) -> None:
    if "uncapped_line" in inputs or "uncapped_line_minor" in inputs:
        line = round_half_away(minor(inputs, "uncapped_line"))
    else:
        line = rate(per_unit_terms(inputs), Decimal(inputs["quantity"])).amount
    previous = round_half_away(optional_minor(inputs, "previously_billed") or 0)
    matches({"amount": capped(line, minor(inputs, "maximum"), previous)}, inputs, expected)


def commitment(inputs: Case, expected: Case) -> None:
    ratio = remaining_ratio(period_of(inputs), instant(inputs["start"]), UTC)
    made = minimum_commitment(minor(inputs, "plan"), minor(inputs, "commitment"), ratio=ratio)
    found = {"plan_line": made.plan, "commitment_prorated": made.commitment, "true_up": made.true_up}
    matches(found, inputs, expected)


def unit_conversion(inputs: Case, expected: Case) -> None:
    name = inputs.get("round", "up")
    conversion = UnitConversion(
        Operation(inputs["operation"]),
        Decimal(inputs["factor"]),
        None if name in (None, "none") else rounding_mode(name),
    )
    discount = Decimal(inputs.get("usage_discount_units") or 0)
    quantity = less_free_units(conversion.convert(Decimal(inputs["quantity"])), discount)
    if "billed_quantity" in expected:
        assert quantity == Decimal(expected["billed_quantity"])
    if "amount" in expected:
        terms = tiered(inputs, PriceModel.GRADUATED) if "tiers" in inputs else per_unit_terms(inputs)
        matches({"amount": rate(terms, quantity).amount}, inputs, {"amount": expected["amount"]})
    assert expected.keys() & {"billed_quantity", "amount"}, "the case expects nothing"


def quantity_rounding(inputs: Case, expected: Case) -> None:
    found = round_quantity(
        Decimal(inputs["quantity"]),
        places=int(inputs.get("precision") or 0),
        mode=rounding_mode(inputs["function"]),
    )
    assert found == Decimal(expected["quantity"])


def weighted(inputs: Case, expected: Case) -> None:
    deltas = [MeteredEvent(instant(at), Decimal(change)) for at, change in inputs["deltas"]]
    value = weighted_sum(deltas, period_of(inputs), initial=Decimal(inputs.get("initial") or 0))
    assert expected.keys() <= {"exact", "value_rounded_10", "value_rounded_5"}
    assert expected, "the case expects nothing"
    for name, text in expected.items():
        wanted = Fraction(text)
        assert (value if name == "exact" else round_to(value, int(name.rpartition("_")[2]))) == wanted


def rounding(inputs: Case, expected: Case) -> None:
    mode = rounding_mode(inputs["mode"])
    if "amount_minor" in inputs:
        amount = round_to(Fraction(inputs["amount_minor"]), mode=mode)  # a minor unit has no decimals
        assert amount == Decimal(expected["amount_minor"])
    else:
        amount = round_to(Fraction(inputs["amount"]), places(inputs), mode)
        assert amount == Decimal(expected["amount"])


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Per model: what runs it, and every input key that it takes into account.
RUNNERS: dict[str, tuple[Callable[[Case, Case], None], frozenset[str]]] = {
    "per_unit": (per_unit, _keys("quantity unit_price unit_price_minor currency rounding")),
    "package": (package, _keys("quantity package_size package_price round currency free_units")),
    "tiered_graduated": (
        tiered_model(PriceModel.GRADUATED),
        _keys("quantity tiers currency zero_usage_policy"),
    ),
    "tiered_volume": (tiered_model(PriceModel.VOLUME), _keys("quantity tiers currency zero_usage_policy")),
    "tiered_graduated_grouped": (grouped, _keys("groups tiers currency")),
    "tiered_graduated_progressive": (progressive, _keys("previous_quantity quantity tiers currency")),
    "tiered_volume_prorated": (volume_prorated, _keys("full_quantity prorated_quantity tiers currency")),
    "graduated_percentage": (
        tiered_model(PriceModel.GRADUATED_PERCENTAGE),
        _keys("quantity tiers currency zero_usage_policy"),
    ),
    "percentage": (
        percentage,
        _keys(
            "transactions transactions_cumulative quantity rate_percent fixed_fee_per_event free_events "
            "free_amount per_transaction_min per_transaction_max currency"
        ),
    ),
    "base_plus_graduated": (base_plus_graduated, _keys("base quantity tiers currency")),
    "minimum": (
        minimum,
        _keys(
            "usage_amount usage_minor minimum minimum_minor billed prorate_fraction precision tax_percent "
            "currency"
        ),
    ),
    "maximum": (
        maximum,
        _keys("quantity unit_price_minor uncapped_line maximum maximum_minor previously_billed currency"),
    ),
    "minimum_commitment": (commitment, _keys("plan_minor commitment_minor period start currency")),
    "unit_conversion": (
        unit_conversion,
        _keys("quantity operation factor round unit_price tiers usage_discount_units currency"),
    ),
    "quantity_rounding": (quantity_rounding, _keys("quantity function precision")),
    "weighted_sum": (weighted, _keys("period initial deltas")),
    "rounding": (rounding, _keys("amount amount_minor currency mode precision")),
    "proration_fraction": (
        proration_fraction,
        _keys("price price_minor fraction service_period currency"),
    ),
    "proration_start": (proration_start, _keys("price price_minor period start tax_percent currency")),
    "proration_plan_change": (
        plan_change,
        _keys(
            "old_price old_price_minor new_price new_price_minor period change_at remaining_fraction currency"
        ),
    ),
    "proration_interval_change": (
        interval_change,
        _keys("old_price_minor new_price_minor period change_at currency"),
    ),
    "trial": (trial, _keys("price price_minor period trial_end start trial_days currency")),
    "period_boundary": (period_boundary, _keys("anchor interval count")),
    "local_day": (local_date, _keys("instant timezone")),
}
