"""The declarative base, the column types that both databases share, and client-made ids."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import DateTime, Dialect, MetaData, Numeric, String
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator, TypeEngine

from svc_infra.canonical import canonical_decimal
from svc_infra.clock import require_utc

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

QUANTITY_DIGITS, QUANTITY_SCALE = 38, 12
TENANT_ID_LENGTH = 255
IdText = String(40)


class Base(DeclarativeBase):
    """All tables of this package live in one metadata, so that one migration history covers them."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC instant; naive values are refused, and SQLite gives back what was stored."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        utc = require_utc(value)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Quantity(TypeDecorator[Decimal]):
    """An exact decimal: NUMERIC(38,12) on PostgreSQL, canonical text on SQLite.

    SQLite would keep a NUMERIC as a binary float. As canonical text equal numbers are equal strings; sums go
    through ``svc_infra.db.exact.exact_sum``.
    """

    impl = Numeric
    cache_ok = True

    def __init__(self, precision: int = QUANTITY_DIGITS, scale: int = QUANTITY_SCALE) -> None:
        super().__init__(precision, scale)
        self.precision, self.scale = precision, scale

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String(self.precision + 2))
        return dialect.type_descriptor(Numeric(self.precision, self.scale))

    def process_bind_param(self, value: Decimal | int | None, dialect: Dialect) -> Any:
        if value is None or dialect.name != "sqlite":
            return value
        return canonical_decimal(Decimal(value))

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        if value is None:
            return None
        return value if isinstance(value, Decimal) else Decimal(value)


class _UuidV7:
    """Time-ordered ids (RFC 9562, version 7), strictly increasing within a process.

    The 12 bits after the millisecond and the next 30 bits count up inside one millisecond, so that ids made
    in a row sort in the order they were made and insert at the right edge of an index.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_ms = 0
        self._sequence = 0

    def __call__(self) -> str:
        with self._lock:
            now_ms = time.time_ns() // 1_000_000
            if now_ms > self._last_ms:
                self._last_ms = now_ms
                self._sequence = int.from_bytes(os.urandom(5), "big") >> 1 & 0x1FF_FFFF_FFFF
            else:
                self._sequence += 1
            milliseconds, sequence = self._last_ms, self._sequence
        random_bits = int.from_bytes(os.urandom(4), "big")
        high = milliseconds << 16 | 0x7000 | sequence >> 30 & 0xFFF
        low = 0x8000_0000_0000_0000 | (sequence & 0x3FFF_FFFF) << 32 | random_bits
        text = f"{high:016x}{low:016x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


new_id = _UuidV7()
"""Make a new id: a UUIDv7 as 36 characters of text."""
