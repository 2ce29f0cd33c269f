"""What the fields of requests and answers are made of."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from svc_infra.canonical import canonical_instant, plain_json
from svc_infra.exceptions import InvalidPayload

D = TypeVar("D", bound=date)
NO_NUL = r"^[^\x00]*$"
MAX_ID_LENGTH = 64
_YEARS = range(2, 9_999)


def _instant(value: Any) -> Any:
    # Left to pydantic, a number would be seconds since 1970, and so would a text of digits.
    if not isinstance(value, str):
        raise ValueError("write the instant as ISO 8601 text with a UTC offset")
    return datetime.fromisoformat(value)


def require_within_calendar(value: D) -> D:
    """Refuse what is beyond the calendar somewhere on earth, or would be with a day added or taken.

    Raises:
        ValueError: the year is none of 2 to 9998.
    """
    if value.year not in _YEARS:
        raise ValueError("the year is from 2 to 9998")
    return value


def _storable(value: Any) -> Any:
    try:
        return plain_json(value, floats_allowed=True, path="here")
    except InvalidPayload as error:
        raise ValueError(str(error)) from None


_DATE_TIME = {"type": "string", "format": "date-time", "examples": ["2025-01-31T12:00:00Z"]}

InstantIn = Annotated[
    AwareDatetime,
    BeforeValidator(_instant),
    AfterValidator(require_within_calendar),
    WithJsonSchema(_DATE_TIME),
]
"""An instant in a request: ISO 8601 with a UTC offset."""

InstantText = Annotated[
    datetime, PlainSerializer(canonical_instant, return_type=str), WithJsonSchema(_DATE_TIME)
]
"""An instant in an answer: in UTC, ending in ``Z``."""

Text = Annotated[str, Field(pattern=NO_NUL)]
"""Text that every database stores."""

Id = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_ID_LENGTH,
        pattern=NO_NUL,
        examples=["0194b1e0-0000-7000-8000-000000000001"],
    ),
]
"""The id of a record. What no record can have is refused before anybody looks for it."""

JsonObject = Annotated[dict[str, Any], AfterValidator(_storable)]
"""A JSON object that every database stores."""


class RequestBody(BaseModel):
    """A body whose fields are all known: what is misspelt is refused and not left out."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """An answer, read from the record of the same attributes."""

    model_config = ConfigDict(from_attributes=True)
