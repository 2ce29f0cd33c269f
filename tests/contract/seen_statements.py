"""Which statements reach the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine


@contextmanager
def statements(engine: AsyncEngine) -> Iterator[list[str]]:
    """The statements of a block; on PostgreSQL without BEGIN and COMMIT, which the driver sends itself."""
    seen: list[str] = []

    def see(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        seen.append(sql)

    event.listen(engine.sync_engine, "before_cursor_execute", see)
    yield seen
    event.remove(engine.sync_engine, "before_cursor_execute", see)
