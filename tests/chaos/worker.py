"""A worker process of the chaos runs: ``python -m tests.chaos.worker URL LEASE_SECONDS STARTS_FILE``.

Each job leaves a row in ``effects``, in the transaction that completes it. When an attempt starts it says so
in a file, which no rollback takes back.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from random import Random

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.cli.run import stop_on_signals
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs import Handlers, Job, RetryPolicy, SqlJobQueue, Worker
from svc_infra.jobs.maintenance import Maintenance
from svc_infra.logs import configure_logging

EFFECT = text("INSERT INTO effects (job_id, attempt) VALUES (:id, :attempt)")
SLOW_SECONDS = 0.5
POLICY = RetryPolicy(max_attempts=1_000, base_seconds=0.1, cap_seconds=1)


async def main(url: str, lease_seconds: float, starts: int) -> None:
    """Work until a signal says to stop."""
    configure_logging()
    engine = make_engine(url, lock_timeout_seconds=5)
    sessions = make_session_factory(engine)
    queue, handlers, rng = SqlJobQueue(sessions), Handlers(sessions), Random()

    def note(jobs: Sequence[Job]) -> None:
        lines = "".join(
            f"{job.id} {job.attempt} {job.rescues} {time.time():.3f} {os.getpid()}\n" for job in jobs
        )
        os.write(starts, lines.encode())

    @handlers.job("chaos.one", policy=POLICY)
    async def one(job: Job, session: AsyncSession) -> None:
        note([job])
        await session.execute(EFFECT, {"id": job.id, "attempt": job.attempt})
        await asyncio.sleep(SLOW_SECONDS if rng.random() < 0.05 else 0.005)

    @handlers.batch("chaos.many", batch_size=20, policy=POLICY)
    async def many(jobs: Sequence[Job], session: AsyncSession) -> None:
        note(jobs)
        await session.execute(EFFECT, [{"id": job.id, "attempt": job.attempt} for job in jobs])
        await asyncio.sleep(SLOW_SECONDS if rng.random() < 0.1 else 0.005)

    stop = asyncio.Event()
    stop_on_signals(stop)
    # With a short lease everything is quicker; with the usual one everything is as it comes.
    quick = {} if lease_seconds >= 30 else {"rescue_seconds": lease_seconds / 5}
    worker = Worker(
        queue,
        handlers,
        lease_seconds=lease_seconds,
        poll_seconds=min(1.0, lease_seconds / 5),
        maintenance=Maintenance(queue, **quick),
        grace_seconds=10,
    )
    await worker.run(stop)
    await engine.dispose()


if __name__ == "__main__":
    file = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), file))
