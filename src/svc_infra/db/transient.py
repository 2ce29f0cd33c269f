"""Which errors say that the database could not do it now, and nothing about what it was asked to do."""

from __future__ import annotations

import asyncio
import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout

# Deadlock, serialization failure, lock timeout.
_CONTENTION_STATES = frozenset({"40P01", "40001", "55P03"})
# Server shut down, crashed, starting up, out of connections; idle transaction ended; connection exceptions;
# a disk that is full or broken; a standby, which an application reaches for a moment in a failover.
_AWAY_STATES = frozenset({"57P01", "57P02", "57P03", "53300", "25P03", "25P04", "53100", "58030", "25006"})
_SQLITE_AWAY = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_SQLITE_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_contention(error: BaseException) -> bool:
    """Whether another transaction was in the way: the same work succeeds when it is repeated."""
    return any(
        _sqlstate(link) in _CONTENTION_STATES or _sqlite_code(link) in _SQLITE_BUSY for link in _links(error)
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same work may succeed when it is repeated: contention, or the database went away.

    Drivers do not wrap everything: a server that is gone shows as a bare ``ConnectionRefusedError``, as an
    ``OSError`` over several addresses or as a ``TimeoutError``, and not every lost connection is marked as
    invalidated.
    """
    return is_contention(error) or any(_is_away(link) for link in _links(error))


def _is_away(error: BaseException) -> bool:
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    # Exactly OSError: its other subclasses (no such file, no permission) are the work's own mistakes.
    if isinstance(error, (ConnectionError, asyncio.TimeoutError, PoolTimeout)) or type(error) is OSError:
        return True
    state = _sqlstate(error)
    if state is not None:
        return state in _AWAY_STATES or state.startswith("08")
    if _sqlite_code(error) in _SQLITE_AWAY:
        return True
    # A driver whose connection was closed under it has no SQLSTATE to show.
    return isinstance(error, InterfaceError) and "closed" in str(error)


def _links(error: BaseException) -> list[BaseException]:
    """Return ``error``, the driver's error in it and what that was raised from."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = getattr(link, "orig", None) or link.__cause__
    return links


def _sqlstate(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state if isinstance(state, str) else None


def _sqlite_code(error: BaseException) -> int | None:
    """The primary error code of SQLite, without what extends it."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None
