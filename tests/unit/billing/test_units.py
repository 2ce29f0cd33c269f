from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from svc_infra.billing.money import RoundingMode
from svc_infra.billing.units import Operation, UnitConversion, as_quantity, less_free_units, round_quantity
from svc_infra.exceptions import InvalidPrice

D = Decimal


@pytest.mark.parametrize(
    ("operation", "factor", "rounding", "places", "quantity", "converted"),
    [
        ("divide", "1000", RoundingMode.CEIL, 0, "1400", "2"),
        ("divide", "1000", RoundingMode.FLOOR, 0, "1400", "1"),
        ("divide", "1000", RoundingMode.HALF_AWAY, 0, "1500", "2"),
        ("divide", "1000", RoundingMode.CEIL, 1, "1401", "1.5"),
        ("divide", "1000", None, 0, "1400", "1.4"),
        ("divide", "3", None, 0, "1", "0.333333333333"),
        ("divide", "3", RoundingMode.CEIL, 0, "9", "3"),
        ("multiply", "1.5", None, 0, "3", "4.5"),
        ("multiply", "1.5", RoundingMode.CEIL, 0, "3", "5"),
        ("divide", "1e-12", None, 0, "1", "1000000000000"),
    ],
)
def test_units_are_converted_exactly_and_then_rounded(
    operation: str, factor: str, rounding: RoundingMode | None, places: int, quantity: str, converted: str
) -> None:
    conversion = UnitConversion(Operation(operation), D(factor), rounding, places)
    assert conversion.convert(D(quantity)) == D(converted)


@pytest.mark.parametrize("factor", ["0", "-1", "NaN", "Infinity"])
def test_a_factor_without_meaning_is_refused(factor: str) -> None:
    with pytest.raises(InvalidPrice, match="factor"):
        UnitConversion(Operation.DIVIDE, D(factor))


def test_the_discount_comes_after_conversion_and_rounding() -> None:
    converted = UnitConversion(Operation.DIVIDE, D(1000)).convert(D(1400))
    assert less_free_units(converted, D("0.5")) == D("1.5")
    assert less_free_units(converted, D(3)) == 0


@pytest.mark.parametrize(
    ("quantity", "places", "mode", "rounded"),
    [
        ("123.456", 0, RoundingMode.HALF_AWAY, "123"),
        ("123.456", 2, RoundingMode.CEIL, "123.46"),
        ("123.456", 2, RoundingMode.FLOOR, "123.45"),
        ("123.456", -2, RoundingMode.CEIL, "200"),
        ("-2.5", 0, RoundingMode.HALF_AWAY, "-3"),
    ],
)
def test_a_total_is_rounded_as_its_metric_says(
    quantity: str, places: int, mode: RoundingMode, rounded: str
) -> None:
    assert str(round_quantity(D(quantity), places=places, mode=mode)) == rounded


def test_an_endless_value_is_kept_to_the_places_of_the_column() -> None:
    assert as_quantity(Fraction(2, 3)) == D("0.666666666667")
