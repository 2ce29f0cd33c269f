"""The declarative base and the column types that both databases share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import DateTime, Dialect, MetaData, Numeric, String
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator, TypeEngine

from svc_infra.canonical import canonical_decimal
from svc_infra.clock import require_utc
from svc_infra.ids import new_id

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

__all__ = ["TENANT_ID_LENGTH", "Base", "IdText", "Quantity", "UtcDateTime", "new_id"]


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
        if value is None or value.tzinfo is UTC:
            return value
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        """Do in one call of C, or in none, what runs for every instant of every row."""
        if dialect.driver == "asyncpg":
            return None  # gives aware UTC instants itself
        if dialect.driver == "aiosqlite":
            return _from_text
        return super().result_processor(dialect, coltype)


def _from_text(stored: str | None) -> datetime | None:
    return None if stored is None else datetime.fromisoformat(f"{stored}+00:00")


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
