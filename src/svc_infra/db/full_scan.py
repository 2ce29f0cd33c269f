"""Looking at all of an index of due rows, less often while a long transaction makes that slow.

PostgreSQL keeps the entries of rows that have left such an index for as long as a transaction is open that
might still see them. They stand before everything that is due, so that each claim would walk over all that
was ever claimed since. A claim may then begin where an earlier one found its first row, and look at all of
the index only now and then, for what has come to stand before that place meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text
from sqlalchemy.orm import Session

# A claim of nothing takes a millisecond or two, and a row some tens of microseconds.
_SLOW_SECONDS, _SLOW_SECONDS_PER_ROW = 0.02, 0.0002
# A tenth of the time may go into full scans. Rows that only they find wait no longer than this: once until
# they are rescued and once until they are claimed, and both must fit into the 45 s promised after a crash.
_TIMES_ITS_OWN, _LONGEST_SECONDS = 10.0, 3.0
_HOLDS_BACK = text(
    "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()"
    " AND xact_start < clock_timestamp() - interval '5 seconds' AND backend_type <> 'autovacuum worker')"
    " OR EXISTS (SELECT 1 FROM pg_prepared_xacts)"
    " OR EXISTS (SELECT 1 FROM pg_replication_slots WHERE xmin IS NOT NULL)"
)


class FullScan:
    """When to look at all of one index again."""

    def __init__(self) -> None:
        self._due_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether to look at all of it now; always, as long as that is quick."""
        return time.monotonic() >= self._due_at

    def force(self) -> None:
        """Let the next look be at all of it: rows were given back that may stand anywhere."""
        self._due_at = 0.0

    @contextmanager
    def made(self, session: Session) -> Iterator[list[int]]:
        """Time a full scan, whose rows are appended as a number, and choose when the next is due."""
        rows: list[int] = []
        started = time.monotonic()
        yield rows
        seconds = time.monotonic() - started
        is_slow = seconds > _SLOW_SECONDS + _SLOW_SECONDS_PER_ROW * sum(rows)
        if is_slow and _is_held_back(session):
            self._due_at = time.monotonic() + min(seconds * _TIMES_ITS_OWN, _LONGEST_SECONDS)


def _is_held_back(session: Session) -> bool:
    """Whether somebody may still see rows of several seconds ago, so that PostgreSQL keeps their entries."""
    if session.get_bind().dialect.name != "postgresql":
        return False
    return bool(session.execute(_HOLDS_BACK).scalar())
