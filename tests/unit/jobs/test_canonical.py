from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.canonical import canonical_decimal, canonical_instant, compact_json, plain_json
from svc_infra.exceptions import InvalidPayload


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("-0.000", "0"),
        ("0E+5", "0"),
        ("1.50", "1.5"),
        ("-1.50", "-1.5"),
        ("100", "100"),
        ("1E+2", "100"),
        ("1E-12", "0.000000000001"),
        ("12345678901234567890123456.123456789012", "12345678901234567890123456.123456789012"),
    ],
)
def test_a_decimal_is_written_without_exponent_and_trailing_zeros(value: str, text: str) -> None:
    assert canonical_decimal(Decimal(value)) == text


@pytest.mark.parametrize("value", ["NaN", "sNaN", "Infinity", "-Infinity", "1E+1001", "1E-1001", "0E-99999"])
def test_a_decimal_that_cannot_be_written_down_is_refused(value: str) -> None:
    with pytest.raises(InvalidPayload):
        canonical_decimal(Decimal(value))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=12), st.integers(0, 8))
def test_equal_decimals_have_equal_text_that_reads_back(value: Decimal, zeros: int) -> None:
    text = canonical_decimal(value)
    sign, digits, exponent = value.as_tuple()
    longer = Decimal((sign, digits + (0,) * zeros, int(exponent) - zeros))
    assert Decimal(text) == value
    assert canonical_decimal(longer) == text
    assert "E" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2025, 1, 1, tzinfo=UTC), "2025-01-01T00:00:00Z"),
        (datetime(2025, 1, 1, 0, 0, 0, 120000, tzinfo=UTC), "2025-01-01T00:00:00.120000Z"),
        (datetime(2025, 1, 1, 1, tzinfo=timezone(timedelta(hours=2))), "2024-12-31T23:00:00Z"),
        (datetime(33, 4, 3, tzinfo=UTC), "0033-04-03T00:00:00Z"),
    ],
)
def test_an_instant_is_written_in_utc_ending_in_z(value: datetime, text: str) -> None:
    assert canonical_instant(value) == text


@pytest.mark.parametrize(
    "value",
    [
        datetime(2025, 1, 1),  # noqa: DTZ001 - a naive one is the case
        datetime.min.replace(tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_what_is_no_instant_in_utc_is_refused(value: datetime) -> None:
    with pytest.raises(InvalidPayload):
        canonical_instant(value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, {"b": "x\x00"}]}, r"payload\.a\[1\]\.b"),
        ({"a": "\ud800"}, r"payload\.a"),
        ({"\ud800": 1}, "payload"),
        ({1: "x"}, "payload"),
        ({"a": {"b": b"bytes"}}, r"payload\.a\.b"),
        ({"a": float("nan")}, r"payload\.a"),
        ({"a": float("inf")}, r"payload\.a"),
        ({"a": Decimal("NaN")}, r"payload\.a"),
        ({"a": 1 << 5000}, r"payload\.a"),
        ({"a": {1, 2}}, r"payload\.a"),
    ],
)
def test_a_refusal_names_the_path(value: object, path: str) -> None:
    with pytest.raises(InvalidPayload, match=path):
        plain_json(value, floats_allowed=True)


def test_a_value_that_contains_itself_is_refused() -> None:
    ring: list[object] = []
    ring.append(ring)
    with pytest.raises(InvalidPayload, match="nested deeper"):
        plain_json(ring, floats_allowed=True)


def test_json_is_compact_ordered_and_not_escaped() -> None:
    plain = plain_json({"z": ("é", True), "a": Decimal("1.0")}, floats_allowed=False)
    assert compact_json(plain) == '{"z":["é",true],"a":"1"}'
