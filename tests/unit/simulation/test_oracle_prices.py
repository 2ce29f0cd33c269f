"""The oracle's prices, held against the product's rating, which shares no code with them."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.rating import PriceModel, rate
from svc_infra.simulation import oracle_prices
from svc_infra.simulation.oracle import ExpectedLine, Oracle, check_catalog

HEADER = "tenant_id,metric,amount,at,idempotency_key\n"
USAGE_PRICE = """\
[[prices]]
key = "calls"
currency = "{currency}"
metric = "calls"
"""
TIERS = 'tiers = [ { up_to = "5", unit_amount = "7", flat_amount = "40" }, { unit_amount = "6" } ]\n'


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.toml"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ('model = "graduated"\nzero_usage_policy = "bill_first_flat"\n' + TIERS, 40),
        ('model = "volume"\nzero_usage_policy = "bill_first_flat"\n' + TIERS, 40),
        ('model = "graduated"\n' + TIERS, None),
        ('unit_amount = "1"\nminimum_amount = "99.5"\n', 100),
        ('unit_amount = "1"\nminimum_amount = "0"\n', None),
        ('model = "percentage"\npercent = "1"\nmaximum_amount = "9"\n', None),
    ],
)
def test_a_month_without_usage_has_a_line_if_it_costs_something(
    catalog_path: Path, parts: str, expected: int | None
) -> None:
    catalog_path.write_text(USAGE_PRICE.format(currency="usd") + parts)
    usage_path = catalog_path.with_name("usage.csv")
    usage_path.write_text(HEADER + "a,disk,1,2025-01-01T12:00:00Z,1\na,calls,0,2025-02-01T12:00:00Z,1\n")
    oracle = Oracle(usage_path, catalog_path)
    lines = () if expected is None else (ExpectedLine("calls", Fraction(0), expected),)
    assert [invoice.lines for invoice in oracle.expected_invoices("a")] == [lines, lines]


amounts = st.decimals(min_value=0, max_value=10**4, places=3)
sizes = st.decimals(min_value="0.001", max_value=500, places=3)
percents = st.decimals(min_value=0, max_value=100, places=2)


@st.composite
def price_tables(draw: st.DrawFn) -> str:
    """A price of any model that bills usage, as the catalog file writes it."""
    model = draw(st.sampled_from([model.value for model in PriceModel if model is not PriceModel.FIXED]))
    parts: dict[str, object] = {}
    if model in ("per_unit", "package"):
        parts["unit_amount"] = draw(amounts)
    if model == "package":
        parts |= {"package_size": draw(sizes), "package_rounding": draw(st.sampled_from(["up", "down"]))}
    if model == "percentage":
        parts["percent"] = draw(percents)
    if model in ("package", "percentage") and draw(st.booleans()):
        parts["free_units"] = draw(sizes)
    low, high = sorted((draw(amounts), draw(amounts)))
    parts |= {"minimum_amount": low} if draw(st.booleans()) else {}
    parts |= {"maximum_amount": high} if draw(st.booleans()) else {}
    text = USAGE_PRICE.format(currency=draw(st.sampled_from(["usd", "JPY", "kwd", "clf"])))
    text += f'model = "{model}"\n' + "".join(f'{key} = "{value}"\n' for key, value in parts.items())
    if model in ("graduated", "volume", "graduated_percentage"):
        unit = "percent" if model == "graduated_percentage" else "unit_amount"
        bounds = sorted(draw(st.sets(sizes, max_size=3)))
        tiers = [
            f'{{ {up_to}{unit} = "{draw(percents)}", flat_amount = "{draw(amounts)}" }}'
            for up_to in (*(f'up_to = "{bound}", ' for bound in bounds), "")
        ]
        text += f"tiers = [ {', '.join(tiers)} ]\n"
        text += f'zero_usage_policy = "{draw(st.sampled_from(["bill_nothing", "bill_first_flat"]))}"\n'
    return text


@given(price_tables(), st.lists(st.one_of(st.just(Decimal(0)), sizes, amounts), min_size=1, max_size=5))
def test_every_price_comes_to_what_rating_says(table: str, quantities: list[Decimal]) -> None:
    (spec,) = parse_catalog(table).prices
    (price,) = oracle_prices.prices_of_default_plan(tomllib.loads(table))
    assert oracle_prices.bills_zero_usage(price) == spec.terms.bills_zero_usage
    bounds = [tier.up_to for tier in spec.terms.tiers if tier.up_to is not None]
    for quantity in (*quantities, *bounds, *(bound + Decimal("0.001") for bound in bounds)):
        assert oracle_prices.amount_minor(price, Fraction(quantity)) == rate(spec.terms, quantity).amount


PER_UNIT = USAGE_PRICE.format(currency="usd") + 'unit_amount = "1"\n'


@pytest.mark.parametrize(
    ("catalog", "named"),
    [
        (PER_UNIT + 'model = "stairs"\n', "price 'calls': .* model 'stairs'"),
        (PER_UNIT + 'discount = "5"\n', "'discount'"),
        (PER_UNIT + "advance = true\n", "'advance'"),
        (PER_UNIT + 'free_units = "5"\n', "'free_units'"),
        (PER_UNIT + 'recurring_interval = "year"\n', "recurring_interval 'year'"),
        (PER_UNIT + 'zero_usage_policy = "ask"\n', "zero_usage_policy 'ask'"),
        (
            USAGE_PRICE.format(currency="usd") + 'model = "volume"\n' + TIERS.replace("flat", "round"),
            "'round_a",
        ),
        (PER_UNIT + USAGE_PRICE.format(currency="eur").replace("calls", "x"), "prices in eur and usd"),
        (PER_UNIT + '[[metrics]]\nkey = "calls"\n', "'metrics'"),
        ('[[plans]]\nkey = "p"\ndefault = true\ncommitment = "5"\n' + PER_UNIT, "plan 'p': .*'commitment'"),
        ("[[prices]\n", "catalog.toml: "),
    ],
)
def test_what_is_not_known_is_refused_by_name(catalog_path: Path, catalog: str, named: str) -> None:
    catalog_path.write_text(catalog)
    with pytest.raises(ValueError, match=named):
        check_catalog(catalog_path)
    with pytest.raises(ValueError, match=named):
        Oracle(catalog_path.with_name("not read.csv"), catalog_path)


def test_parts_that_change_nothing_and_prices_of_other_plans_are_not_refused(catalog_path: Path) -> None:
    harmless = 'free_units = "0"\npackage_rounding = "up"\nadvance = false\ntiers = []\n'
    other = PER_UNIT.replace('"calls"', '"x"') + 'plan = "other"\nmodel = "stairs"\n'
    catalog_path.write_text('[[plans]]\nkey = "p"\ndefault = true\n' + PER_UNIT + harmless + other)
    check_catalog(catalog_path)
    usage_path = catalog_path.with_name("usage.csv")
    usage_path.write_text(HEADER + "a,calls,3,2025-01-01T12:00:00Z,1\n")
    (invoice,) = Oracle(usage_path, catalog_path).expected_invoices("a")
    assert invoice.total_minor == 3
