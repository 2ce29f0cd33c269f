"""Which messages an endpoint wants by what is in them, beside their topic."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from svc_infra.canonical import is_storable
from svc_infra.exceptions import InvalidEndpoint

MAX_CONDITIONS = 20
MAX_VALUES = 100
_MAX_TEXT_LENGTH = 500
_MAX_INTEGER_BITS = 256
_PATH = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_SCALARS = (str, int, bool, type(None))
_ABSENT = object()


def check_filter(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``conditions`` if they are a filter: ``{"plan.name": "gold", "currency": ["usd", "eur"]}``.

    A key is a path of names into the payload, a value what must stand there: text, an integer, true, false
    or null, or a list of which one must. All conditions must hold.

    Raises:
        InvalidEndpoint: they are not, or there are more than 20.
    """
    if not isinstance(conditions, Mapping) or not 0 < len(conditions) <= MAX_CONDITIONS:
        raise InvalidEndpoint(f"a filter is an object of 1 to {MAX_CONDITIONS} conditions, path: value")
    for path, wanted in conditions.items():
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            raise InvalidEndpoint(f"{path!r:.80} is no path into a payload; write it like 'plan.name'")
        one_of = wanted if isinstance(wanted, list) else [wanted]
        if not 0 < len(one_of) <= MAX_VALUES or not all(_can_be_compared(value) for value in one_of):
            raise InvalidEndpoint(
                f"the filter on {path!r:.80} must be text, an integer, true, false or null, or a list of "
                f"up to {MAX_VALUES} of these; decimals and instants stand in payloads as text"
            )
    return dict(conditions)


def _can_be_compared(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT_LENGTH and is_storable(value)
    is_small = not isinstance(value, int) or value.bit_length() <= _MAX_INTEGER_BITS
    return isinstance(value, _SCALARS) and is_small


def fits(conditions: Mapping[str, Any], data: Any) -> bool:
    """Tell whether the payload ``data`` meets all ``conditions``."""
    for path, wanted in conditions.items():
        found = _at(path, data)
        one_of = wanted if isinstance(wanted, list) else [wanted]
        # In Python True == 1, in JSON they are different.
        if not any(found == value and isinstance(found, bool) == isinstance(value, bool) for value in one_of):
            return False
    return True


def data_of(body: bytes) -> Any:
    """Return the payload in the body of a message."""
    return json.loads(body)["data"]


def _at(path: str, data: Any) -> Any:
    for name in path.split("."):
        if not isinstance(data, Mapping) or name not in data:
            return _ABSENT
        data = data[name]
    return data
