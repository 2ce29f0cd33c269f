"""Telling errors apart by what they are, and not by the ids and numbers in their text."""

from __future__ import annotations

import re
from hashlib import sha256

# An id, a hexadecimal address or a number: what differs between two cases of the same error.
_VARIABLE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{20,}|0x[0-9a-f]+|\d+", re.IGNORECASE)
_LENGTH = 12


def error_pattern(error: str) -> str:
    """Return the first line of ``error`` with ``#`` for every id and number in it."""
    return _VARIABLE.sub("#", error.partition("\n")[0])


def error_fingerprint(error: str) -> str:
    """Return 12 hexadecimal digits that all errors of the same pattern share."""
    return sha256(error_pattern(error).encode()).hexdigest()[:_LENGTH]
