"""Which errors are the database's state and not the work's mistake."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError, InterfaceError

from svc_infra.db.transient import is_contention, is_transient


def raised_by(driver: Exception, kind: type[DBAPIError] = DBAPIError) -> DBAPIError:
    return kind("UPDATE", {}, driver)


def with_state(state: str) -> Exception:
    error = Exception(state)
    error.sqlstate = state  # type: ignore[attr-defined]  # as asyncpg's errors have
    return error


def with_code(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as SQLite says")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "transient", "contention"),
    [
        (raised_by(with_state("40P01")), True, True),
        (raised_by(with_state("40001")), True, True),
        (raised_by(with_state("57P01")), True, False),
        (raised_by(with_state("57P03")), True, False),
        (raised_by(with_state("08006")), True, False),
        (raised_by(with_state("53100")), True, False),  # the disk is full
        (raised_by(with_state("25006")), True, False),  # a standby that is not promoted yet
        (raised_by(with_state("23505")), False, False),
        (raised_by(with_state("57014")), False, False),  # the statement's own timeout
        (ConnectionRefusedError(), True, False),
        (OSError("several addresses failed"), True, False),
        (FileNotFoundError(), False, False),
        (raised_by(Exception("the connection is closed"), InterfaceError), True, False),
        (raised_by(with_code(sqlite3.SQLITE_BUSY)), True, True),
        (raised_by(with_code(sqlite3.SQLITE_BUSY_SNAPSHOT)), True, True),
        (raised_by(with_code(sqlite3.SQLITE_FULL)), True, False),
        (raised_by(with_code(sqlite3.SQLITE_IOERR_FSYNC)), True, False),
        (raised_by(with_code(sqlite3.SQLITE_CONSTRAINT)), False, False),
        (ValueError(), False, False),
    ],
    ids=repr,
)
def test_an_error_is_transient_if_the_same_work_may_succeed_later(
    error: Any, transient: bool, contention: bool
) -> None:
    assert (is_transient(error), is_contention(error)) == (transient, contention)
