"""Exact sums of quantities on both databases.

PostgreSQL adds NUMERIC exactly. SQLite would add binary floats, so there the sum is an aggregate of our own
over canonical text, registered on every connection that is used for it.
"""

from __future__ import annotations

from decimal import Context, Decimal
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

from svc_infra.canonical import canonical_decimal
from svc_infra.db.base import Quantity

_WIDE = Context(prec=100)
_REGISTERED = "svc_infra.exact_sum"


class exact_sum(FunctionElement[Decimal]):  # reads as the SQL function that it is
    """``exact_sum(column)``: the exact sum of a ``Quantity`` column; NULL over no rows."""

    name = "exact_sum"
    inherit_cache = True
    type = Quantity(50)

    def __init__(self, column: ColumnElement[Any] | Any) -> None:
        super().__init__(column)


@compiles(exact_sum)
def _sum(element: exact_sum, compiler: Any, **kw: Any) -> str:
    return f"sum({compiler.process(element.clauses, **kw)})"


@compiles(exact_sum, "sqlite")
def _exact_sum(element: exact_sum, compiler: Any, **kw: Any) -> str:
    return f"exact_sum({compiler.process(element.clauses, **kw)})"


class _ExactSum:
    """SQLite aggregate: whole numbers are added as integers (quick), the others as wide decimals."""

    def __init__(self) -> None:
        self._whole = 0
        self._fraction: Decimal | None = None
        self._is_empty = True

    def step(self, value: str | int | None) -> None:
        if value is None:
            return
        self._is_empty = False
        try:
            self._whole += int(value)
        except ValueError:
            self._fraction = _WIDE.add(self._fraction or Decimal(0), Decimal(value))

    def finalize(self) -> str | None:
        if self._is_empty:
            return None
        if self._fraction is None:
            return str(self._whole)
        return canonical_decimal(_WIDE.add(self._fraction, Decimal(self._whole)))


def register_exact_sum(dbapi_connection: Any) -> None:
    """Register the aggregate on one SQLite connection, sync or async (inside SQLAlchemy's greenlet)."""
    if hasattr(dbapi_connection, "run_async"):
        dbapi_connection.run_async(
            lambda driver: driver._execute(driver._conn.create_aggregate, "exact_sum", 1, _ExactSum)
        )
    else:
        dbapi_connection.create_aggregate("exact_sum", 1, _ExactSum)


def ready_connection(session: Session) -> Connection:
    """Return the session's connection with exact sums available on it, whoever made its engine."""
    connection = session.connection()
    if connection.dialect.name == "sqlite" and _REGISTERED not in connection.info:
        register_exact_sum(connection.connection.dbapi_connection)
        connection.info[_REGISTERED] = True
    return connection
