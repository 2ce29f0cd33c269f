"""What goes wrong with a SQLite file between its connections, and must not stay wrong."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.db import session as sessions
from svc_infra.db.session import make_engine, make_session_factory


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine on a file with one table and one row; it does not wait long for others."""
    monkeypatch.setattr(sessions, "SQLITE_BUSY_TIMEOUT_SECONDS", 0.05)
    # A reader keeps a writer from its commit in a rollback journal only.
    monkeypatch.setattr(sessions, "sqlite_journal_mode", lambda: "truncate")
    engine = make_engine(f"sqlite:///{tmp_path / 'test.sqlite'}")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE numbers (n INTEGER)"))
        await connection.execute(text("INSERT INTO numbers VALUES (0)"))
    yield engine
    await engine.dispose()


async def count_up(engine: AsyncEngine) -> None:
    async with make_session_factory(engine)() as session:
        await session.execute(text("UPDATE numbers SET n = n + 1 RETURNING n"))
        await session.commit()


async def test_a_commit_that_a_reader_refused_is_rolled_back_and_the_next_one_works(
    engine: AsyncEngine,
) -> None:
    reader = sqlite3.connect(str(engine.url.database), isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT n FROM numbers").fetchall() == [(0,)]
    with pytest.raises(OperationalError, match="locked"):
        await count_up(engine)
    reader.execute("COMMIT")
    writer = sqlite3.connect(str(engine.url.database), isolation_level=None, timeout=0)
    writer.execute("UPDATE numbers SET n = n + 10")
    await count_up(engine)
    assert reader.execute("SELECT n FROM numbers").fetchall() == [(11,)]
    reader.close()
    writer.close()


async def test_a_cancelled_statement_costs_nobody_an_in_memory_database() -> None:
    engine = make_engine("sqlite:///:memory:")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE numbers (n INTEGER)"))
        await connection.execute(text("INSERT INTO numbers VALUES (0)"))
    loop, was_cancelled = asyncio.get_running_loop(), threading.Event()

    def cancel() -> None:
        task.cancel()
        was_cancelled.set()

    def wait_for_it(n: int) -> int:
        loop.call_soon_threadsafe(cancel)
        assert was_cancelled.wait(10)
        return n + 1

    async def cancelled() -> None:
        async with engine.begin() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.create_function("wait_for_it", 1, wait_for_it)
            await connection.execute(text("UPDATE numbers SET n = wait_for_it(n) RETURNING n"))

    task = asyncio.create_task(cancelled())
    (error,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(error, asyncio.CancelledError)
    await count_up(engine)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT n FROM numbers"))).scalar_one() == 1
    await engine.dispose()


async def test_a_cancelled_statement_lets_go_of_the_file_at_once(engine: AsyncEngine) -> None:
    def cancel(*_: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def cancelled() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            event.listen(engine.sync_engine, "before_cursor_execute", cancel)
            await connection.execute(text("UPDATE numbers SET n = n + 1 RETURNING n"))

    task = asyncio.create_task(cancelled())
    (error,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(error, asyncio.CancelledError)  # which holds on to all that it went through
    event.remove(engine.sync_engine, "before_cursor_execute", cancel)
    await count_up(engine)
