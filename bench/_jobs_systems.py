"""The queues that ``bench/jobs.py`` compares, and how one of them is made to enqueue and to work."""

from __future__ import annotations

import asyncio
import json
import mmap
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import Any

import asyncpg
from _common import note
from _jobs_peer import SLOT_BYTES, postgres_url
from _redis import ask

_HERE = Path(__file__).parent
_PEER_PYTHON = _HERE.parent / ".bench-venv" / "bin" / "python"
_OURS_LEFT = "SELECT count(*) FROM jobs WHERE state IN ('available', 'running')"


@dataclass(frozen=True)
class System:
    """One queue in one way of using it. ``left`` counts the unfinished jobs: SQL, or Redis commands."""

    name: str
    script: str
    left: str | Sequence[str]
    package: str | None = None
    bare_script: str | None = None
    options: tuple[str, ...] = ()
    is_redis: bool = False

    @property
    def python(self) -> str:
        return sys.executable if self.package is None else str(_PEER_PYTHON)

    @property
    def is_runnable(self) -> bool:
        return Path(self.python).exists() and (self.bare_script is None or _PEER_PYTHON.exists())

    def version(self) -> str | None:
        """The version of the package, or None where it is not installed."""
        if self.package is None or not _PEER_PYTHON.exists():
            return None
        code = f"from importlib.metadata import version; print(version('{self.package}'))"
        said = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=False)
        return said.stdout.strip() or None

    def command(self, action: str, url: str, *options: str) -> list[str]:
        if action == "work" and self.bare_script is not None:
            return [str(_PEER_PYTHON), str(_HERE / self.bare_script), action, url, *self.options, *options]
        return [self.python, str(_HERE / self.script), action, url, *self.options, *options]


def ours(name: str, handler: str, *, has_ledger: bool = False, bare_script: str | None = None) -> System:
    options = ("--handler", handler, *(["--has-ledger"] if has_ledger else []))
    return System(name, "_jobs_ours.py", _OURS_LEFT, bare_script=bare_script, options=options)


PEERS = (
    System("pgqueuer", "_jobs_pgqueuer.py", "SELECT count(*) FROM pgqueuer", "pgqueuer"),
    System(
        "procrastinate",
        "_jobs_procrastinate.py",
        "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')",
        "procrastinate",
    ),
    System(
        "saq", "_jobs_saq.py", "SELECT count(*) FROM saq_jobs WHERE status IN ('queued', 'active')", "saq"
    ),
    System(
        "awa",
        "_jobs_awa.py",
        "SELECT count(*) FROM awa.jobs WHERE state NOT IN ('completed', 'failed', 'cancelled')",
        "awa-pg",
    ),
    System("arq", "_jobs_arq.py", ("ZCARD arq:queue",), "arq", is_redis=True),
    System("dramatiq", "_jobs_dramatiq.py", ("HLEN dramatiq:default.msgs",), "dramatiq", is_redis=True),
)


class Failed(Exception):
    """A queue did not do what it was asked for; the message has its words."""


def call(system: System, action: str, url: str, *options: str) -> Any:
    """Run one action to its end and return what it said."""
    done = subprocess.run(
        system.command(action, url, *options), capture_output=True, text=True, check=False, cwd=_HERE
    )
    if done.returncode != 0:
        raise Failed(f"{system.name} {action} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None


def left(system: System, url: str) -> int:
    """Count the unfinished jobs in the database."""
    if system.is_redis:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        return sum(ask(port, *command.split()) for command in system.left)
    assert isinstance(system.left, str)
    return int(query(url, system.left))


def query(url: str, sql: str) -> Any:
    """Return the one value that the statement answers with."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.split("///")[1], timeout=60) as connection:
            return connection.execute(sql).fetchone()[0]

    async def ask_postgres() -> Any:
        connection = await asyncpg.connect(postgres_url(url))
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(ask_postgres())


def execute(url: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""

    async def run() -> None:
        connection = await asyncpg.connect(postgres_url(url))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


class Workers:
    """Some processes that work on one database; they start at once and stop when told."""

    def __init__(self, system: System, url: str, processes: int) -> None:
        self._system = system
        self._errors = TemporaryFile("w+")
        self._file = NamedTemporaryFile()
        self._file.truncate(SLOT_BYTES * processes)
        self._memory = mmap.mmap(self._file.fileno(), 0)
        self._processes = [self._start(system, url, slot) for slot in range(processes)]
        for process in self._processes:
            if process.stdout.readline() != "ready\n":
                raise Failed(f"{system.name} did not start:\n{self._said()}")

    def _start(self, system: System, url: str, slot: int) -> Any:
        command = system.command("work", url, "--counts", self._file.name, "--slot", str(slot))
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, cwd=_HERE)

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-3000:]

    def _say(self) -> None:
        for process in self._processes:
            process.stdin.write("\n")
            process.stdin.flush()

    def arrived(self) -> int:
        """How many jobs have been started."""
        return sum(struct.unpack(f"{len(self._processes)}q", self._memory))

    def drain(self, url: str, jobs: int, *, longest_seconds: float) -> float:
        """Work until all are finished in the database, or for so long; return the finished ones a second."""
        self._say()
        started = time.perf_counter()
        while self.arrived() < jobs and time.perf_counter() - started < longest_seconds:
            time.sleep(0.001)
            self._check()
        while (unfinished := left(self._system, url)) and time.perf_counter() - started < longest_seconds:
            time.sleep(0.002)
        rate = (jobs - unfinished) / (time.perf_counter() - started)
        self.stop()
        return rate

    def begin(self) -> None:
        """Start working, for as long as it takes until ``stop``."""
        self._say()

    def _check(self) -> None:
        for process in self._processes:
            if process.poll() is not None:
                raise Failed(f"{self._system.name} ended early:\n{self._said()}")

    def stop(self) -> list[float]:
        """Stop, and return the latencies of all jobs that carried their instant."""
        self._say()
        samples: list[float] = []
        for process in self._processes:
            samples += json.loads(process.stdout.readline())["samples_ms"]
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                note(f"{self._system.name} did not stop and was killed")
                process.kill()
                process.wait()
        return samples
