"""Keeping the tables well: rescuing expired leases, and pruning what finished long ago."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from svc_infra.clock import Clock
from svc_infra.jobs.heartbeat import Heartbeat
from svc_infra.jobs.job import JobState
from svc_infra.jobs.loop import run_loop
from svc_infra.jobs.queue import JobQueue
from svc_infra.jobs.stats import Stats

log = structlog.get_logger(__name__)

RESCUE_SECONDS = 5.0
PRUNE_SECONDS = 60.0
_BATCH = 1_000

# What was done is kept for a look back; what was given up is kept for somebody to deal with.
RETENTION = {
    JobState.COMPLETED: timedelta(days=1),
    JobState.CANCELLED: timedelta(days=7),
    JobState.DISCARDED: timedelta(days=90),
}


class Maintenance:
    """Rescues expired leases every few seconds and prunes finished jobs every minute, in bounded batches.

    Any number of workers may do so at once.
    """

    def __init__(
        self,
        queue: JobQueue,
        *,
        clock: Clock | None = None,
        rescue_seconds: float = RESCUE_SECONDS,
        prune_seconds: float = PRUNE_SECONDS,
        retention: dict[JobState, timedelta] | None = None,
    ) -> None:
        self._queue = queue
        self._clock = clock or queue.clock
        self._rescue_seconds = rescue_seconds
        self._prune_seconds = prune_seconds
        self._retention = RETENTION if retention is None else retention

    async def rescue(self, *, stats: Stats | None = None) -> bool:
        """Return a batch of expired leases; True if there may be more."""
        rescued = await self._queue.rescue(now=self._clock.now(), limit=_BATCH)
        if any(rescued):
            log.warning("jobs.rescued", available=rescued.available, discarded=rescued.discarded)
        if stats is not None:
            stats.rescued += rescued.available
            stats.discarded += rescued.discarded
        return sum(rescued) >= _BATCH

    async def prune(self) -> bool:
        """Delete a batch of old jobs of each state; True if there may be more."""
        has_more = False
        for state, kept in self._retention.items():
            before = self._clock.now() - kept
            pruned = await self._queue.prune(finished_before=before, states=[state], limit=_BATCH)
            has_more = has_more or pruned >= _BATCH
        return has_more

    async def run(
        self, stop: asyncio.Event, *, heartbeat: Heartbeat | None = None, stats: Stats | None = None
    ) -> None:
        """Rescue and prune until ``stop`` is set."""

        async def rescue() -> bool:
            # So that it never rescues what this process holds: the heartbeat may have been kept waiting, by a
            # blocked loop it runs in or by a transaction that keeps other writers out of a SQLite file.
            if heartbeat is not None:
                await heartbeat.beat()
            return await self.rescue(stats=stats)

        async with asyncio.TaskGroup() as group:
            group.create_task(run_loop("jobs.rescue", rescue, stop=stop, poll_seconds=self._rescue_seconds))
            group.create_task(run_loop("jobs.prune", self.prune, stop=stop, poll_seconds=self._prune_seconds))
