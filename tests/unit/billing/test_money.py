from __future__ import annotations

from decimal import Decimal, Inexact
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.billing.money import (
    MAX_MINOR,
    MONEY_CONTEXT,
    RoundingMode,
    check_minor,
    currency_exponent,
    format_minor,
    normalize_currency,
    parse_decimal,
    percent_of,
    round_half_away,
    round_to,
)
from svc_infra.exceptions import AmountTooLarge, InvalidCurrency


def parsed(text: str) -> Decimal:
    return parse_decimal(text, max_integer_digits=26, max_decimal_digits=12)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        ("0.5", 1),
        ("-0.5", -1),
        ("0.4999999999999999999999", 0),
        ("1.5", 2),
        ("2.5", 3),
        ("-2.5", -3),
        ("0", 0),
    ],
)
def test_a_half_is_rounded_away_from_zero(value: str, rounded: int) -> None:
    assert round_half_away(Decimal(value)) == rounded
    assert round_half_away(Fraction(value)) == rounded


def test_rounding_loses_no_digit_of_a_long_number() -> None:
    digits = "9" * 90
    assert round_half_away(Decimal(digits + ".5")) == int(digits) + 1
    assert round_half_away(Decimal(digits + ".4")) == int(digits)


@given(st.fractions())
def test_a_credit_rounds_like_its_charge(value: Fraction) -> None:
    assert round_half_away(-value) == -round_half_away(value)


@given(st.fractions())
def test_rounding_moves_a_value_by_half_a_unit_at_most(value: Fraction) -> None:
    assert abs(round_half_away(value) - value) <= Fraction(1, 2)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_a_decimal_and_the_equal_fraction_round_alike(value: Decimal) -> None:
    assert round_half_away(value) == round_half_away(Fraction(value))


def test_arithmetic_that_would_lose_a_digit_is_an_error() -> None:
    assert MONEY_CONTEXT.multiply(Decimal("9" * 50), Decimal("9" * 38)) == int("9" * 50) * int("9" * 38)
    with pytest.raises(Inexact):
        MONEY_CONTEXT.divide(Decimal(1), Decimal(3))


@pytest.mark.parametrize(
    ("code", "exponent"), [("usd", 2), ("USD", 2), ("jpy", 0), ("krw", 0), ("kwd", 3), ("clf", 4), ("eur", 2)]
)
def test_a_currency_has_the_decimals_of_iso_4217(code: str, exponent: int) -> None:
    assert currency_exponent(code) == exponent


def test_currency_codes_are_kept_in_lower_case() -> None:
    assert normalize_currency("USD") == "usd"


@pytest.mark.parametrize("code", ["", "us", "dollar", "xyz", " usd", "hrk"])
def test_an_unknown_currency_is_refused(code: str) -> None:
    with pytest.raises(InvalidCurrency, match="ISO 4217"):
        normalize_currency(code)


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (1234, "usd", "12.34"),
        (5, "usd", "0.05"),
        (-5, "usd", "-0.05"),
        (0, "usd", "0.00"),
        (-1234, "JPY", "-1234"),
        (1234, "kwd", "1.234"),
        (1, "clf", "0.0001"),
    ],
)
def test_minor_units_are_written_in_major_units(amount: int, currency: str, text: str) -> None:
    assert format_minor(amount, currency) == text


def test_an_amount_must_fit_a_64_bit_column() -> None:
    assert check_minor(MAX_MINOR) == MAX_MINOR
    assert check_minor(-MAX_MINOR) == -MAX_MINOR
    for amount in (MAX_MINOR + 1, -MAX_MINOR - 1):
        with pytest.raises(AmountTooLarge):
            check_minor(amount)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12.5", "12.5"),
        ("-12.5", "-12.5"),
        ("+3", "3"),
        (".5", "0.5"),
        ("7.", "7"),
        ("-0", "0"),
        ("0" * 40 + "1", "1"),
        ("1." + "0" * 40, "1"),
        ("9" * 26 + "." + "9" * 12, "9" * 26 + "." + "9" * 12),
    ],
)
def test_a_plain_decimal_is_read_exactly(text: str, value: str) -> None:
    assert parsed(text) == Decimal(value)
    assert parsed(text).is_signed() == value.startswith("-")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1\n",
        "1e3",
        "1E+2",
        "NaN",
        "sNaN",
        "Infinity",
        "-inf",
        "1_000",
        "1,5",
        "0x1",
        "٣",
        ".",
        "--1",
        "+",
    ],
)
def test_anything_but_a_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a plain decimal number"):
        parsed(text)


def test_too_many_digits_are_refused_with_the_limit() -> None:
    with pytest.raises(ValueError, match="more than 26 digits before the point"):
        parsed("1" * 27)
    with pytest.raises(ValueError, match="more than 12 digits after the point"):
        parsed("0." + "1" * 13)


def test_an_error_quotes_only_the_beginning_of_a_long_text() -> None:
    with pytest.raises(ValueError, match="is not a plain") as caught:
        parsed("x" * 10_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("mode", "rounded"),
    [
        # of 2.5, -2.5, 3.5, 2.1, -2.1
        ("half_away_from_zero", [3, -3, 4, 2, -2]),
        ("half_even", [2, -2, 4, 2, -2]),
        ("half_down", [2, -2, 3, 2, -2]),
        ("up", [3, -3, 4, 3, -3]),
        ("down", [2, -2, 3, 2, -2]),
        ("ceil", [3, -2, 4, 3, -2]),
        ("floor", [2, -3, 3, 2, -3]),
    ],
)
def test_every_rounding_mode_is_the_one_of_its_name(mode: str, rounded: list[int]) -> None:
    values = ("2.5", "-2.5", "3.5", "2.1", "-2.1")
    assert [round_to(Fraction(value), mode=RoundingMode(mode)) for value in values] == rounded


@pytest.mark.parametrize(
    ("value", "places", "rounded"),
    [
        ("1.235", 2, "1.24"),
        ("1234", -2, "1200"),
        ("0.005", 2, "0.01"),
        ("1", 2, "1.00"),
        ("-0.004", 2, "0.00"),
    ],
)
def test_rounding_to_places_gives_plain_digits(value: str, places: int, rounded: str) -> None:
    assert str(round_to(Decimal(value), places)) == rounded


@given(st.fractions(), st.integers(min_value=-3, max_value=6), st.sampled_from(RoundingMode))
def test_a_rounded_number_is_less_than_a_step_away_and_stays(
    value: Fraction, places: int, mode: RoundingMode
) -> None:
    rounded = round_to(value, places, mode)
    assert abs(Fraction(rounded) - value) < Fraction(10) ** -places
    assert round_to(rounded, places, mode) == rounded


@given(st.fractions(), st.sampled_from(["half_away_from_zero", "half_even", "half_down", "up", "down"]))
def test_a_negative_number_is_rounded_like_its_mirror_image(value: Fraction, mode: str) -> None:
    mirrored, rounded = (round_to(number, 2, RoundingMode(mode)) for number in (-value, value))
    assert Fraction(mirrored) == -Fraction(rounded)


@given(st.fractions())
def test_money_is_rounded_by_the_mode_half_away(value: Fraction) -> None:
    assert round_half_away(value) == round_to(value)


def test_a_percentage_of_an_amount_is_rounded_once() -> None:
    assert [percent_of(amount, Decimal("7.25")) for amount in (12345, -12345, 0)] == [895, -895, 0]
