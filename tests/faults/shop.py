"""A small shop whose jobs leave a row each, the healing of its database, and what must hold after that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from random import Random
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from svc_infra.clock import FixedClock
from svc_infra.db.session import make_session_factory
from svc_infra.jobs import CronSchedule, Handlers, Job, JobKind, JobRequest, SqlJobQueue
from svc_infra.jobs.executor import Executor
from svc_infra.jobs.limit import Limit
from svc_infra.jobs.outcome import Outcome, Retry
from svc_infra.jobs.schedule_store import SqlScheduleStore
from svc_infra.jobs.scheduler import Schedule, Scheduler

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
LIMITED = JobKind("limited", limit=Limit(1))
TABLES = ("jobs", "effects", "cron_fires", "schedules", "job_cancellations", "admin_acts")
_ROUNDS = 8


class Shop:
    """The queue, handlers and scheduler of one database; ``reset`` before every run."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.sessions = make_session_factory(engine)
        if engine.dialect.name == "sqlite":
            # No machine fails here, and its disk need not be waited for.
            event.listen(engine.sync_engine, "connect", _do_not_sync)
        self.reset()

    def reset(self) -> None:
        self.clock = FixedClock(NOW)
        self.queue = SqlJobQueue(self.sessions, clock=self.clock)
        self.handlers = self.make_handlers()
        self.executor = Executor(
            self.queue, self.handlers, clock=self.clock, rng=Random(1), repeat_delays_seconds=(0, 0)
        )
        hourly = Schedule("hourly", CronSchedule("0 * * * *"), "tick")
        self.scheduler = Scheduler(SqlScheduleStore(self.sessions), [hourly], clock=self.clock)
        self.accepted: set[str] = set()
        """The ids of jobs whose enqueuing transaction has said that it is committed."""
        self.together: list[set[str]] = []
        """Ids of which all are there or none."""
        self.cancelled: set[str] = set()
        """The ids of jobs whose cancellation has said that it is committed, before they could end."""
        self.pruned: set[str] = set()
        self.is_scheduling = False

    async def make_tables(self) -> None:
        async with self.sessions.begin() as session:
            # No key: an effect that happens twice shall be seen and not refused.
            await session.execute(text("CREATE TABLE effects (job_id VARCHAR(40))"))

    def make_handlers(self) -> Handlers:
        handlers = Handlers(self.sessions, clock=self.clock, rng=Random(1))
        for name in ("single", "limited", "tick", "waiting"):
            handlers.add(name, self.run_one)
        handlers.add_batch("batch", self.run_batch)
        handlers.add_plain("plain", self.run_plain)
        return handlers

    async def run_one(self, job: Job, session: AsyncSession) -> Outcome | None:
        await self.write(session, [job])
        return None

    async def run_batch(self, jobs: Sequence[Job], session: AsyncSession) -> dict[str, Outcome]:
        done = [job for job in jobs if not (job.payload.get("retries") and job.attempt == 1)]
        await self.write(session, done)
        return {job.id: Retry() for job in jobs if job not in done}

    async def run_plain(self, job: Job) -> None:
        async with self.sessions.begin() as session:
            await self.write(session, [job])

    async def write(self, session: AsyncSession, jobs: Iterable[Job]) -> None:
        rows = [{"id": job.id} for job in jobs]
        if rows:
            await session.execute(text("INSERT INTO effects VALUES (:id)"), rows)

    async def enqueue(self, *requests: JobRequest) -> list[str]:
        async with self.sessions.begin() as session:
            ids = await self.queue.enqueue_many(session, requests)
        self.accepted.update(ids)
        return ids

    async def run(self, jobs: Iterable[Job]) -> None:
        for _, unit in groupby(sorted(jobs, key=lambda job: job.name), key=lambda job: job.name):
            await self.executor.run(list(unit))

    async def heal(self) -> None:
        """Let time pass until everything that can end has ended: leases expire, and others do the work."""
        if self.is_scheduling:
            await self.scheduler.tick()
        for _ in range(_ROUNDS):
            async with self.sessions.begin() as session:
                await session.execute(
                    text("UPDATE jobs SET lease_until = created_at WHERE state = 'running'")
                )
                open_states = "SELECT DISTINCT state FROM jobs WHERE state IN ('available', 'running')"
                left = set((await session.execute(text(open_states))).scalars())
            if not left:
                return
            if "running" in left:
                await self.queue.rescue()
            while jobs := await self.queue.claim(50):
                await self.run(jobs)
                if not any(job.rescues for job in jobs):
                    break
            self.clock.advance(timedelta(days=1))

    async def violations(self) -> list[str]:
        """Return what does not hold, in short sentences, and empty the tables for the next run."""
        async with self.sessions.begin() as session:
            rows = (
                await session.execute(text("SELECT id, name, state, slot, attempt, max_attempts FROM jobs"))
            ).all()
            effects = Counter((await session.execute(text("SELECT job_id FROM effects"))).scalars())
            fires = (await session.execute(text("SELECT job_id FROM cron_fires"))).scalars().all()
            idle = 0
            if self.engine.dialect.name == "postgresql":
                stuck = (
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'"
                )
                idle = (await session.execute(text(stuck))).scalar_one()
            for table in TABLES:
                await session.execute(text(f"DELETE FROM {table}"))
        found = [*self._of_jobs(rows, effects), *self._of_fires(rows, fires)]
        if idle:
            found.append(f"{idle} connections idle in a transaction")
        if checked_out := self.engine.pool.checkedout():  # type: ignore[attr-defined]  # a queue pool
            found.append(f"{checked_out} connections leaked")
        return found

    def _of_jobs(self, rows: Sequence[Any], effects: Counter[str]) -> Iterator[str]:
        ids = {row.id for row in rows}
        if lost := self.accepted - ids - self.pruned:
            yield f"{len(lost)} accepted jobs are gone"
        for set_ in self.together:
            if 0 < len(set_ & ids) < len(set_):
                yield f"{len(set_ & ids)} of {len(set_)} jobs of one transaction are there"
        for row in rows:
            if row.state in ("available", "running"):
                yield f"a {row.name} job is {row.state} in the end"
            if row.slot is not None:
                yield f"a {row.name} job holds a slot in the end"
            if row.id in self.cancelled and row.state != "cancelled":
                yield f"a cancelled {row.name} job is {row.state}"
            if row.attempt > row.max_attempts:
                yield f"a {row.name} job had {row.attempt} attempts"
            expected = 1 if row.state == "completed" else 0
            happened = effects[row.id]
            # A plain job is run at least once, which is what it says.
            if happened != expected and not (row.name == "plain" and happened > expected):
                yield f"the effect of a {row.state} {row.name} job happened {happened} times"

    def _of_fires(self, rows: Sequence[Any], fires: Sequence[str | None]) -> Iterator[str]:
        ticks = {row.id for row in rows if row.name == "tick"}
        if len(fires) != len(set(fires)) or set(fires) != ticks:
            yield f"{len(fires)} fires have {len(ticks)} jobs"


def _do_not_sync(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = OFF")
    cursor.close()
