"""A usage event before it is recorded: what it must be like, and when two of them say the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from svc_infra.billing.models import KEY_LENGTH, METRIC_LENGTH
from svc_infra.canonical import JsonValue, plain_json
from svc_infra.db.base import QUANTITY_DIGITS, QUANTITY_SCALE, TENANT_ID_LENGTH
from svc_infra.exceptions import InvalidPayload, InvalidUsage

INTEGER_DIGITS = QUANTITY_DIGITS - QUANTITY_SCALE
MAX_METADATA_BYTES = 256 * 1024
FIRST_YEAR, LAST_YEAR = 2, 9998
"""The years of usage. A day's bounds, in any time zone, must themselves be dates that exist."""

_TEXTS = (("tenant_id", TENANT_ID_LENGTH), ("metric", METRIC_LENGTH), ("idempotency_key", KEY_LENGTH))
_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode
# What ``Decimal`` would also take (1_000, surrounding spaces, digits of other scripts) is a slip in a file.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class NewUsage:
    """A usage event to record, checked when it is made.

    ``amount`` is a quantity, never money: at most 26 integer and 12 decimal digits, and negative only where
    the metric's meter is a weighted sum, which is checked when it is recorded. ``at`` is aware and kept in
    UTC. ``metadata`` is a JSON object; equal objects have equal ``metadata_json`` whatever the order of their
    keys and the way their numbers are written, and an empty one is the same as none.

    Raises:
        InvalidUsage: a field cannot be stored; the message names it.
    """

    tenant_id: str
    metric: str
    amount: Decimal
    at: datetime
    idempotency_key: str
    metadata: Mapping[str, Any] | None = field(default=None, hash=False, compare=False)
    metadata_json: str | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, max_length in _TEXTS:
            value = getattr(self, name)
            # Nearly every text is one that needs no closer look, and there are three to an event.
            if not (
                type(value) is str
                and value.isascii()
                and value.isprintable()
                and 0 < len(value) <= max_length
            ):
                _check_text(name, value, max_length)
        _check_amount(self.amount)
        object.__setattr__(self, "at", _utc(self.at))
        object.__setattr__(self, "metadata_json", _canonical_metadata(self.metadata))

    @property
    def identity(self) -> tuple[str, str, str]:
        """What is recorded only once: tenant, metric and idempotency key."""
        return self.tenant_id, self.metric, self.idempotency_key

    @property
    def payload(self) -> tuple[Decimal, datetime, str | None]:
        """What must be equal for a repeated key to be a duplicate and no conflict."""
        return self.amount, self.at, self.metadata_json


def quantity(amount: Any) -> Decimal:
    """Return an int, a decimal string or a Decimal as the exact quantity that it is.

    Raises:
        InvalidUsage: a float, which is inexact already, or text that is no number.
    """
    match amount:
        case Decimal():
            return amount
        case int() if not isinstance(amount, bool):
            return Decimal(amount)
        case str() if _NUMBER.fullmatch(amount):
            return Decimal(amount)
        case str():
            raise InvalidUsage(f"amount {amount!r:.60} is not a number; write it as in '12.5'")
        case _:
            raise InvalidUsage(f"amount is a {type(amount).__name__}; pass an int, a string or a Decimal")


def storable_quantity(amount: Any) -> Decimal:
    """Return an amount as the exact quantity that it is, if every table can hold it.

    Raises:
        InvalidUsage: it is none, or has more than 26 integer or 12 decimal digits.
    """
    found = quantity(amount)
    _check_amount(found)
    return found


def _is_plain(value: Any) -> bool:
    """Whether it is text that needs no closer look: nearly every text is, and an event has three."""
    return type(value) is str and value.isascii() and value.isprintable()


def _check_text(name: str, value: Any, max_length: int) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= max_length:
        raise InvalidUsage(f"{name} must have 1 to {max_length} characters, got {value!r:.80}")
    _storable(value, name)


def _check_amount(amount: Any) -> None:
    if not isinstance(amount, Decimal):
        raise InvalidUsage(
            f"amount is a {type(amount).__name__}; pass a Decimal made from an int or a string"
        )
    if not amount.is_finite():
        raise InvalidUsage(f"amount is {amount}; pass a finite number")
    _, digits, exponent = amount.as_tuple()
    trailing_zeros = 0
    if int(exponent) < -QUANTITY_SCALE:
        significant = "".join(map(str, digits)).rstrip("0")
        trailing_zeros = len(digits) - len(significant)
    if amount and (amount.adjusted() >= INTEGER_DIGITS or int(exponent) + trailing_zeros < -QUANTITY_SCALE):
        raise InvalidUsage(
            f"amount has too many digits ({amount!s:.60}); "
            f"{INTEGER_DIGITS} before and {QUANTITY_SCALE} after the point fit"
        )


def _utc(at: Any) -> datetime:
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise InvalidUsage(f"at is {at!r:.80}; pass an aware datetime, it has no UTC offset")
    if not FIRST_YEAR <= at.year <= LAST_YEAR:
        raise InvalidUsage(f"at is in the year {at.year}; {FIRST_YEAR} to {LAST_YEAR} can be billed")
    return at if at.tzinfo is UTC else at.astimezone(UTC)


def _canonical_metadata(metadata: Any) -> str | None:
    if not metadata and (metadata is None or isinstance(metadata, Mapping)):
        return None
    if not isinstance(metadata, Mapping):
        raise InvalidUsage(f"metadata is a {type(metadata).__name__}; pass a JSON object (a dict) or None")
    # A flat object of short plain texts and numbers, as most are, is its own canonical value.
    is_plain = all(
        _is_plain(key) and (_is_plain(value) or type(value) is bool) for key, value in metadata.items()
    )
    plain = dict(metadata) if is_plain else _by_value(_storable(dict(metadata), "metadata"))
    canonical = _encode(plain)
    if (size := len(canonical.encode())) > MAX_METADATA_BYTES:
        raise InvalidUsage(f"metadata has {size:,} bytes, the limit is {MAX_METADATA_BYTES:,}")
    return canonical


def _storable(value: Any, path: str) -> JsonValue:
    try:
        return plain_json(value, floats_allowed=True, path=path)
    except InvalidPayload as error:
        raise InvalidUsage(str(error)) from None


def _by_value(plain: JsonValue) -> JsonValue:
    """Write whole numbers as integers, so that 1, 1.0 and 1e0 are one text."""
    if isinstance(plain, float) and plain.is_integer():
        # Through the shortest text: 1e23 means ten to the 23rd, not the nearest binary fraction's digits.
        return int(Decimal(repr(plain)))
    if isinstance(plain, dict):
        return {key: _by_value(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_by_value(value) for value in plain]
    return plain
