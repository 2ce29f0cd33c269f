"""Engines and sessions: the settings without which a database loses updates, hangs or leaks secrets."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import structlog
from sqlalchemy import Select, event, make_url
from sqlalchemy.engine import URL, Connection, ExceptionContext
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, PoolResetState

from svc_infra.db.exact import register_functions
from svc_infra.db.sqlite_connection import SqliteConnection
from svc_infra.exceptions import InvalidSettings

log = structlog.get_logger(__name__)
T = TypeVar("T")

SQLITE_BUSY_TIMEOUT_SECONDS = 60
_READS = "svc_infra_reads"
READING: Mapping[str, bool] = {_READS: True, "postgresql_readonly": True}
"""The execution options of a connection that only reads."""


def normalize_url(url: str | URL) -> URL:
    """Return ``url`` with the async driver of its database.

    Raises:
        InvalidSettings: neither ``sqlite`` nor ``postgresql``.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        # Not repeated: whatever it is, it may hold a password.
        raise InvalidSettings(
            "the database URL cannot be read; write it like sqlite:///file.db or postgresql://host/db"
        ) from None
    match parsed.get_backend_name():
        case "sqlite":
            return parsed.set(drivername="sqlite+aiosqlite")
        case "postgresql" | "postgres":
            return parsed.set(drivername="postgresql+asyncpg")
        case other:
            raise InvalidSettings(
                f"no support for {other!r} databases; use sqlite:///file.db or postgresql://host/db"
            )


def make_engine(
    url: str | URL,
    *,
    pool_size: int = 8,
    statement_timeout_seconds: float = 60,
    lock_timeout_seconds: float = 20,
    idle_in_transaction_timeout_seconds: float = 120,
    behind_transaction_pooler: bool = False,
) -> AsyncEngine:
    """Make the engine that the worker and the API use.

    ``behind_transaction_pooler`` is for PgBouncer and its like in transaction mode: no prepared statements
    that outlive a transaction, no pool of our own, no session settings at connect. The timeouts are
    PostgreSQL's; behind a pooler set them on the role instead.
    """
    parsed = normalize_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed)
    if behind_transaction_pooler:
        return create_async_engine(
            parsed,
            hide_parameters=True,
            poolclass=NullPool,
            connect_args={"statement_cache_size": 0, "prepared_statement_cache_size": 0},
        )
    engine = create_async_engine(
        parsed,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,
        pool_recycle=1800,
        pool_pre_ping=False,
        connect_args={
            "server_settings": {
                "application_name": "svc_infra",
                "statement_timeout": _milliseconds(statement_timeout_seconds),
                "lock_timeout": _milliseconds(lock_timeout_seconds),
                "idle_in_transaction_session_timeout": _milliseconds(idle_in_transaction_timeout_seconds),
                # Plans of our few statements are stable; compiling them costs more than they run.
                "jit": "off",
            }
        },
    )
    _roll_back_at_reset(engine, lambda driver: bool(driver.is_in_transaction()))
    return engine


def make_session_factory(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Make the factory of the short sessions that every unit of work opens for itself."""
    return async_sessionmaker(engine, expire_on_commit=False)


async def begin_reading(session: AsyncSession) -> None:
    """Begin a transaction of ``session`` that only reads: it waits for no writer and keeps none waiting.

    PostgreSQL refuses a write in it. SQLite, where a transaction takes the one write lock at once otherwise,
    may refuse one when another process writes.
    """
    await session.connection(execution_options=READING)


async def commit(session: AsyncSession) -> None:
    """Commit, and let no cancellation into it: half a commit is one whose outcome nobody knows.

    Raises:
        CancelledError: the task was cancelled meanwhile; the commit has ended before it is raised.
    """
    committing = asyncio.ensure_future(session.commit())
    is_cancelled = False
    while not committing.done():
        try:
            await asyncio.shield(committing)
        except asyncio.CancelledError:
            # Also when the commit ended in the same instant: the cancellation was for us.
            is_cancelled = True
    committing.result()
    if is_cancelled:
        raise asyncio.CancelledError


def commit_each_statement(session: Session) -> None:
    """On PostgreSQL let each statement of ``session`` be its own transaction: two round trips less.

    For a session that has begun nothing yet, and for work of which any part may be committed without the
    rest. On SQLite, where BEGIN costs little, it is one transaction as ever. What a statement that was
    cancelled has done nobody knows, as with a commit.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})


async def by_statements(session_factory: Callable[[], AsyncSession], work: Callable[[Session], T]) -> T:
    """Run ``work``, which needs no transaction, as in ``commit_each_statement``, in a session of its own."""
    async with session_factory() as session:
        await session.run_sync(commit_each_statement)
        result = await session.run_sync(work)
        await commit(session)
        return result


async def finds_any(
    session_factory: Callable[[], AsyncSession],
    query: Select[Any],
    parameters: Mapping[str, Any] | None = None,
) -> bool:
    """Whether ``query`` finds a row: what an idle loop asks, in one statement, before a transaction."""
    return await by_statements(
        session_factory, lambda session: session.execute(query, parameters or {}).first() is not None
    )


def wal_is_safe(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite is free of the WAL-reset bug, which can corrupt a file that two connections write.

    Fixed in 3.51.3 and 3.53.0, and in the maintenance releases 3.44.6 and 3.50.7
    (https://www.sqlite.org/wal.html#walresetbug).
    """
    major_minor, patch = version[:2], version[2]
    if major_minor in {(3, 44), (3, 50), (3, 51)}:
        return patch >= {(3, 44): 6, (3, 50): 7, (3, 51): 3}[major_minor]
    return major_minor >= (3, 52)


def sqlite_journal_mode() -> str:
    """The journal mode that is safe with the linked SQLite: ``wal``, or ``truncate`` where WAL is not."""
    return "wal" if wal_is_safe() else "truncate"


def _sqlite_engine(url: URL) -> AsyncEngine:
    is_memory = url.database in (None, "", ":memory:")
    # One connection a process: its tasks then queue in order for it, where several connections would poll
    # for the file's one write lock. The file lock orders the processes. An in-memory database is its one
    # connection, which tasks must not share: one would find itself in another's transaction.
    pool = {"poolclass": AsyncAdaptedQueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 60}
    arguments = {"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "factory": SqliteConnection}
    engine = create_async_engine(url, hide_parameters=True, connect_args=arguments, **pool)
    journal_mode = sqlite_journal_mode()
    log.info("sqlite.journal_mode", mode=journal_mode, sqlite_version=sqlite3.sqlite_version)

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(dbapi_connection: Any, _record: Any) -> None:
        # SQLAlchemy's driver would begin transactions late and deferred, which loses updates silently.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        if not is_memory:
            cursor.execute(f"PRAGMA journal_mode = {journal_mode}")
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA cache_size = -65536")
        cursor.close()
        register_functions(dbapi_connection)

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        is_reading = connection.get_execution_options().get(_READS, False)
        connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")

    if is_memory:
        _keep_connection(engine)
    _roll_back_at_reset(engine, lambda driver: bool(driver.in_transaction))
    return engine


def _keep_connection(engine: AsyncEngine) -> None:
    """Let a cancelled statement not cost the connection, for with it an in-memory database is gone.

    The statement goes on in the connection's thread, and the roll-back comes after it.
    """

    @event.listens_for(engine.sync_engine, "handle_error")
    def _is_still_connected(context: ExceptionContext) -> None:
        if isinstance(context.original_exception, asyncio.CancelledError):
            context.is_disconnect = False


def _roll_back_at_reset(engine: AsyncEngine, is_open: Callable[[Any], bool]) -> None:
    """End what a commit that failed without reaching the database has left open.

    A session that is closed then takes the transaction for ended. On SQLite nobody could begin another one;
    on PostgreSQL the next one would go on in it, and commit what had failed.
    """

    @event.listens_for(engine.sync_engine, "reset")
    def _end_transaction(dbapi_connection: Any, _record: Any, state: PoolResetState) -> None:
        if not state.terminate_only and is_open(dbapi_connection.driver_connection):
            dbapi_connection.rollback()


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
