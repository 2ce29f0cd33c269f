"""The heartbeat: it extends the leases of the jobs in hand, whatever the event loop is doing.

It runs in a thread with an event loop and connections of its own. A handler that computes for a minute
without awaiting blocks the worker's loop, and must not lose its jobs for that.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType

import structlog

from svc_infra.jobs.job import Job
from svc_infra.jobs.loop import run_loop
from svc_infra.jobs.queue import DEFAULT_LEASE_SECONDS, JobQueue
from svc_infra.jobs.sql import SqlJobQueue

log = structlog.get_logger(__name__)

_NOTABLE_LAG_SECONDS = 1.0


class Heartbeat:
    """Extends the leases of the jobs given to ``hold`` every third of ``lease_seconds``.

    At each beat it also asks which of them somebody wants cancelled, and calls ``on_cancel`` in the worker's
    loop with the reasons by job id.

    Use as an async context manager; entering one that is in use costs nothing. For a queue
    that only this process sees there is nothing to do in a thread: it beats in the loop itself, and ``beat``
    before every rescue.
    """

    def __init__(
        self,
        queue: JobQueue,
        *,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        on_cancel: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        self._queue = queue
        self._on_cancel = on_cancel
        self._lease_seconds = lease_seconds
        self._interval_seconds = lease_seconds / 3
        self._held: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._thread_loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._in_loop: asyncio.Task[None] | None = None
        self._main_loop: asyncio.AbstractEventLoop | None = None
        self._answered_at = 0.0
        self._users = 0

    def hold(self, jobs: Iterable[Job]) -> None:
        """Keep the leases of ``jobs`` from now on."""
        with self._lock:
            self._held.update((job.id, job) for job in jobs)

    def let_go(self, jobs: Iterable[Job]) -> None:
        """Stop extending the leases of ``jobs``."""
        with self._lock:
            for job in jobs:
                # The job may have been claimed again meanwhile, under another lease.
                if self._held.get(job.id) is job:
                    del self._held[job.id]

    @property
    def is_beating(self) -> bool:
        """Whether it is there to extend leases: its thread lives, or it needs none."""
        return self._thread is None or self._thread.is_alive()

    async def beat(self) -> None:
        """Extend all leases now, over the worker's own connections."""
        await self._extend(self._queue)

    async def __aenter__(self) -> Heartbeat:
        self._users += 1
        if self._users > 1:
            return self
        own = self._queue.for_heartbeat()
        main_loop = self._main_loop = asyncio.get_running_loop()
        if own is None:
            self._stop = asyncio.Event()
            self._in_loop = asyncio.create_task(self._run(self._queue, self._stop))
            return self
        is_ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run_in_thread(own, main_loop, is_ready)),
            name="svc_infra.heartbeat",
            daemon=True,
        )
        self._thread.start()
        is_ready.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stop is not None
        self._users -= 1
        if self._users:
            return
        if self._thread is None or self._thread_loop is None:
            self._stop.set()
            if self._in_loop is not None:
                await self._in_loop
            return
        self._thread_loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join)
        self._thread = None

    async def _run_in_thread(
        self, own: JobQueue, main_loop: asyncio.AbstractEventLoop, is_ready: threading.Event
    ) -> None:
        self._thread_loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._answered_at = time.monotonic()
        is_ready.set()
        await self._run(own, self._stop, main_loop)
        if isinstance(own, SqlJobQueue):
            await own.dispose()

    async def _run(
        self, queue: JobQueue, stop: asyncio.Event, watched: asyncio.AbstractEventLoop | None = None
    ) -> None:
        is_first = True

        async def step() -> bool:
            nonlocal is_first
            if is_first:
                # Leases are fresh when the worker starts.
                is_first = False
                return False
            if watched is not None:
                self._watch(watched)
            await self._extend(queue)
            return False

        # The loop's jitter is upwards too, by a quarter: three beats are still tried within a lease and more.
        await run_loop("jobs.heartbeat", step, stop=stop, poll_seconds=self._interval_seconds * 0.8)

    async def _extend(self, queue: JobQueue) -> None:
        with self._lock:
            held = list(self._held.values())
        if held:
            await queue.extend(held, lease_seconds=self._lease_seconds)
            if self._on_cancel is not None and isinstance(queue, SqlJobQueue):
                self._tell(await queue.wishes_to_cancel(held))

    def _tell(self, reasons: Mapping[str, str]) -> None:
        """Pass on, in the worker's loop, which held jobs somebody wants cancelled."""
        loop, on_cancel = self._main_loop, self._on_cancel
        if reasons and loop is not None and on_cancel is not None and not loop.is_closed():
            loop.call_soon_threadsafe(on_cancel, reasons)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Log when the worker's loop has not answered since the last beat."""
        lag_seconds = time.monotonic() - self._answered_at - self._interval_seconds
        if lag_seconds > _NOTABLE_LAG_SECONDS:
            log.warning("jobs.loop_blocked", lag_seconds=round(lag_seconds, 1))
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._answered_at = time.monotonic()
