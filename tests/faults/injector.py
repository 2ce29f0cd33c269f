"""Faults at the steps of a database: every statement and every commit of one task is a step."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine


class Kind(StrEnum):
    """What goes wrong. A lost connection is an I/O error on SQLite, which has no connection to lose."""

    RAISE = "raise"
    LOST = "lost connection"
    CANCEL = "cancel"
    COMMIT_LOST_BEFORE = "commit lost before"
    COMMIT_LOST_AFTER = "commit lost after"


OF_COMMITS = frozenset({Kind.COMMIT_LOST_BEFORE, Kind.COMMIT_LOST_AFTER})
COMMIT = "COMMIT"


@dataclass(frozen=True)
class Fault:
    """A fault of ``kind`` at step number ``step`` (from 0); a persistent one at all later steps too."""

    step: int
    kind: Kind
    is_persistent: bool

    def __str__(self) -> str:
        return f"{self.kind.value} at step {self.step}{' and all later' if self.is_persistent else ''}"


def single_faults(steps: list[str]) -> Iterator[Fault]:
    """Yield every fault that a run of these steps can have, once and persistently."""
    for step, name in enumerate(steps):
        for kind in Kind:
            if kind not in OF_COMMITS or name == COMMIT:
                yield Fault(step, kind, is_persistent=False)
                yield Fault(step, kind, is_persistent=True)


class Injector:
    """Counts the steps that ``engine`` takes while it watches, and lets the chosen one fail."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.steps: list[str] = []
        self.fired = 0
        self._fault: Fault | None = None
        self._victim: asyncio.Task[Any] | None = None
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._driver: Any = engine.dialect.loaded_dbapi
        self._do_commit = engine.sync_engine.dialect.do_commit
        event.listen(engine.sync_engine, "before_cursor_execute", self._execute)
        engine.sync_engine.dialect.do_commit = self._commit  # type: ignore[method-assign]  # there is no event in it

    @contextmanager
    def watching(self, fault: Fault | None, victim: asyncio.Task[Any]) -> Iterator[None]:
        """Count from 0, and let ``fault`` happen to what ``victim`` does."""
        self.steps, self.fired, self._fault, self._victim = [], 0, fault, victim
        try:
            yield
        finally:
            self._victim = None

    def _execute(self, connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if self._is_hit(statement):
            try:
                self._fail(connection.connection)
            except self._driver.Error as error:
                if self._is_lost():
                    return  # the statement will find that out
                # What the driver raises is wrapped, and not here where it is still the caller's turn.
                raise DBAPIError.instance(statement, {}, error, self._driver.Error) from error

    def _commit(self, dbapi_connection: Any) -> None:
        if not self._is_hit(COMMIT):
            self._do_commit(dbapi_connection)
            return
        assert self._fault is not None
        if self._fault.kind is Kind.COMMIT_LOST_AFTER:
            self._do_commit(dbapi_connection)
        self._fail(dbapi_connection)
        self._do_commit(dbapi_connection)

    def _is_hit(self, step: str) -> bool:
        if self._victim is None:
            return False
        self.steps.append(step)
        fault, number = self._fault, len(self.steps) - 1
        is_hit = fault is not None and (number == fault.step or (fault.is_persistent and number > fault.step))
        # Of a persistent commit that is lost, what is no commit works.
        is_hit = is_hit and (step == COMMIT or fault is None or fault.kind not in OF_COMMITS)
        self.fired += is_hit
        return is_hit

    def _is_lost(self) -> bool:
        return self._fault is not None and self._fault.kind is Kind.LOST and not self._is_sqlite

    def _fail(self, dbapi_connection: Any) -> None:
        assert self._fault is not None
        assert self._victim is not None
        if self._fault.kind is Kind.CANCEL:
            self._victim.cancel()
        elif self._fault.kind is Kind.RAISE:
            raise self._driver.ProgrammingError("injected")
        elif self._is_sqlite:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        else:
            dbapi_connection.driver_connection.terminate()
            raise self._driver.InterfaceError("connection is closed")
