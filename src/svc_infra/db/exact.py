"""Exact sums, maxima and moments of quantities on both databases.

PostgreSQL adds NUMERIC exactly. SQLite would add binary floats, so there each is an aggregate of our own over
canonical text, registered on every connection that is used for it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Context, Decimal
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

from svc_infra.canonical import canonical_decimal
from svc_infra.db.base import Quantity
from svc_infra.db.exact_arithmetic import SQLITE_FUNCTIONS
from svc_infra.db.metadata_text import text_of

_WIDE = Context(prec=100)
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # SQLite keeps instants in UTC without saying so
_MICROSECOND = timedelta(microseconds=1)
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
    # Short whole numbers, which most are, are added by SQLite itself, as integers and so exactly: nine digits
    # of nine thousand million rows fit 64 bits. Only the others are worth a call of Python each.
    value = compiler.process(element.clauses, **kw)
    is_whole = f"(length({value}) <= 9 AND {value} NOT GLOB '*[^-0-9]*')"
    whole = f"sum(CAST({value} AS INTEGER)) FILTER (WHERE {is_whole})"
    return f"exact_both({whole}, exact_sum({value}) FILTER (WHERE NOT {is_whole}))"


class exact_max(FunctionElement[Decimal]):  # reads as the SQL function that it is
    """``exact_max(column)``: the largest of a ``Quantity`` column; NULL over no rows."""

    name = "exact_max"
    inherit_cache = True
    type = Quantity(50)


@compiles(exact_max)
def _max(element: exact_max, compiler: Any, **kw: Any) -> str:
    return f"max({compiler.process(element.clauses, **kw)})"


@compiles(exact_max, "sqlite")
def _exact_max(element: exact_max, compiler: Any, **kw: Any) -> str:
    return f"exact_max({compiler.process(element.clauses, **kw)})"


class exact_moment(FunctionElement[Decimal]):  # reads as the SQL function that it is
    """``exact_moment(quantity, at)``: the exact sum of quantity times microseconds since 1970."""

    name = "exact_moment"
    inherit_cache = True
    type = Quantity(76)


@compiles(exact_moment)
def _moment(element: exact_moment, compiler: Any, **kw: Any) -> str:
    quantity, at = (compiler.process(part, **kw) for part in element.clauses)
    return f"sum({quantity} * (extract(epoch from {at}) * 1000000))"


@compiles(exact_moment, "sqlite")
def _exact_moment(element: exact_moment, compiler: Any, **kw: Any) -> str:
    return f"exact_moment({compiler.process(element.clauses, **kw)})"


class latest_value(FunctionElement[Decimal]):  # reads as the SQL function that it is
    """``latest_value(value, at, id)``: the value (a quantity) of the greatest (at, id); NULL over no rows."""

    name = "latest_value"
    inherit_cache = True
    type = Quantity(50)


@compiles(latest_value)
def _latest(element: latest_value, compiler: Any, **kw: Any) -> str:
    value, at, id_ = (compiler.process(part, **kw) for part in element.clauses)
    return f"(array_agg({value} ORDER BY {at} DESC, {id_} DESC))[1]"


@compiles(latest_value, "sqlite")
def _latest_value(element: latest_value, compiler: Any, **kw: Any) -> str:
    return f"latest_value({compiler.process(element.clauses, **kw)})"


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


class _ExactMax:
    """SQLite aggregate: the largest decimal of canonical texts."""

    def __init__(self) -> None:
        self._largest: Decimal | None = None

    def step(self, value: str | int | None) -> None:
        if value is not None:
            number = Decimal(value)
            if self._largest is None or number > self._largest:
                self._largest = number

    def finalize(self) -> str | None:
        return None if self._largest is None else canonical_decimal(self._largest)


class _ExactMoment:
    """SQLite aggregate: the sum of quantity times microseconds since 1970."""

    def __init__(self) -> None:
        self._sum: Decimal | None = None

    def step(self, quantity: str | int | None, at: str) -> None:
        if quantity is not None:
            microseconds = (datetime.fromisoformat(at) - _EPOCH) // _MICROSECOND
            self._sum = _WIDE.fma(Decimal(quantity), Decimal(microseconds), self._sum or Decimal(0))

    def finalize(self) -> str | None:
        return None if self._sum is None else canonical_decimal(self._sum)


class _LatestValue:
    """SQLite aggregate: instants are text of one width, so text order is the order of time."""

    def __init__(self) -> None:
        self._greatest: tuple[str, str] | None = None
        self._value: str | int | None = None

    def step(self, value: str | int | None, at: str, id_: str) -> None:
        if value is not None and (self._greatest is None or (at, id_) > self._greatest):
            self._greatest, self._value = (at, id_), value

    def finalize(self) -> str | int | None:
        return self._value


_AGGREGATES: tuple[tuple[str, int, type[Any]], ...] = (
    ("exact_sum", 1, _ExactSum),
    ("exact_max", 1, _ExactMax),
    ("exact_moment", 2, _ExactMoment),
    ("latest_value", 3, _LatestValue),
)


def register_functions(dbapi_connection: Any) -> None:
    """Register our functions on one SQLite connection, sync or async (inside SQLAlchemy's greenlet)."""
    if hasattr(dbapi_connection, "run_async"):
        dbapi_connection.run_async(lambda driver: driver._execute(_register, driver._conn))
    else:
        _register(dbapi_connection)


def _register(connection: Any) -> None:
    for name, arguments, aggregate in _AGGREGATES:
        connection.create_aggregate(name, arguments, aggregate)
    for name, function in SQLITE_FUNCTIONS.items():
        connection.create_function(name, 2, function, deterministic=True)
    connection.create_function("metadata_text", 2, text_of, deterministic=True)


def ready_connection(session: Session) -> Connection:
    """Return the session's connection with exact sums available on it, whoever made its engine."""
    connection = session.connection()
    if connection.dialect.name == "sqlite" and _REGISTERED not in connection.info:
        register_functions(connection.connection.dbapi_connection)
        connection.info[_REGISTERED] = True
    return connection
