"""Ids made by the client: UUIDv7, so that a row has its id before it is written."""

from __future__ import annotations

import os
import random
import threading
import time


class _UuidV7:
    """Time-ordered ids (RFC 9562, version 7), strictly increasing within a process.

    The 42 bits after the millisecond that are not fixed count up inside one millisecond, so that ids made in
    a row sort in the order in which they were made and insert at the right edge of an index.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Unique, not secret: ids are no passwords, and the system's randomness costs a call each.
        self._random = random.Random(os.urandom(32))
        os.register_at_fork(after_in_child=lambda: self._random.seed(os.urandom(32)))
        self._last_ms = 0
        self._sequence = 0

    def __call__(self) -> str:
        with self._lock:
            now_ms = time.time_ns() // 1_000_000
            if now_ms > self._last_ms:
                self._last_ms = now_ms
                # The top bits stay free, so that counting up cannot run over.
                self._sequence = self._random.getrandbits(40)
            else:
                self._sequence += 1
            milliseconds, sequence = self._last_ms, self._sequence
        random_bits = self._random.getrandbits(32)
        high = milliseconds << 16 | 0x7000 | sequence >> 30 & 0xFFF
        low = 0x8000_0000_0000_0000 | (sequence & 0x3FFF_FFFF) << 32 | random_bits
        return f"{high:016x}{low:016x}"


new_hex = _UuidV7()
"""Make a new id as 32 hexadecimal digits."""


def new_id() -> str:
    """Make a new id as text in the usual form of 36 characters."""
    text = new_hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
