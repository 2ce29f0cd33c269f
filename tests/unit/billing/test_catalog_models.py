"""The price models as the catalog file writes them."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.metering import Metering, QuantityRounding
from svc_infra.billing.meters import Meter
from svc_infra.billing.money import RoundingMode
from svc_infra.billing.rating import PackageRounding, PriceTerms, Tier, ZeroUsagePolicy
from svc_infra.billing.units import Operation, UnitConversion
from svc_infra.exceptions import InvalidCatalog

PRICE = '[[prices]]\nkey = "calls"\ncurrency = "usd"\nmetric = "calls"\nunit_amount = "1"\n'


def model_price(model: str, parts: str) -> str:
    return PRICE.replace('unit_amount = "1"', f'model = "{model}"\n{parts}')


@pytest.mark.parametrize(
    ("model", "parts", "expected"),
    [
        (
            "package",
            'unit_amount = "500"\npackage_size = "100"\npackage_rounding = "down"\nfree_units = "2.5"',
            {
                "unit_amount": Decimal(500),
                "package_size": Decimal(100),
                "package_rounding": PackageRounding.DOWN,
                "free_units": Decimal("2.5"),
            },
        ),
        (
            "volume",
            'tiers = [{ up_to = "5", unit_amount = "7", flat_amount = "1" }, { unit_amount = "6" }]',
            {"tiers": (Tier(Decimal(5), Decimal(7), Decimal(1)), Tier(None, Decimal(6)))},
        ),
        ("percentage", 'percent = "1.3"\nfree_units = "250"', {"percent": Decimal("1.3")}),
        (
            "graduated_percentage",
            'tiers = [{ up_to = "5", percent = "2" }, { percent = "1", flat_amount = "30" }]',
            {
                "tiers": (
                    Tier(Decimal(5), percent=Decimal(2)),
                    Tier(None, flat_amount=Decimal(30), percent=Decimal(1)),
                )
            },
        ),
        (
            "graduated",
            'zero_usage_policy = "bill_first_flat"\ntiers = [{ unit_amount = "6", flat_amount = "1" }]',
            {"zero_usage_policy": ZeroUsagePolicy.BILL_FIRST_FLAT},
        ),
        (
            "per_unit",
            'unit_amount = "1"\nminimum_amount = "100"\nmaximum_amount = "900.5"',
            {"minimum_amount": Decimal(100), "maximum_amount": Decimal("900.5")},
        ),
    ],
)
def test_every_price_model_can_be_written_in_the_catalog(
    model: str, parts: str, expected: dict[str, object]
) -> None:
    (price,) = parse_catalog(model_price(model, parts)).prices
    assert price.terms.model == model
    assert {name: getattr(price.terms, name) for name in expected} == expected
    assert PriceTerms.from_snapshot(json.loads(json.dumps(price.terms.to_snapshot()))) == price.terms


def test_what_is_counted_from_a_subscription_belongs_to_a_plan() -> None:
    text = '[[prices]]\nkey = "base"\ncurrency = "usd"\nunit_amount = "5"\nrecurring_interval = "month"\n'
    with pytest.raises(InvalidCatalog, match=r":5: a yearly price belongs to a plan"):
        parse_catalog(text.replace("month", "year"))
    for key in ("advance", "commitment"):
        with pytest.raises(InvalidCatalog, match=rf":6: a price for every tenant has no {key}"):
            parse_catalog(text + f"{key} = true\n")
    plan = '[[plans]]\nkey = "p"\ndefault = true\n'
    for more in ("advance = true\n", "commitment = true\n"):
        (price,) = parse_catalog(plan + text.replace('"base"', '"base"\nplan = "p"') + more).prices
        assert PriceTerms.from_snapshot(json.loads(json.dumps(price.terms.to_snapshot()))) == price.terms


@pytest.mark.parametrize(
    ("model", "parts", "complaint"),
    [
        ("package", 'unit_amount = "1"', "1: price 'calls': model 'package' needs a package_size"),
        ("package", 'unit_amount = "1"\npackage_size = "0"', "1: price 'calls': model 'package' needs"),
        ("package", 'package_size = "2"', "1: price 'calls': model 'package' takes a unit_amount"),
        (
            "package",
            'unit_amount = "1"\npackage_size = "2"\npackage_rounding = "dwon"',
            "8: package_rounding 'dwon' is not known; did you mean 'down'?",
        ),
        ("per_unit", 'unit_amount = "1"\npackage_size = "2"', "1: price 'calls': model 'per_unit' has no"),
        ("per_unit", 'unit_amount = "1"\nadvance = true', "1: price 'calls': usage cannot be billed in"),
        ("per_unit", 'unit_amount = "1"\nadvance = "yes"', "7: advance must be true or false"),
        ("percentage", 'unit_amount = "1"', "1: price 'calls': model 'percentage' takes a percent"),
        ("percentage", 'percent = "-1"', "6: percent '-1' must not be negative"),
        (
            "graduated_percentage",
            'tiers = [{ unit_amount = "1" }]',
            "6: a tier of this model has percent and no unit_amount",
        ),
        ("volume", 'tiers = [{ percent = "1" }]', "6: a tier of this model has unit_amount and no percent"),
        (
            "per_unit",
            'unit_amount = "1"\nminimum_amount = "3"\nmaximum_amount = "2"',
            "1: price 'calls': minimum_amount 3 is more than maximum_amount 2",
        ),
        ("fixed", 'unit_amount = "1"', "1: price 'calls': a fixed price has a recurring_interval"),
    ],
)
def test_the_parts_of_a_model_belong_to_it(model: str, parts: str, complaint: str) -> None:
    with pytest.raises(InvalidCatalog) as caught:
        parse_catalog(model_price(model, parts), "prices.toml")
    assert str(caught.value).removeprefix("prices.toml:").startswith(complaint)


METER = (
    '[[meters]]\nmetric = "bytes"\nmeter = "sum"\ndimensions = ["model", "region"]\n'
    'conversion = { operation = "divide", factor = "1000", rounding = "ceil", places = 1 }\n'
    "rounding = { places = 0 }\n"
)
FILTERED = PRICE.replace('metric = "calls"', 'metric = "bytes"') + 'filter = { model = "gpt" }\n'


def test_a_catalog_may_say_what_is_made_of_a_metrics_events() -> None:
    unique = '[[meters]]\nmetric = "users"\nmeter = "unique_count"\nunique_key = "user"\n'
    [first, second] = parse_catalog(METER + unique + FILTERED).meters
    assert first.metering == Metering(
        "bytes",
        dimensions=("model", "region"),
        conversion=UnitConversion(Operation.DIVIDE, Decimal(1000), RoundingMode.CEIL, 1),
        rounding=QuantityRounding(),
    )
    assert (second.metering, second.place) == (
        Metering("users", Meter.UNIQUE_COUNT, "user"),
        "catalog.toml:8",
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (METER.replace('"sum"', '"summ"'), r":3: meter 'summ' is not known; did you mean 'sum'"),
        (
            METER.replace('meter = "sum"', 'meter = "unique_count"'),
            r":1: metric 'bytes': a unique_count needs",
        ),
        (METER.replace("dimensions", "dimension"), r":4: unknown key 'dimension'; did you mean 'dimensions'"),
        (METER.replace('factor = "1000"', "factor = 1000"), r":5: factor must be a decimal string"),
        (METER.replace("places = 0", 'mode = "up", places = 99'), r":6: places must be -26 to 12"),
        (METER + METER, r":8: the meter of 'bytes' is stated twice; the first is on line 2"),
        (METER + FILTERED.replace("model", "modle"), r":12: 'modle' is no dimension .* did you mean 'model'"),
    ],
)
def test_a_meter_that_cannot_be_is_refused_with_its_line(text: str, error: str) -> None:
    with pytest.raises(InvalidCatalog, match=error):
        parse_catalog(text)
