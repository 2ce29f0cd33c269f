"""A batch of values as a FROM clause, so that one prepared statement serves a batch of any size.

PostgreSQL gets one JSON array per column, SQLite one of rows (``json_each``). Either way the text of the
statement does not depend on the number of rows, so it is built, compiled and prepared once. (An array for
``unnest`` costs the driver twice as much as JSON does: it asks of every element whether it is an array.) ::

    CLAIMS = Rowset("claims", id=IdText, lease_id=IdText)

    @cache
    def _finish(dialect: str) -> Update:
        claims = CLAIMS.table(dialect)
        return update(jobs).where(jobs.c.id == claims.c.id, jobs.c.lease_id == claims.c.lease_id)...

    session.execute(_finish(dialect), CLAIMS.parameters(dialect, [(job.id, job.lease_id), ...]))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    Float,
    Integer,
    String,
    Text,
    bindparam,
    cast,
    column,
    func,
    select,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import FromClause
from sqlalchemy.types import TypeEngine

from svc_infra.canonical import canonical_decimal
from svc_infra.clock import require_utc
from svc_infra.db.base import UtcDateTime

json_column = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
"""Write the values of a column as JSON, for a statement of one's own with ``json_array_elements_text``."""


class Rowset:
    """Named, typed columns whose rows are sent as one parameter (SQLite) or one for each (PostgreSQL).

    Parameter names begin with the rowset's name, so several rowsets fit into one statement.
    """

    def __init__(self, name: str, /, **columns: TypeEngine[Any] | type[TypeEngine[Any]]) -> None:
        self.name = name
        self.columns: dict[str, TypeEngine[Any]] = {
            key: kind() if isinstance(kind, type) else kind for key, kind in columns.items()
        }
        self._conversions = [(key, _conversion(kind)) for key, kind in self.columns.items()]

    def table(self, dialect: str) -> FromClause:
        """Return the FROM clause for the dialect of this name; its columns are in ``.c``."""
        return self._json_columns() if dialect == "postgresql" else self._json_each()

    def parameters(self, dialect: str, rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
        """Return the parameters that carry ``rows`` (tuples in the order of the columns)."""
        rows = list(rows)
        if dialect == "postgresql":
            columns = zip(*rows, strict=True) if rows else ([] for _ in self.columns)
            return {
                self._parameter(key): json_column(values if convert is None else list(map(convert, values)))
                for (key, convert), values in zip(self._conversions, columns, strict=True)
            }
        return {self._parameter("rows"): json.dumps([[_plain(value) for value in row] for row in rows])}

    def _json_columns(self) -> FromClause:
        given = [cast(bindparam(self._parameter(key), type_=Text), JSON) for key in self.columns]
        texts = (
            _json_elements(*given).table_valued(*(column(key, Text) for key in self.columns)).render_derived()
        )
        values = [
            # Text is not cast to its length, which would cut what is too long instead of refusing it.
            type_coerce(texts.c[key], kind) if isinstance(kind, String) else cast(texts.c[key], kind)
            for key, kind in self.columns.items()
        ]
        picked = [value.label(key) for key, value in zip(self.columns, values, strict=True)]
        return select(*picked).select_from(texts).subquery()

    def _json_each(self) -> FromClause:
        rows = func.json_each(bindparam(self._parameter("rows"), type_=String)).table_valued("value")
        picked = [
            type_coerce(func.json_extract(rows.c.value, f"$[{index}]"), kind).label(key)
            for index, (key, kind) in enumerate(self.columns.items())
        ]
        return select(*picked).select_from(rows).cte(self.name).prefix_with("MATERIALIZED")

    def _parameter(self, key: str) -> str:
        return f"{self.name}_{key}"


class _json_elements(FunctionElement[Any]):  # reads as the SQL function that it is
    """The elements of JSON arrays as text, beside each other."""

    name = "json_elements"
    inherit_cache = True


@compiles(_json_elements)
def _rows_from(element: _json_elements, compiler: Any, **kw: Any) -> str:
    arrays = (f"json_array_elements_text({compiler.process(array, **kw)})" for array in element.clauses)
    return f"ROWS FROM ({', '.join(arrays)})"


def _conversion(kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    """What brings a value of this type into a form that JSON has; None for what has one."""
    if isinstance(kind, (UtcDateTime, DateTime)):
        return _instant
    return None if isinstance(kind, (String, Integer, Float)) else _text


def _instant(value: datetime | None) -> str | None:
    return None if value is None else require_utc(value).isoformat()


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, datetime):
        # SQLAlchemy's storage format on SQLite, so that text compares like time.
        return require_utc(value).replace(tzinfo=None).isoformat(" ", "microseconds")
    if isinstance(value, Decimal):
        return canonical_decimal(value)
    if isinstance(value, date):
        return value.isoformat()
    return value
