"""The worker: it claims what is due, runs it with bounded concurrency, and stops without losing anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from operator import attrgetter
from random import Random

import structlog
from sqlalchemy.exc import SQLAlchemyError

from svc_infra.clock import Clock
from svc_infra.db.transient import is_transient
from svc_infra.jobs.claimer import Claimer
from svc_infra.jobs.executor import Executor, session_factory_of
from svc_infra.jobs.handlers import Handlers
from svc_infra.jobs.heartbeat import Heartbeat
from svc_infra.jobs.job import Job
from svc_infra.jobs.lane import Lane, make_lanes
from svc_infra.jobs.maintenance import Maintenance
from svc_infra.jobs.queue import DEFAULT_LEASE_SECONDS, JobQueue
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.jobs.stats import Stats
from svc_infra.jobs.waking import WakeUp

log = structlog.get_logger(__name__)

_POSTGRES_TRANSACTIONS = 4
_SQLITE_TRANSACTIONS = 1
_NAME = attrgetter("name")
# A cancelled job is not retried, so that no policy matters.


class Worker:
    """Runs the jobs of ``handlers`` from ``queue``.

    ``concurrency`` is the number of transactions at once (by default 4, and 1 where the database is SQLite,
    which has one writer). ``lease_seconds`` are database time; with the default a killed worker's jobs run
    again within 45 s. ``is_listening`` is False behind a transaction pooler. ``grace_seconds`` is how long a
    stopping worker lets jobs run on.
    """

    def __init__(
        self,
        queue: JobQueue,
        handlers: Handlers,
        *,
        clock: Clock | None = None,
        queues: Collection[str] | None = None,
        concurrency: int | None = None,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        poll_seconds: float = 1.0,
        grace_seconds: float = 25.0,
        maintenance: Maintenance | None = None,
        executor: Executor | None = None,
        rng: Random | None = None,
        is_listening: bool = True,
    ) -> None:
        self._is_listening = is_listening
        self.stats = executor.stats if executor is not None else Stats()
        self._queue = queue
        self._clock = clock or queue.clock
        self._handlers = handlers
        self._poll_seconds = poll_seconds
        self._grace_seconds = grace_seconds
        self._rng = rng or Random()
        self._executor = executor or Executor(
            queue, handlers, clock=self._clock, stats=self.stats, rng=self._rng
        )
        self._heartbeat = Heartbeat(queue, lease_seconds=lease_seconds, on_cancel=self._cancel)
        self._maintenance = maintenance or Maintenance(queue, clock=self._clock)
        self._lanes = make_lanes(handlers, concurrency or self._default_concurrency())
        self._tasks: dict[asyncio.Task[None], Sequence[Job]] = {}
        self._is_stopping = False
        # Those that were claimed and wait for a slot of their lane.
        self._not_started: set[asyncio.Task[None] | None] = set()
        self._unfinished: list[Job] = []
        self._to_cancel: dict[str, str] = {}
        self._error: BaseException | None = None
        self._claimer = Claimer(
            queue,
            handlers,
            self._lanes,
            clock=self._clock,
            queues=queues,
            lease_seconds=lease_seconds,
            settle=self._settle_unfinished,
            on_claimed=self._start,
        )

    def wake(self) -> None:
        """Look for due jobs now instead of at the next poll; call it in the worker's event loop."""
        self._claimer.wake_for_news()

    @property
    def keeps_leases(self) -> bool:
        """Whether the heartbeat that keeps the leases of jobs in hand is there."""
        return self._heartbeat.is_beating

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then stop gracefully.

        A stopping worker claims nothing more. Jobs that run get ``grace_seconds`` to end; the others, and
        those that did not end, are given back with their attempts. If it is cancelled meanwhile, their leases
        expire.
        """
        self._is_stopping = False
        log.info("worker.started", names=sorted(self._handlers.names))
        async with self._heartbeat, asyncio.TaskGroup() as group:
            if isinstance(self._queue, SqlJobQueue):
                wake_up = WakeUp(self._queue.url, self.wake)
                group.create_task(wake_up.run(stop, is_listening=self._is_listening))
            claiming = group.create_task(
                self._claimer.run(stop, poll_seconds=self._poll_seconds, rng=self._rng)
            )
            group.create_task(self._maintenance.run(stop, heartbeat=self._heartbeat, stats=self.stats))
            await stop.wait()
            await self._end_tasks(claiming)
        log.info("worker.stopped", completed=self.stats.completed)

    def kept(self) -> Heartbeat:
        """Keep one heartbeat over many drains, ``async with worker.kept():``, instead of one for each."""
        return self._heartbeat

    async def drain(self) -> int:
        """Run until nothing is due at the clock's now and return how many attempts ended.

        Raises:
            Exception: the database stayed away.
        """
        ended, self._is_stopping = self.stats.attempts, False
        async with self._heartbeat:
            while True:
                was_idle = not self._tasks
                in_turn = await self._claimer.claim_in_turn()
                found = await self._claimer.claim() or in_turn
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                if was_idle and not found:
                    return self.stats.attempts - ended
                if self._tasks and not (found and self._claimer.has_room()):
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                    await asyncio.sleep(0)

    def _start(self, lane: Lane, jobs: Sequence[Job], in_turn: bool) -> None:
        if self._is_stopping:
            self._unfinished += jobs
            return
        self._heartbeat.hold(jobs)
        lane.started(jobs, in_turn=in_turn)
        since = time.monotonic()

        def ended(task: asyncio.Task[None]) -> None:
            self._ended(task, lane, seconds_in_hand=time.monotonic() - since)

        for unit in self._units(jobs):
            task = asyncio.create_task(self._run(lane, unit))
            self._tasks[task] = unit
            self._not_started.add(task)
            task.add_done_callback(ended)

    def _units(self, jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
        """Group claimed jobs into what is run together: jobs of one batch handler, or one job alone."""
        for name, group in groupby(sorted(jobs, key=_NAME), key=_NAME):
            size, unit = self._handlers[name].batch_size, list(group)
            for start in range(0, len(unit), size):
                yield unit[start : start + size]

    async def _run(self, lane: Lane, unit: Sequence[Job]) -> None:
        await self._executor.run(unit, slot=self._slot(lane, unit[0]))

    @asynccontextmanager
    async def _slot(self, lane: Lane, first: Job) -> AsyncIterator[None]:
        # A limited job holds up others of its key while it waits for its turn here.
        is_first = self._handlers[first.name].is_limited
        await lane.slots.acquire(first.tenant_id, is_first=is_first)
        try:
            self._not_started.discard(asyncio.current_task())
            yield
        finally:
            lane.slots.release(first.tenant_id)

    def _ended(self, task: asyncio.Task[None], lane: Lane, *, seconds_in_hand: float) -> None:
        unit = self._tasks.pop(task)
        self._not_started.discard(task)
        lane.ended(unit, seconds_in_hand=seconds_in_hand)
        self._heartbeat.let_go(unit)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            # Nothing more was written: give them back, which changes nothing for those that were finished.
            self._unfinished += unit
        else:
            self._forget_wishes(unit)
        if error is not None:
            self._error = error
            log.error("worker.jobs_given_back", name=unit[0].name, jobs=len(unit), error=repr(error)[:300])
        if self._unfinished:
            self._claimer.wake()
        self._claimer.ended_some(lane)

    def _cancel(self, reasons: Mapping[str, str]) -> None:
        """End the tasks of jobs that somebody wants cancelled; the others of a batch will run again."""
        for task, unit in list(self._tasks.items()):
            wanted = {job.id: reasons[job.id] for job in unit if job.id in reasons}
            if wanted:
                self._to_cancel |= wanted
                task.cancel()

    async def _settle_unfinished(self) -> None:
        """Write the end of cancelled jobs, and give back the others that did not come to one."""
        unfinished, self._unfinished = self._unfinished, []
        if not unfinished:
            return
        try:
            cancelled = set[str]()
            if self._to_cancel:
                cancelled = await self._executor.cancel(self._to_cancel, unfinished)
            released = await self._queue.release([job for job in unfinished if job.id not in self._to_cancel])
        except BaseException:
            self._unfinished += unfinished
            raise
        self._forget_wishes(unfinished)
        log.info("worker.jobs_released", jobs=len(released), cancelled=len(cancelled))

    def _forget_wishes(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._to_cancel.pop(job.id, None)

    async def _end_tasks(self, claiming: asyncio.Task[None]) -> None:
        """Let jobs that run end within the grace period, and give back the others."""
        self._is_stopping = True
        for task in filter(None, self._not_started):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._grace_seconds)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)
        await self._executor.settle()
        # A claim that was under way when the stop came may have brought jobs, which never start.
        await claiming
        try:
            await self._settle_unfinished()
        except (SQLAlchemyError, OSError) as error:
            if not is_transient(error):
                raise
            # Their leases run out by themselves; there is nothing else that this process could do.
            log.warning("worker.jobs_left", jobs=len(self._unfinished), error=repr(error)[:300])

    def _default_concurrency(self) -> int:
        session_factory = self._handlers.session_factory or session_factory_of(self._queue)
        if session_factory is None:
            return _POSTGRES_TRANSACTIONS
        dialect = session_factory().sync_session.get_bind().dialect.name
        return _SQLITE_TRANSACTIONS if dialect == "sqlite" else _POSTGRES_TRANSACTIONS
