"""The one written form of a number, an instant and a JSON document.

Equal values have equal text here, so that text can be compared, signed and stored in place of the value.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias

from pydantic_core import from_json

from svc_infra.exceptions import InvalidPayload

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"

# Far beyond any amount (38 digits), and small enough that 1E+999999999 cannot become a gigabyte of zeros.
_MAX_DECIMAL_PLACES = 1_000
_MAX_INTEGER_BITS = 4_096
_MAX_DEPTH = 64
_STORABLE = re.compile(r"[^\x00\ud800-\udfff]*")
_SMALL_INTEGER = 2**62
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def canonical_decimal(value: Decimal) -> str:
    """Return ``value`` in plain digits: no exponent, no trailing zeros, no negative zero.

    Raises:
        InvalidPayload: ``value`` is NaN or infinite, or has more than 1,000 digits on one side of the point.
    """
    if not value.is_finite():
        raise InvalidPayload(f"{value} is not a number that can be written down; pass a finite Decimal")
    exponent = value.as_tuple().exponent
    if value.adjusted() > _MAX_DECIMAL_PLACES or int(exponent) < -_MAX_DECIMAL_PLACES:
        raise InvalidPayload(f"a Decimal with more than {_MAX_DECIMAL_PLACES} digits cannot be written down")
    if not value:
        return "0"
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def canonical_instant(value: datetime) -> str:
    """Return ``value`` in UTC as ISO 8601 ending in ``Z``, with microseconds only where there are some.

    Raises:
        InvalidPayload: ``value`` is naive and so names no instant.
    """
    if value.tzinfo is UTC:
        return value.replace(tzinfo=None).isoformat() + "Z"
    if value.utcoffset() is None:
        raise InvalidPayload(f"{value.isoformat()} has no UTC offset; pass an aware datetime")
    try:
        return value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    except OverflowError as error:
        raise InvalidPayload(f"{value.isoformat()} is outside the years 1 to 9999 in UTC") from error


def plain_json(value: Any, *, floats_allowed: bool, path: str = "payload") -> JsonValue:
    """Return ``value`` as plain JSON data: decimals and instants in canonical text, tuples as lists.

    What a database or a foreign parser would refuse or change is refused here instead: NaN and infinities,
    NUL characters, lone surrogates, keys that are not strings, nesting deeper than 64 and, unless
    ``floats_allowed``, every float. ``path`` names the value in error messages.

    Raises:
        InvalidPayload: the message names the path of the first value that does not fit.
    """
    return _plain(value, path, floats_allowed, 0)


def compact_json(plain: JsonValue) -> str:
    """Return the JSON text of ``plain`` without spaces, in the order of its keys, non-ASCII as it is."""
    return _ENCODER.encode(plain)


def read_json(text: str) -> Any:
    """Return the data of JSON text that ``compact_json`` or a database has written."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:  # what only the standard library reads, such as a lone surrogate
        return json.loads(text)


def is_storable(text: str) -> bool:
    """Tell whether every database stores ``text``: it has no NUL and is UTF-8."""
    return _STORABLE.fullmatch(text) is not None


def _plain(value: Any, path: str, floats_allowed: bool, depth: int) -> JsonValue:
    if isinstance(value, str):
        return _checked_text(value, path)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value.bit_length() > _MAX_INTEGER_BITS:
            raise InvalidPayload(f"{path}: the integer is too large")
        return value
    if isinstance(value, float):
        return _checked_float(value, path, floats_allowed)
    if isinstance(value, (Decimal, datetime)):
        try:
            return canonical_decimal(value) if isinstance(value, Decimal) else canonical_instant(value)
        except InvalidPayload as error:
            raise InvalidPayload(f"{path}: {error}") from None
    if depth >= _MAX_DEPTH:
        raise InvalidPayload(f"{path}: nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, dict):
        return {
            # Most are simple, and the path of an item costs more than a look at it.
            _checked_key(key, path): item
            if _is_simple(item)
            else _plain(item, f"{path}.{key}", floats_allowed, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{i}]", floats_allowed, depth + 1) for i, item in enumerate(value)]
    raise InvalidPayload(f"{path}: a {type(value).__name__} has no JSON form; pass a string or a number")


def _is_simple(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        return value.isascii() and "\x00" not in value
    return (kind is int and -_SMALL_INTEGER < value < _SMALL_INTEGER) or value is None or kind is bool


def _checked_text(text: str, path: str) -> str:
    if "\x00" in text:
        raise InvalidPayload(f"{path}: NUL characters cannot be stored")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidPayload(f"{path}: a lone surrogate is not text; decode the input as UTF-8") from None
    return text


def _checked_key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise InvalidPayload(f"{path}: the key {key!r} is not a string")
    return _checked_text(key, path)


def _checked_float(value: float, path: str, floats_allowed: bool) -> float:
    if not floats_allowed:
        raise InvalidPayload(f"{path}: a float is inexact; pass a Decimal, an int or a string")
    if not math.isfinite(value):
        raise InvalidPayload(f"{path}: {value} has no JSON form; pass a finite number or None")
    return value
