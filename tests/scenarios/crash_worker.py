"""A worker in a process of its own, which the test tells where to die or to fall asleep.

It is the product's ``Runtime`` with a sender that may reach this machine. Processes are forked from one that
has imported everything, because importing costs more than all that these tests let them do.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from svc_infra import failpoints
from svc_infra.cli.run import stop_on_signals
from svc_infra.clock import SystemClock
from svc_infra.config import SchedulerSettings, Settings, WebhookSettings, WorkerSettings
from svc_infra.db.session import make_engine
from svc_infra.jobs.maintenance import Maintenance
from svc_infra.logs import configure_logging
from svc_infra.runtime import Runtime
from svc_infra.testing.webhooks import loopback_sender
from svc_infra.webhooks import deliverer

DEADLINE_SECONDS = 30.0
KILLED = -signal.SIGKILL

RESCUE_SECONDS = 0.2
LEASE_SECONDS = 1.0
"""What is left leased by a process that died is free again after this; the healthy hold theirs for longer."""

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["asyncpg", "aiosqlite", "sqlalchemy.dialects.postgresql.asyncpg", __name__]
)


@dataclass(frozen=True)
class Orders:
    """What a worker process is to do. Business time is the wall time plus ``shift``.

    At the ``hit``-th time that it reaches ``failpoint`` it sends itself ``signal``. It runs all that a worker
    runs, or only the named ``parts``.
    """

    database_url: str
    shift: timedelta
    schedules_start_at: datetime
    log: Path
    failpoint: str | None = None
    hit: int = 1
    signal: signal.Signals = signal.SIGKILL
    runs_scheduler: bool = True
    parts: tuple[str, ...] = ()
    concurrency: int = 4
    is_short_leased: bool = False

    def settings(self) -> Settings:
        if self.is_short_leased:
            worker = WorkerSettings(
                lease_seconds=LEASE_SECONDS, poll_seconds=0.1, concurrency=self.concurrency
            )
            times = {"lease_seconds": LEASE_SECONDS, "timeout_seconds": LEASE_SECONDS / 2}
        else:
            worker = WorkerSettings(poll_seconds=0.1, concurrency=self.concurrency)
            times = {}
        retries = (0.0,) + (0.2,) * 20
        return Settings(
            worker=worker,
            scheduler=SchedulerSettings(is_enabled=self.runs_scheduler, poll_seconds=0.1),
            webhooks=WebhookSettings(poll_seconds=0.1, retry_seconds=retries, **times),
        )


@dataclass(frozen=True)
class Report:
    """What a worker that stopped gracefully says it has done."""

    completed: int
    lost: int
    delivered: int
    lost_deliveries: int


class WorkerProcess:
    """The parent's side of a worker; leaving the ``with`` block kills it if it still runs."""

    def __init__(self, orders: Orders) -> None:
        self._line, self._theirs = _processes.Pipe()
        self._process = _processes.Process(target=_main, args=(orders, self._theirs), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()
        assert self._heard() == "ready"
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join(DEADLINE_SECONDS)
        self._line.close()

    def go(self) -> None:
        """Let it begin to work."""
        self._line.send("go")

    def wait_for_sleep(self) -> None:
        """Wait until it is about to stop itself at its failpoint."""
        assert self._heard() == "asleep"

    def signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def exit_code(self) -> int | None:
        """Wait until the process has ended and return how: the negated signal if it was killed."""
        self._process.join(DEADLINE_SECONDS)
        return self._process.exitcode

    def stop(self) -> Report:
        """Stop it gracefully and return what it has done."""
        self.signal(signal.SIGTERM)
        report = self._heard()
        assert self.exit_code() == 0
        assert isinstance(report, Report)
        return report

    def _heard(self) -> Any:
        assert self._line.poll(DEADLINE_SECONDS), "the worker said nothing"
        return self._line.recv()


class _ShiftedClock:
    """The wall clock, moved."""

    def __init__(self, shift: timedelta) -> None:
        self._clock = SystemClock()
        self._shift = shift

    def now(self) -> datetime:
        return self._clock.now() + self._shift


def _main(orders: Orders, line: Connection) -> None:
    """Be the worker."""
    sys.stderr = orders.log.open("a", buffering=1, encoding="utf-8")
    configure_logging()
    deliverer._RESCUE_SECONDS = RESCUE_SECONDS
    failpoints.install(_failpoint(orders, line))
    asyncio.run(_work(orders, line))


async def _work(orders: Orders, line: Connection) -> None:
    settings = orders.settings()
    engine = make_engine(orders.database_url)
    sender = loopback_sender(deadline_seconds=settings.webhooks.timeout_seconds)
    stop = asyncio.Event()
    stop_on_signals(stop)
    clock = _ShiftedClock(orders.shift)
    runtime = Runtime(settings, engine, sender, clock=clock, schedules_start_at=orders.schedules_start_at)
    runtime.worker._maintenance = Maintenance(runtime.queue, clock=clock, rescue_seconds=RESCUE_SECONDS)
    line.send("ready")
    if await asyncio.to_thread(line.recv) == "go":
        threading.Thread(target=_die_with_the_parent, args=(line,), daemon=True).start()
        await _run(runtime, orders.parts, stop)
    await sender.aclose()
    await engine.dispose()
    jobs, deliveries = runtime.worker.stats, runtime.deliverer.stats
    line.send(Report(jobs.completed, jobs.lost, deliveries.delivered, deliveries.lost))


async def _run(runtime: Runtime, parts: tuple[str, ...], stop: asyncio.Event) -> None:
    if not parts:
        await runtime.run(stop)
        return
    async with asyncio.TaskGroup() as group:
        for name in parts:
            group.create_task(getattr(runtime, name).run(stop))


def _failpoint(orders: Orders, line: Connection) -> Any:
    hits = 0

    def reached(name: str) -> None:
        nonlocal hits
        hits += name == orders.failpoint
        if name == orders.failpoint and hits == orders.hit:
            if orders.signal is signal.SIGSTOP:
                line.send("asleep")
            os.kill(os.getpid(), orders.signal)

    return reached


def _die_with_the_parent(line: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        line.recv()
    os._exit(3)
