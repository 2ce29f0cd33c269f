"""Chaos: workers are killed, paused and stopped, and PostgreSQL restarted and replaced, while jobs run.

``make chaos`` runs it for minutes: ``python -m tests.chaos.run --minutes 4``. The short form is a test.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from svc_infra.db.schema import create_schema
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs import JobRequest, SqlJobQueue
from svc_infra.testing import PostgresServer
from tests.chaos.report import Report, worst_recovery
from tests.chaos.servers import (
    Address,
    can_replicate,
    make_standby,
    promote,
    restart_immediately,
    terminate_backends,
)

ROOT = Path(__file__).resolve().parents[2]
_JOBS_AT_ONCE = 10
_BURST = 100


@dataclass(frozen=True)
class Plan:
    """How long, with how many workers, and how often something happens."""

    seconds: float
    lease_seconds: float = 30.0
    workers: int = 3
    pause_seconds: float = 1.0
    settle_seconds: float = 120.0
    seed: int = 0


class Chaos:
    """One run."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.rng = Random(plan.seed)
        self.report = Report()
        self.server = PostgresServer()
        self.address = Address(self.server)
        self.workers: list[asyncio.subprocess.Process] = []
        self.logs: dict[int, Path] = {}
        self.paused: dict[int, float] = {}
        self.ever_paused: set[int] = set()
        self.killed_at: dict[int, float] = {}
        self.accepted: set[str] = set()
        self.started = 0

    async def run(self) -> Report:
        await asyncio.to_thread(self.server.start)
        standby = await make_standby(self.server) if can_replicate() else None
        await self.address.open()
        self.engine = make_engine(self.address.url, behind_transaction_pooler=True)
        self.sessions = make_session_factory(self.engine)
        try:
            await create_schema(self.engine)
            async with self.sessions.begin() as session:
                await session.execute(text("CREATE TABLE effects (job_id varchar(40), attempt int)"))
            for _ in range(self.plan.workers):
                await self._start()
            stop = asyncio.Event()
            producing = asyncio.create_task(self._produce(stop))
            await self._act(self.plan.seconds / 2)
            if standby is not None:
                await promote(self.address, standby)
                self.report.acts["promotion"] += 1
            await self._act(self.plan.seconds / 2)
            stop.set()
            await producing
            await self._settle()
        finally:
            for worker in self.workers:
                if worker.returncode is None:
                    worker.kill()
                    await worker.wait()
            await self.engine.dispose()
            await self.address.close()
            for server in (self.server, standby):
                if server is not None:
                    await asyncio.to_thread(server.stop)
        return self.report

    async def _start(self) -> None:
        self.started += 1
        path = self.folder / f"worker-{self.started}.log"
        log = path.open("wb")
        command = ["-m", "tests.chaos.worker", self.address.url, str(self.plan.lease_seconds)]
        worker = await asyncio.create_subprocess_exec(
            sys.executable, *command, str(self.folder / "starts"), cwd=ROOT, stdout=log, stderr=log
        )
        log.close()
        self.workers.append(worker)
        self.logs[worker.pid] = path

    async def _produce(self, stop: asyncio.Event) -> None:
        queue = SqlJobQueue(self.sessions)
        while not stop.is_set():
            requests = [JobRequest("chaos.many" if n % 2 else "chaos.one") for n in range(_JOBS_AT_ONCE)]
            await self._enqueue(queue, requests)
            await asyncio.sleep(0.2)

    async def _enqueue(self, queue: SqlJobQueue, requests: list[JobRequest]) -> None:
        try:
            async with self.sessions() as session:
                ids = await queue.enqueue_many(session, requests)
                await session.commit()
        except (DBAPIError, OSError):  # whether they are there nobody knows
            return
        self.accepted.update(ids)

    async def _act(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        acts = [self._kill, self._kill, self._pause, self._stop, self._terminate, self._fast, self._immediate]
        is_first = True
        while is_first or time.monotonic() < until:
            self.rng.shuffle(acts)
            for act in acts:
                # Each of them at least once, however slow the machine is.
                if not is_first and time.monotonic() >= until:
                    break
                await act()
                await self._wake()
                await asyncio.sleep(self.plan.pause_seconds * (0.5 + self.rng.random()))
            is_first = False

    async def _victim(self) -> asyncio.subprocess.Process:
        """Choose a worker that is at work."""
        while True:
            awake = [worker for worker in self.workers if worker.pid not in self.paused]
            at_work = [worker for worker in awake if self._has_started(worker)]
            if at_work:
                return self.rng.choice(at_work)
            await asyncio.sleep(0.05)

    def _has_started(self, worker: asyncio.subprocess.Process) -> bool:
        return b"worker.started" in self.logs[worker.pid].read_bytes()

    async def _replace(self, worker: asyncio.subprocess.Process) -> int:
        code = await worker.wait()
        self.workers.remove(worker)
        self.paused.pop(worker.pid, None)
        await self._start()
        return code

    async def _fill_hands(self) -> None:
        """Enqueue so many that everybody has some in hand."""
        await self._enqueue(SqlJobQueue(self.sessions), [JobRequest("chaos.one")] * _BURST)
        give_up_at = time.monotonic() + 5
        while await self._count("jobs WHERE state = 'running'") < _BURST / 2:
            if time.monotonic() > give_up_at:
                break
            await asyncio.sleep(0.01)

    async def _kill(self) -> None:
        worker = await self._victim()
        await self._fill_hands()
        worker.kill()
        self.killed_at[worker.pid] = time.time()
        await self._replace(worker)
        self.report.acts["kill -9 of a worker"] += 1

    async def _pause(self) -> None:
        # Two are left: one to be killed, and one that is awake and takes over.
        if len(self.paused) < len(self.workers) - 2:
            worker = await self._victim()
            await self._fill_hands()
            worker.send_signal(signal.SIGSTOP)
            self.ever_paused.add(worker.pid)
            self.paused[worker.pid] = time.monotonic() + 2 * self.plan.lease_seconds + 1
            self.report.acts["pause of two leases"] += 1

    async def _wake(self, *, all_of_them: bool = False) -> None:
        for worker in self.workers:
            if all_of_them or time.monotonic() >= self.paused.get(worker.pid, float("inf")):
                self.paused.pop(worker.pid, None)
                worker.send_signal(signal.SIGCONT)

    async def _stop(self) -> None:
        worker = await self._victim()
        worker.terminate()
        if code := await self._replace(worker):
            self.report.bad_exits.append(code)
        self.report.acts["stop of a worker"] += 1

    async def _terminate(self) -> None:
        await terminate_backends(self.address.server)
        self.report.acts["storm of pg_terminate_backend"] += 1

    async def _fast(self) -> None:
        await asyncio.to_thread(self.address.server.restart)
        self.report.acts["fast restart"] += 1

    async def _immediate(self) -> None:
        await restart_immediately(self.address.server)
        self.report.acts["immediate restart"] += 1

    async def _settle(self) -> None:
        """Leave everybody alone until nothing is open, stop the workers and count."""
        while self.paused:
            await self._wake()
            await asyncio.sleep(0.1)
        give_up_at = time.monotonic() + self.plan.settle_seconds
        while await self._count("jobs WHERE state IN ('available', 'running')"):
            assert time.monotonic() < give_up_at, f"jobs are open in the end; the logs are in {self.folder}"
            await asyncio.sleep(0.2)
        for worker in self.workers:
            while not self._has_started(worker):  # noqa: ASYNC110  # another process says so in its log
                await asyncio.sleep(0.05)
            worker.terminate()
        self.report.bad_exits += [code for worker in self.workers if (code := await worker.wait())]
        await self._check()

    async def _check(self) -> None:
        report = self.report
        async with self.sessions() as session:
            states = {row.id: row.state for row in await session.execute(text("SELECT id, state FROM jobs"))}
        report.accepted = len(self.accepted)
        report.lost = len(self.accepted - states.keys())
        terminal = {"completed", "discarded", "cancelled"}
        report.terminal = sum(states.get(job_id) in terminal for job_id in self.accepted)
        report.rescued = await self._count("jobs WHERE rescues > 0")
        twice = "(SELECT job_id FROM effects GROUP BY job_id HAVING count(*) > 1) AS twice"
        report.effects_twice = await self._count(twice)
        report.effects_missing = await self._count(
            "jobs WHERE state = 'completed' AND NOT EXISTS (SELECT 1 FROM effects WHERE job_id = jobs.id)"
        )
        # An effect of an attempt that was not the last one is a write of somebody who had lost the lease.
        report.stale_accepted = await self._count(
            "effects JOIN jobs ON jobs.id = effects.job_id"
            " WHERE effects.attempt <> jobs.attempt OR jobs.state <> 'completed'"
        )
        report.stale_offered = sum(
            json.loads(line)["jobs"]
            for log in self.folder.glob("worker-*.log")
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
            if '"jobs.lease_lost"' in line and line.endswith("}")
        )
        report.worst_recovery_seconds = worst_recovery(
            self.folder / "starts",
            {pid: at for pid, at in self.killed_at.items() if pid not in self.ever_paused},
        )

    async def _count(self, what: str) -> int:
        try:
            async with self.sessions() as session:
                return int((await session.execute(text(f"SELECT count(*) FROM {what}"))).scalar_one())
        except (DBAPIError, OSError):  # it was restarted a moment ago
            await asyncio.sleep(0.5)
            return await self._count(what)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--lease-seconds", type=float, default=30.0)
    parser.add_argument("--pause-seconds", type=float, default=1.0, help="between two acts, on average")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    plan = Plan(
        options.minutes * 60,
        lease_seconds=options.lease_seconds,
        workers=options.workers,
        pause_seconds=options.pause_seconds,
        seed=options.seed,
    )
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    if not can_replicate():
        print("NOT DONE: no promotion, because the server binaries have no pg_basebackup")
    report = asyncio.run(Chaos(plan, folder).run())
    print("\n".join(report.lines()))
    faults = report.faults()
    if not report.stale_offered:
        faults.append("nobody tried to write without a lease, so that nothing was shown")
    print("\n".join(f"WRONG: {fault}" for fault in faults) or "everything holds")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
