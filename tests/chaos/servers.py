"""A PostgreSQL server with a synchronous standby, behind one address that outlives a promotion."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import asyncpg

from svc_infra.exceptions import SvcInfraError
from svc_infra.testing import PostgresServer
from svc_infra.testing.postgres import find_binaries


class Standby(PostgresServer):
    """A streaming replica of ``primary``."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__()
        self._primary_port = primary.port

    def _run_initdb(self, binaries: Path) -> None:
        data = self._cluster_folder() / "data"
        command = [*self._prefix, str(binaries / "pg_basebackup"), "-D", str(data), "-R", "-X", "stream"]
        command += ["-h", "127.0.0.1", "-p", str(self._primary_port), "-U", "postgres", "-c", "fast"]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **self._run_as)
        if done.returncode != 0:
            raise SvcInfraError(f"pg_basebackup failed: {done.stderr.strip()}")


def can_replicate() -> bool:
    """Whether the server binaries can make a replica."""
    return (find_binaries() / "pg_basebackup").is_file()


class Address:
    """Forwards connections on a port of its own to the server that is the primary now."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._listener = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self._port = self._listener.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self._port}/postgres"

    async def close(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self.server.port)
            self._writers |= {writer, back}
            try:
                await asyncio.gather(_pump(reader, back), _pump(there, writer))
            finally:
                self._writers -= {writer, back}
                back.close()
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


async def ask(server: PostgresServer, statement: str) -> Any:
    """Run one statement on a server, past the address, and return its single value."""
    connection = await asyncpg.connect(
        host="127.0.0.1", port=server.port, user="postgres", database="postgres", ssl=False
    )
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def make_standby(primary: PostgresServer) -> Standby:
    """Make a standby that every commit waits for from now on."""
    standby = Standby(primary)
    # Every commit waits for it, also after a restart of the primary.
    await asyncio.to_thread(standby.start, settings={"wal_retrieve_retry_interval": "100ms"})
    await ask(primary, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    await ask(primary, "SELECT pg_reload_conf()")
    return standby


async def promote(address: Address, standby: Standby) -> None:
    """Kill the primary and let the standby take its place."""
    address.server.kill()
    await ask(standby, "SELECT pg_promote()")
    address.server = standby
    address.cut()


async def restart_immediately(server: PostgresServer) -> None:
    """What ``pg_ctl restart -m immediate`` does: no checkpoint, so that it recovers from its log."""
    os.kill(server.pid, signal.SIGQUIT)
    await asyncio.to_thread(server.restart)


async def terminate_backends(server: PostgresServer) -> int:
    """End every connection of the application that is there at this moment; return how many."""
    ended: int = await ask(
        server,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
    )
    return ended
