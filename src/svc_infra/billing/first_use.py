"""What billing asks of a session it is given, whoever made its engine."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from svc_infra.db.after_commit import call_after_commit
from svc_infra.db.exact import ready_connection
from svc_infra.db.schema import require_schema

_with_schema: WeakSet[Engine] = WeakSet()


def ready(session: Session) -> Connection:
    """Return the session's connection, in a real transaction, with exact sums and with our tables.

    An in-memory SQLite database gets the tables on first use.

    Raises:
        SchemaMissing: any other database has none; the message names the command that makes them.
    """
    connection = ready_connection(session)
    if connection.dialect.name == "sqlite":
        _begin(connection)
    if connection.engine not in _with_schema:
        require_schema(connection)
        # Not before the commit: a rollback would take tables made here away again.
        call_after_commit(session, lambda: _with_schema.add(connection.engine))
    return connection


def _begin(connection: Connection) -> None:
    """Begin the transaction that SQLite's driver has put off.

    The driver of an engine that is not ours begins one only before a statement whose first word is INSERT,
    UPDATE or DELETE; ours begin with WITH and would be committed one by one.
    """
    driver: Any = connection.connection.driver_connection
    if not driver.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
