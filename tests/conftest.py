"""Databases for tests: a fresh SQLite file or PostgreSQL database each, copied from a template.

A test that asks for ``engine``, ``session_factory`` or ``database_url`` runs once on SQLite and once on
PostgreSQL; ``@pytest.mark.sqlite_only`` and ``@pytest.mark.postgres_only`` hold it to one. The PostgreSQL
server is started by the first test that needs it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.db.schema import create_schema
from svc_infra.db.session import make_engine
from svc_infra.testing.postgres import PostgresServer

# The settings of whoever runs the tests are not the tests' business.
for _name in [name for name in os.environ if name.startswith("SVC__") or name == "DATABASE_URL"]:
    del os.environ[_name]

# A shared machine is slow at times, and slow is not wrong.
# Explaining a failure traces every line, which on a database takes minutes and hides it behind a timeout.
_PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
settings.register_profile("svc_infra", deadline=None, print_blob=True, phases=_PHASES)
settings.load_profile("svc_infra")

TARGETS = ["sqlite", "postgres"]
_TEMPLATE = "svc_template"
_database_numbers = itertools.count(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    test = metafunc.definition
    chosen_by_the_test = any("target" in mark.args[0] for mark in test.iter_markers("parametrize"))
    if "target" in metafunc.fixturenames and not chosen_by_the_test:
        only = [kind for kind in TARGETS if test.get_closest_marker(f"{kind}_only")]
        metafunc.parametrize("target", only or TARGETS, indirect=True)


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> Iterator[None]:
    """Refuse connections to anything but this machine: no test may depend on, or load, another."""
    with pytest.MonkeyPatch.context() as patch:
        for method in ("connect", "connect_ex"):
            patch.setattr(socket.socket, method, _guarded(getattr(socket.socket, method)))
        yield


def _guarded(connect: Any) -> Any:
    def connect_to_loopback(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX and not _is_loopback(address[0]):
            raise PermissionError(f"a test tried to connect to {address}; tests use loopback addresses only")
        return connect(self, address)

    return connect_to_loopback


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The PostgreSQL server that all tests of this run share; a test that kills one starts its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """The name of a database with the schema, to be copied and never written."""
    postgres_server.create_database(_TEMPLATE)
    _make_schema(postgres_server.url(_TEMPLATE))
    return _TEMPLATE


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema, to be copied and never written."""
    path = tmp_path_factory.mktemp("template") / "template.sqlite"
    _make_schema(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
def target(request: pytest.FixtureRequest) -> str:
    """The kind of database that the test runs on: ``sqlite`` or ``postgres``."""
    kind: str = request.param
    return kind


@pytest.fixture
def database_url(target: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of the test's own that has the schema and no rows."""
    if target == "sqlite":
        path = tmp_path / "test.sqlite"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite+aiosqlite:///{path}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"test_{next(_database_numbers)}"
    server.create_database(name, template=request.getfixturevalue("postgres_template"))
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def empty_database_url(target: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of the test's own without any table, for tests of migrations."""
    if target == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'empty.sqlite'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"empty_{next(_database_numbers)}"
    server.create_database(name)
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on ``database_url``, made as the worker makes its own."""
    engine = make_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def session_factory(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Sessions on ``engine`` whose objects stay readable after a commit."""
    return async_sessionmaker(engine, expire_on_commit=False)


def _make_schema(url: str) -> None:
    async def make() -> None:
        engine = make_engine(url)
        try:
            await create_schema(engine)
        finally:
            await engine.dispose()

    # Session fixtures are synchronous, and the main thread's event loop belongs to pytest-asyncio.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(make())).result()
