"""What the fields of billing's requests and answers are made of: money and quantities without a float."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from svc_infra.api.fastapi.fields import InstantText as InstantText
from svc_infra.api.fastapi.fields import require_within_calendar
from svc_infra.canonical import canonical_decimal

MAX_REASON_LENGTH = 2_000

QuantityText = Annotated[
    Decimal, PlainSerializer(canonical_decimal, return_type=str), WithJsonSchema({"type": "string"})
]
"""An exact number in an answer: plain digits, no exponent, no trailing zeros."""

Minor = Annotated[int, Field(strict=True, description="Money, in minor units of the currency.")]
PositiveMinor = Annotated[int, Field(strict=True, gt=0, le=2**63 - 1, description="Money, in minor units.")]
Reason = Annotated[
    str, Field(min_length=1, max_length=MAX_REASON_LENGTH, pattern=r"^[^\x00]*[^\s\x00][^\x00]*$")
]
Month = Annotated[str, Field(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$", description="A month, YYYY-MM.")]


def day_or_instant(value: Any) -> date:
    """Read a date, which means the tenant's midnight that it begins with, or an instant with its offset."""
    if not isinstance(value, str):
        raise ValueError("write a date like 2025-01-31, or an ISO 8601 instant with its offset")
    if len(value) == len("YYYY-MM-DD"):
        return require_within_calendar(date.fromisoformat(value))
    instant = datetime.fromisoformat(value)
    if instant.tzinfo is None:
        raise ValueError("the instant has no UTC offset; end it with Z, or give the date alone")
    return require_within_calendar(instant)


DayOrInstant = Annotated[
    date,
    PlainValidator(day_or_instant),
    WithJsonSchema(
        {
            "type": "string",
            "description": "A day of the tenant, or an instant that is one of its midnights.",
            "examples": ["2025-01-31"],
        }
    ),
]


def year_and_month(month: str | None) -> tuple[int, int] | None:
    """Read a ``Month``."""
    return None if month is None else (int(month[:4]), int(month[5:]))
