"""A worker's health, asked from another thread: alive is about this process alone, ready about its work.

A database that is away makes a worker not ready and leaves it alive: restarting it would mend nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from svc_infra.jobs.loop import wait_any

TICK_SECONDS = 1.0
# A handler may compute for a while; a loop that stands still for longer than this is stuck.
STUCK_SECONDS = 60.0
_CHECK_SECONDS = 5.0


class Health:
    """Whether the worker's event loop turns, its leases are kept, and it takes work.

    ``run`` ticks in the loop that is watched. ``why_not_alive`` and ``why_not_ready`` may be called from any
    thread and return a reason, or None.
    """

    def __init__(
        self,
        check_ready: Callable[[], Awaitable[str | None]],
        *,
        keeps_leases: Callable[[], bool] = lambda: True,
        stuck_seconds: float = STUCK_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._check_ready = check_ready
        self._keeps_leases = keeps_leases
        self._stuck_seconds = stuck_seconds
        self._monotonic = monotonic
        self._ticked_at = monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Tick until ``stop`` is set; from then on the worker is draining, and not ready."""
        self._loop, self._stop = asyncio.get_running_loop(), stop
        while not stop.is_set():
            self._ticked_at = self._monotonic()
            await wait_any(stop, timeout_seconds=TICK_SECONDS)

    def why_not_alive(self) -> str | None:
        """Return why this process cannot go on by itself; None while it can."""
        if self._stop is not None and self._stop.is_set():
            return None  # it ends in order, within its grace period, and its supervisor waits for that
        if self._monotonic() - self._ticked_at > self._stuck_seconds:
            return f"the event loop has not turned for {self._stuck_seconds:g} s"
        if not self._keeps_leases():
            return "the heartbeat's thread has ended"
        return None

    def why_not_ready(self) -> str | None:
        """Return why this worker takes no work now; None while it does."""
        if self._loop is None or self._stop is None:
            return "starting"
        if self._stop.is_set():
            return "draining: it was told to stop"
        answer = asyncio.run_coroutine_threadsafe(self._ready(), self._loop)
        try:
            return answer.result(timeout=_CHECK_SECONDS)
        except TimeoutError:
            answer.cancel()
            return "the event loop is busy"

    async def _ready(self) -> str | None:
        return await self._check_ready()
