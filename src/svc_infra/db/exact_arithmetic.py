"""Adding and comparing quantities in SQL: as NUMERIC on PostgreSQL, functions over text on SQLite."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal
from typing import Any

from sqlalchemy import Boolean
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from svc_infra.canonical import canonical_decimal
from svc_infra.db.base import Quantity

_WIDE = Context(prec=100)


class exact_add(FunctionElement[Decimal]):  # reads as the SQL function that it is
    """``exact_add(a, b)``: the exact sum of two quantities."""

    name = "exact_add"
    inherit_cache = True
    type = Quantity(50)


class exact_greater(FunctionElement[Decimal]):  # reads as the SQL function that it is
    """``exact_greater(a, b)``: the greater of two quantities."""

    name = "exact_greater"
    inherit_cache = True
    type = Quantity(50)


class exact_at_most(FunctionElement[bool]):  # reads as the SQL function that it is
    """``exact_at_most(a, b)``: whether a quantity is not more than another."""

    name = "exact_at_most"
    inherit_cache = True
    type = Boolean()


@compiles(exact_add)
def _add(element: exact_add, compiler: Any, **kw: Any) -> str:
    left, right = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({left} + {right})"


@compiles(exact_greater)
def _greater(element: exact_greater, compiler: Any, **kw: Any) -> str:
    return f"greatest({compiler.process(element.clauses, **kw)})"


@compiles(exact_at_most)
def _at_most(element: exact_at_most, compiler: Any, **kw: Any) -> str:
    left, right = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({left} <= {right})"


@compiles(exact_add, "sqlite")
@compiles(exact_greater, "sqlite")
@compiles(exact_at_most, "sqlite")
def _function(element: Any, compiler: Any, **kw: Any) -> str:
    return f"{element.name}({compiler.process(element.clauses, **kw)})"


def _added(left: str | int, right: str | int) -> str:
    return canonical_decimal(_WIDE.add(Decimal(left), Decimal(right)))


def _greater_text(left: str | int, right: str | int) -> str:
    return canonical_decimal(max(Decimal(left), Decimal(right)))


def _is_at_most(left: str | int, right: str | int) -> bool:
    return Decimal(left) <= Decimal(right)


def _both(whole: int | None, others: str | int | None) -> str | None:
    if whole is None:
        return None if others is None else str(others)
    return str(whole) if others is None else _added(whole, others)


SQLITE_FUNCTIONS: dict[str, Callable[..., str | bool | None]] = {
    "exact_add": _added,
    "exact_both": _both,
    "exact_greater": _greater_text,
    "exact_at_most": _is_at_most,
}
"""What a SQLite connection needs, by name; each takes two quantities as text."""
