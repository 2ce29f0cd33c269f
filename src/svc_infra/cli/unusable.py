"""Which errors say that a database cannot be used, in words for the one who runs a command."""

from __future__ import annotations

import socket

import asyncpg
from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from svc_infra.cli.check import first_line

_AWAY = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    InterfaceError,
    OperationalError,
    PoolTimeout,
)
# No file of SQLite, no such database: drivers raise their bases. Below these are faults of a statement.
_BASES = (DatabaseError, DBAPIError)


def why_unusable(error: Exception) -> str | None:
    """Return what keeps the database from being used, on one line; None for an error of another kind."""
    if not isinstance(error, _AWAY) and type(error) not in _BASES:
        return None
    # Of the driver's error alone: the other has the statement, and its parameters, in it.
    reason = getattr(error, "orig", None) or error
    return f"the database cannot be used: {first_line(reason)}; 'worker.py doctor' says more"
