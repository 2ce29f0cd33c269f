"""Several worker processes under one supervisor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from svc_infra.cli.supervisor import child_command
from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine

ROOT = Path(__file__).resolve().parents[2]


class Log:
    """The events that several processes write to one stream, where line ends may come late."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream
        self._waiting: list[dict[str, Any]] = []

    async def event(self, name: str) -> dict[str, Any]:
        """Return the next event of this name; those before it are passed over."""
        while True:
            while self._waiting:
                found = self._waiting.pop(0)
                if found.get("event") == name:
                    return found
            line = (await self._stream.readline()).decode()
            assert line, f"the log ended before {name}"
            pieces = line.replace("}{", "}\n{").splitlines()
            self._waiting += [json.loads(piece) for piece in pieces if piece.startswith("{")]

    async def events_to_the_end(self) -> list[str]:
        """Return the names of the events that are left."""
        rest = (await self._stream.read()).decode().replace("}{", "}\n{").splitlines()
        left = self._waiting + [json.loads(piece) for piece in rest if piece.startswith("{")]
        return [found["event"] for found in left]


async def migrated(database_url: str) -> None:
    """Give an empty database the schema."""
    engine = make_engine(database_url)
    await migrate(engine)
    await engine.dispose()


async def supervised(database_url: str, *options: str) -> tuple[asyncio.subprocess.Process, Log]:
    """Start a supervisor of two workers, and return it with the log of all three."""
    await migrated(database_url)
    command = [str(ROOT / "worker.py"), "run", "--processes", "2", "--database-url", database_url, *options]
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert supervisor.stdout is not None
    return supervisor, Log(supervisor.stdout)


@pytest.mark.sqlite_only
async def test_a_process_that_dies_is_started_again_and_a_signal_stops_all_in_order(
    empty_database_url: str,
) -> None:
    supervisor, log = await supervised(empty_database_url)
    async with asyncio.timeout(100):
        pids = [(await log.event("worker.ready"))["pid"] for _ in range(2)]
        assert len({*pids, supervisor.pid}) == 3
        os.kill(pids[0], signal.SIGKILL)
        ended = await log.event("supervisor.process_ended")
        assert ended["code"] == -signal.SIGKILL
        again = (await log.event("worker.ready"))["pid"]
        supervisor.send_signal(signal.SIGTERM)
        rest = await log.events_to_the_end()
        assert await supervisor.wait() == 0
    assert rest.count("worker.stopped") == 2
    for pid in (pids[1], again):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.sqlite_only
async def test_the_processes_of_a_supervisor_that_is_killed_stop_in_order(empty_database_url: str) -> None:
    supervisor, log = await supervised(empty_database_url)
    async with asyncio.timeout(100):
        for _ in range(2):
            await log.event("worker.ready")
        supervisor.kill()
        # The log ends when the last process that writes to it has ended.
        rest = await log.events_to_the_end()
        await supervisor.wait()
    assert rest.count("worker.stopped") == 2


@pytest.mark.sqlite_only
async def test_a_worker_stops_when_told_although_nobody_reads_its_log_any_more(
    empty_database_url: str,
) -> None:
    await migrated(empty_database_url)
    reading, writing = os.pipe()
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "worker.py"), "run", "--database-url", empty_database_url),
        stderr=writing,
    )
    os.close(writing)
    async with asyncio.timeout(100):
        with os.fdopen(reading, "rb") as log:
            while b'"worker.ready"' not in await asyncio.to_thread(log.readline):
                pass
        worker.terminate()
        assert await worker.wait() == 0


@pytest.mark.sqlite_only
async def test_each_process_answers_probes_on_a_port_of_its_own(empty_database_url: str) -> None:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        second.bind(("127.0.0.1", port + 1))
    supervisor, log = await supervised(empty_database_url, "--set", f"monitoring.port={port}")
    async with asyncio.timeout(100), httpx.AsyncClient(trust_env=False) as client:
        for _ in range(2):
            await log.event("worker.ready")
        for each in (port, port + 1):
            for path in ("livez", "readyz"):
                assert (await client.get(f"http://127.0.0.1:{each}/{path}")).json() == {"status": "ok"}
        supervisor.send_signal(signal.SIGTERM)
        rest = await log.events_to_the_end()
        assert await supervisor.wait() == 0
    assert rest.count("worker.stopped") == 2


@pytest.mark.parametrize("option", [["--processes", "4"], ["--processes=4"]])
def test_a_process_gets_the_arguments_without_their_number(option: list[str]) -> None:
    command = child_command(["worker.py", "run", *option, "--app", "shop:app"])
    assert command[0] == sys.executable
    assert command[-4:] == ["run", "--app", "shop:app", "--supervised"]
