"""One value of a JSON object that is stored as text, as text, the same on both databases."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import lru_cache
from typing import Any

from sqlalchemy import String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from svc_infra.canonical import canonical_decimal


class metadata_text(FunctionElement[str]):  # reads as the SQL function that it is
    """``metadata_text(json, key)``: text as it is, anything else as its JSON text; NULL if absent or null."""

    name = "metadata_text"
    inherit_cache = True
    type = String()


@compiles(metadata_text)
def _postgresql(element: metadata_text, compiler: Any, **kw: Any) -> str:
    document, key = (compiler.process(part, **kw) for part in element.clauses)
    return f"(CAST({document} AS JSONB) ->> {key})"


@compiles(metadata_text, "sqlite")
def _sqlite(element: metadata_text, compiler: Any, **kw: Any) -> str:
    return f"metadata_text({compiler.process(element.clauses, **kw)})"


def text_of(document: str | None, key: str) -> str | None:
    """The function as SQLite calls it; ``->>`` there would read true as 1 and a long integer as a float."""
    if document is None:
        return None
    value = _parsed(document).get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return canonical_decimal(value)
    return json.dumps(value, ensure_ascii=False, default=_number)


@lru_cache(maxsize=1024)
def _parsed(document: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(document, parse_float=Decimal)
    return parsed


def _number(value: Any) -> Any:
    return float(value)
