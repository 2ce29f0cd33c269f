"""SIGTERM in the middle of work: what can end ends, the rest is given back, nothing waits for a lease."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine
from svc_infra.jobs.job import JobRequest
from svc_infra.jobs.models import JobRow
from svc_infra.jobs.sql import SqlJobQueue
from tests.scenarios.conftest import MakeWorld
from tests.scenarios.crash_worker import DEADLINE_SECONDS, WorkerProcess
from tests.scenarios.world import until

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def worker_command(database_url: str, log: Path, *, grace_seconds: float) -> Iterator[subprocess.Popen[str]]:
    """``worker.py run`` with the application of these tests; killed at the end if it still runs."""
    # The same code as here, and the application of these tests.
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "SVC__WORKER__GRACE_SECONDS": str(grace_seconds), "PYTHONPATH": path}
    command = [sys.executable, str(ROOT / "worker.py"), "run", "--database-url", database_url]
    command += ["--app", "tests.scenarios.stopped_app:app"]
    with log.open("w") as stderr, contextlib.ExitStack() as ending:
        worker = subprocess.Popen(
            command, cwd=log.parent, env=environment, text=True, stdout=subprocess.PIPE, stderr=stderr
        )
        ending.enter_context(worker)  # which waits for it, and closes the pipe
        ending.callback(worker.kill)
        yield worker


async def running(worker: subprocess.Popen[str]) -> str:
    """Wait until a job says that it runs, and return its name."""
    assert worker.stdout is not None
    return (await asyncio.wait_for(asyncio.to_thread(worker.stdout.readline), DEADLINE_SECONDS)).strip()


async def exit_code(worker: subprocess.Popen[str]) -> int:
    return await asyncio.to_thread(worker.wait, DEADLINE_SECONDS)


async def enqueue(engine: AsyncEngine, *requests: JobRequest) -> None:
    async with AsyncSession(engine) as session:
        await SqlJobQueue(async_sessionmaker(engine)).enqueue_many(session, requests)
        await session.commit()


async def jobs(engine: AsyncEngine) -> dict[str, tuple[str, int, int]]:
    """State, attempt and rescues of each of the application's jobs."""
    columns = (JobRow.name, JobRow.state, JobRow.attempt, JobRow.rescues)
    async with AsyncSession(engine) as session:
        rows = await session.execute(select(*columns).where(JobRow.name.like("scenario.%")))
        return {name: (state, attempt, rescues) for name, state, attempt, rescues in rows}


@pytest.fixture
async def migrated(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a database that the worker command accepts."""
    engine = make_engine(empty_database_url, behind_transaction_pooler=True)
    await migrate(engine)
    yield engine
    await engine.dispose()


async def test_sigterm_lets_jobs_end_within_the_grace_and_gives_the_others_back(
    target: str, migrated: AsyncEngine, empty_database_url: str, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    names = ["scenario.ends", "scenario.hangs"]
    if target == "postgres":  # on SQLite the one that hangs in a transaction would keep out all others
        names.append("scenario.writes_and_hangs")
    await enqueue(migrated, *(JobRequest(name, {"pipe": str(pipe)}) for name in names))
    grace_seconds = 2.0
    with worker_command(empty_database_url, tmp_path / "log", grace_seconds=grace_seconds) as worker:
        assert {await running(worker) for _ in names} == set(names)
        worker.send_signal(signal.SIGTERM)
        stopped_at = monotonic()
        pipe.write_bytes(b"end")
        assert await exit_code(worker) == 0
        assert grace_seconds <= monotonic() - stopped_at < grace_seconds + 10
    given_back = ("available", 0, 0)
    assert await jobs(migrated) == {"scenario.ends": ("completed", 1, 0)} | dict.fromkeys(
        names[1:], given_back
    )


@pytest.mark.sqlite_only
async def test_a_second_signal_stops_at_once(
    migrated: AsyncEngine, empty_database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    await enqueue(migrated, JobRequest("scenario.hangs"))
    with worker_command(empty_database_url, log, grace_seconds=3600) as worker:
        await running(worker)
        worker.send_signal(signal.SIGTERM)

        async def is_stopping() -> bool:
            return '"worker.stopping"' in log.read_text(encoding="utf-8")

        await until(is_stopping, what=lambda: f"the worker says only {log.read_text(encoding='utf-8')}")
        worker.send_signal(signal.SIGTERM)
        assert await exit_code(worker) == 1
    assert await jobs(migrated) == {"scenario.hangs": ("running", 1, 0)}, "its lease ends by itself"


async def test_a_worker_stopped_under_load_leaves_nothing_leased_and_another_goes_on(
    database_url: str, make_world: MakeWorld
) -> None:
    world = await make_world(database_url, tenants=10, days=10)
    with WorkerProcess(world.orders()) as first:
        first.go()

        async def is_delivering() -> bool:
            return world.received().verified > 0

        await until(is_delivering, what=lambda: "nothing is delivered")
        first.stop()
    assert await world.count("SELECT count(*) FROM jobs WHERE state = 'running'") == 0
    assert await world.count("SELECT count(*) FROM webhook_deliveries WHERE state = 'sending'") == 0
    with WorkerProcess(world.orders()) as second:
        second.go()
        await world.settle()
    for table in ("jobs", "webhook_deliveries"):
        assert await world.count(f"SELECT count(*) FROM {table} WHERE rescues > 0 OR attempt > 1") == 0
    await world.check()
