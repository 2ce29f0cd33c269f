"""How soon one tenant's job starts while another tenant has a million jobs waiting.

A worker process runs the jobs of tenant A: plain ones that await for a few milliseconds, as a call to the
world does, or ones in a transaction that write a row. Tenant B enqueues a job now and then, and the delay
from its commit to the start of its handler is measured: first with nothing else to do (quiet), then behind A.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from _common import Measure, arguments, check_equal, databases, note, report
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from svc_infra.cli.context import run_async
from svc_infra.db.schema import create_schema
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs import Handlers, Job, SqlJobQueue, Worker
from svc_infra.logs import configure_logging

WORK_SECONDS = 0.005
PAUSE_SECONDS = 0.03
LOAD = {
    "postgresql": """
        INSERT INTO jobs (id, name, queue, tenant_id, payload, priority, max_attempts, created_at, state,
                          run_at, attempt, rescues)
        SELECT 'a' || lpad(n::text, 12, '0'), 'work', 'default', 'a', '{}', 0, 20, now(), 'available',
               now() - interval '1 hour', 0, 0 FROM generate_series(1, :count) AS n""",
    "sqlite": """
        INSERT INTO jobs (id, name, queue, tenant_id, payload, priority, max_attempts, created_at, state,
                          run_at, attempt, rescues)
        WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
        SELECT 'a' || printf('%012d', n), 'work', 'default', 'a', '{}', 0, 20, '2020-01-01 00:00:00.000000',
               'available', '2020-01-01 00:00:00.000000', 0, 0 FROM numbers""",
}


async def work(url: str, kind: str) -> None:
    """Be the worker: run jobs until standard input ends, and print when each of B's started."""
    configure_logging("error")  # to standard error; standard output is for the measurement
    engine = make_engine(url)
    sessions = make_session_factory(engine)
    handlers, stop = Handlers(sessions), asyncio.Event()

    async def run(job: Job) -> None:
        if job.tenant_id == "b":
            print(job.id, time.time(), flush=True)
        else:
            await asyncio.sleep(WORK_SECONDS)

    async def run_in(job: Job, session: AsyncSession) -> None:
        if job.tenant_id == "b":
            print(job.id, time.time(), flush=True)
        await session.execute(text("INSERT INTO ledger (job_id) VALUES (:id)"), {"id": job.id})

    if kind == "plain":
        handlers.add_plain("work", run)
    else:
        handlers.add("work", run_in)
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    await Worker(SqlJobQueue(sessions), handlers, grace_seconds=1).run(stop)
    await engine.dispose()


@contextmanager
def worker(url: str, kind: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, "--worker", url, kind]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


@dataclass
class Delays:
    p50_ms: float
    p99_ms: float


async def delays(engine: AsyncEngine, process: subprocess.Popen[str], samples: int) -> Delays:
    """Enqueue B's jobs one after the other, and return how long each waited for its start."""
    queue = SqlJobQueue(sessions := make_session_factory(engine))
    rng, waited = random.Random(1), []
    assert process.stdout is not None
    for _ in range(samples + 20):
        async with sessions.begin() as session:
            job = queue.bind(session).enqueue("work", tenant_id="b")
        committed_at = time.time()
        job_id, started_at = (await asyncio.to_thread(process.stdout.readline)).split()
        check_equal("the job that started", job_id, job.id)
        waited.append((float(started_at) - committed_at) * 1000)
        await asyncio.sleep(PAUSE_SECONDS * (0.5 + rng.random()))
    waited = sorted(waited[20:])
    return Delays(statistics.median(waited), waited[len(waited) * 99 // 100 - 1])


async def measure(url: str, database: str, kind: str, waiting: int, samples: int) -> tuple[Delays, Delays]:
    engine = make_engine(url)
    await create_schema(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE ledger (job_id VARCHAR(40) PRIMARY KEY)"))
    with worker(url, kind) as process:
        quiet = await delays(engine, process, samples)
    async with engine.begin() as connection:
        await connection.execute(text(LOAD[database]), {"count": waiting})
    if database == "postgresql":
        # In a transaction of its own: left open, it would keep every dead row for as long as is measured.
        async with engine.begin() as connection:
            await connection.execute(text("ANALYZE jobs"))
    with worker(url, kind) as process:
        behind = await delays(engine, process, samples)
    left = text("SELECT count(*) FROM jobs WHERE tenant_id = 'a' AND state = 'completed'")
    async with engine.connect() as connection:
        done = (await connection.execute(left)).scalar_one()
    check_equal("tenant A was being worked for", 0 < done < waiting, True)
    await engine.dispose()
    return quiet, behind


def main() -> None:
    parser = arguments(__doc__ or "")
    cases = [f"{database}-{kind}" for database in ("postgresql", "sqlite") for kind in ("plain", "job")]
    parser.add_argument("--only", nargs="+", choices=cases, default=cases, help="only these cases")
    options = parser.parse_args()
    waiting = 100_000 if options.quick else 1_000_000
    samples = 200 if options.quick else 500
    measures = []
    with databases() as fresh:
        for case in options.only:
            database, kind = case.split("-")
            note(f"{database}, {kind} handlers, behind {waiting:,} jobs")
            quiet, behind = asyncio.run(measure(fresh(database), database, kind, waiting, samples))
            size = "100k" if options.quick else "1m"
            for name, ours, alone in (
                ("p50", behind.p50_ms, quiet.p50_ms),
                ("p99", behind.p99_ms, quiet.p99_ms),
            ):
                measures.append(
                    Measure(
                        f"start_delay_{name}_behind_{size}_{kind}_{database}",
                        "ms",
                        ours,
                        better="lower",
                        others={"quiet": alone},
                        reference="quiet",
                        target=2.0 if name == "p99" else None,
                        target_on="ratio",
                    )
                )
    report(measures, as_json=options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        # The garbage collector and the event loop are those of worker.py run.
        run_async(work(*sys.argv[2:4]), is_worker=True)
    else:
        main()
