"""The worker behind a real PgBouncer in transaction mode: each transaction may be on another connection.

Needs the program pgbouncer; says so when it is missing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from svc_infra.clock import SystemClock
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs import CronSchedule, Handlers, Job, JobRequest, JobState, SqlJobQueue, Worker
from svc_infra.jobs.maintenance import Maintenance
from svc_infra.jobs.schedule_store import SqlScheduleStore
from svc_infra.jobs.scheduler import Schedule, Scheduler
from tests.contract.queue_contract import EXPIRED, enqueue, state_of

pytestmark = pytest.mark.postgres_only

# Fewer than there are clients, so that these change connections all the time.
_SERVER_CONNECTIONS = 2
_START_SECONDS = 20.0
_NOBODY = 65534
_SETTINGS = """[databases]
{server.database} = host=127.0.0.1 port={server.port} user={server.username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
"""


@pytest.fixture
def pooled_url(database_url: str) -> Iterator[str]:
    """The URL of the database through PgBouncer."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("NOT RUN BEHIND PGBOUNCER: the program is missing; apt-get install pgbouncer")
    server = make_url(database_url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # It refuses to run as root, and a test's own folder is its user's alone.
    nobody: dict[str, Any] = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
    with TemporaryDirectory(prefix="svc_infra_pgbouncer_") as folder:
        settings = Path(folder) / "pgbouncer.ini"
        settings.write_text(_SETTINGS.format(server=server, port=port, connections=_SERVER_CONNECTIONS))
        if os.geteuid() == 0:
            for path in (folder, settings):
                os.chown(path, _NOBODY, _NOBODY)
        with subprocess.Popen(
            [program, "-q", str(settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **(nobody if os.geteuid() == 0 else {}),
        ) as process:
            try:
                _wait_until_it_answers(port, process)
                yield server.set(port=port).render_as_string(hide_password=False)
            finally:
                process.terminate()
                process.communicate()


def _wait_until_it_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < give_up_at:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        # A process of another make says nothing when it is ready: nothing can be waited for but time.
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"pgbouncer did not start: {process.communicate()[0].decode()}")


@pytest.fixture
async def pooled(pooled_url: str) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(pooled_url, behind_transaction_pooler=True)
    yield engine
    await engine.dispose()


async def test_a_worker_runs_beats_rescues_and_schedules_behind_a_transaction_pooler(
    pooled: AsyncEngine,
) -> None:
    sessions = make_session_factory(pooled)
    queue, handlers = SqlJobQueue(sessions), Handlers(sessions)
    stop, hears_of_it, ran = asyncio.Event(), asyncio.Event(), []
    lease_seconds = 2.0

    @handlers.job("one")
    async def one(job: Job, session: AsyncSession) -> None:
        # Three statements in turn: each must be the one that was prepared.
        assert await session.scalar(text("SELECT CAST(:n AS INTEGER) + 1"), {"n": 1}) == 2
        assert await session.scalar(text("SELECT CAST(:n AS TEXT) || 'x'"), {"n": "a"}) == "ax"
        queue.bind(session).enqueue("plain")

    @handlers.batch("batch", batch_size=10)
    async def batch(jobs: Sequence[Job], session: AsyncSession) -> None:
        ran.extend(job.name for job in jobs)

    @handlers.plain("plain")
    async def plain(job: Job) -> None:
        ran.append(job.name)

    @handlers.plain("slow")
    async def slow(job: Job) -> None:
        await asyncio.sleep(1.4 * lease_seconds)
        assert await queue.rescue() == (0, 0), "its heartbeat keeps the lease, over a connection of its own"
        hears_of_it.set()

    @handlers.plain("cron")
    async def cron(job: Job) -> None:
        ran.append(job.name)

    lost = await enqueue(queue, sessions, "plain")
    await queue.claim(1, lease_seconds=EXPIRED)
    async with sessions.begin() as session:
        await queue.enqueue_many(session, [JobRequest(name) for name in ["one", "batch"] * 20 + ["slow"]])
    scheduler = Scheduler(
        SqlScheduleStore(sessions),
        [Schedule("s", CronSchedule("* * * * *"), "cron")],
        start_at=SystemClock().now() - timedelta(minutes=2),
    )
    maintenance = Maintenance(queue, rescue_seconds=0.1)
    worker = Worker(
        queue,
        handlers,
        concurrency=4,
        lease_seconds=lease_seconds,
        poll_seconds=0.05,
        maintenance=maintenance,
        is_listening=False,
    )
    running = [asyncio.create_task(worker.run(stop)), asyncio.create_task(scheduler.run(stop))]
    await asyncio.wait_for(hears_of_it.wait(), 60)
    stop.set()
    await asyncio.gather(*running)
    await Worker(queue, handlers).drain()
    assert (ran.count("batch"), ran.count("plain")) == (20, 21)
    assert ran.count("cron") in (2, 3)
    assert await state_of(queue, lost) is JobState.COMPLETED


async def test_two_processes_with_equal_statement_names_share_a_connection(pooled_url: str) -> None:
    engines = [make_engine(pooled_url, behind_transaction_pooler=True) for _ in range(6)]

    async def ask(engine: AsyncEngine, number: int) -> None:
        for _ in range(5):
            async with engine.begin() as connection:
                found = await connection.scalar(text(f"SELECT {number} + CAST(:n AS INTEGER)"), {"n": 1})
                assert found == number + 1

    await asyncio.gather(*(ask(engine, number) for number, engine in enumerate(engines)))
    async with engines[0].begin() as connection:
        left = await connection.scalar(text("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''"))
    assert left == 0, "what stays on a shared connection is in the way of whoever names it so, too"
    for engine in engines:
        await engine.dispose()
