"""A SQLite connection that lets go of its file when it is closed, whoever still holds one of its cursors."""

from __future__ import annotations

import sqlite3
from typing import Any
from weakref import WeakSet


class SqliteConnection(sqlite3.Connection):
    """Ends its statements before it closes.

    The standard library leaves them to the garbage collector. The statement of a cancelled task would until
    then keep its lock on the file, and nobody could commit.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()

    def cursor(self, *args: Any, **options: Any) -> Any:
        cursor = super().cursor(*args, **options)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        for cursor in self._cursors:
            cursor.close()
        super().close()
