"""A batch of values as a FROM clause, so that one prepared statement serves a batch of any size.

PostgreSQL gets one array per column (``unnest``), SQLite one JSON array of rows (``json_each``). Either way
the text of the statement does not depend on the number of rows, so it is built, compiled and prepared once::

    CLAIMS = Rowset("claims", id=IdText, lease_id=IdText)

    @cache
    def _finish(dialect: str) -> Update:
        claims = CLAIMS.table(dialect)
        return update(jobs).where(jobs.c.id == claims.c.id, jobs.c.lease_id == claims.c.lease_id)...

    session.execute(_finish(dialect), CLAIMS.parameters(dialect, [(job.id, job.lease_id), ...]))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import String, bindparam, column, func, select, type_coerce
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.selectable import FromClause
from sqlalchemy.types import TypeEngine

from svc_infra.canonical import canonical_decimal
from svc_infra.clock import require_utc


class Rowset:
    """Named, typed columns whose rows are sent as one parameter (SQLite) or one array each (PostgreSQL).

    Parameter names begin with the rowset's name, so several rowsets fit into one statement.
    """

    def __init__(self, name: str, /, **columns: TypeEngine[Any] | type[TypeEngine[Any]]) -> None:
        self.name = name
        self.columns: dict[str, TypeEngine[Any]] = {
            key: kind() if isinstance(kind, type) else kind for key, kind in columns.items()
        }

    def table(self, dialect: str) -> FromClause:
        """Return the FROM clause for the dialect of this name; its columns are in ``.c``."""
        return self._unnest() if dialect == "postgresql" else self._json_each()

    def parameters(self, dialect: str, rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
        """Return the parameters that carry ``rows`` (tuples in the order of the columns)."""
        rows = list(rows)
        if dialect == "postgresql":
            return {
                self._parameter(key): [row[index] for row in rows] for index, key in enumerate(self.columns)
            }
        return {self._parameter("rows"): json.dumps([[_plain(value) for value in row] for row in rows])}

    def _unnest(self) -> FromClause:
        arrays = [bindparam(self._parameter(key), type_=ARRAY(kind)) for key, kind in self.columns.items()]
        typed = [column(key, kind) for key, kind in self.columns.items()]
        return func.unnest(*arrays).table_valued(*typed, name=self.name).render_derived()

    def _json_each(self) -> FromClause:
        rows = func.json_each(bindparam(self._parameter("rows"), type_=String)).table_valued("value")
        picked = [
            type_coerce(func.json_extract(rows.c.value, f"$[{index}]"), kind).label(key)
            for index, (key, kind) in enumerate(self.columns.items())
        ]
        return select(*picked).select_from(rows).cte(self.name).prefix_with("MATERIALIZED")

    def _parameter(self, key: str) -> str:
        return f"{self.name}_{key}"


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
