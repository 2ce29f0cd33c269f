"""The upkeep of webhooks in a worker: advance replays, and prune what is old."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra import failpoints
from svc_infra.clock import Clock, SystemClock
from svc_infra.jobs.loop import run_loop
from svc_infra.webhooks.endpoint_removal import clear_removed
from svc_infra.webhooks.replay import advance_replay
from svc_infra.webhooks.retention import Retention, prune_deliveries, prune_messages, prune_replays

_PRUNE_SECONDS = 60.0

log = structlog.get_logger(__name__)

# A replay is begun by hand and may wait some polls: an idle worker has less to ask.
_POLLS_PER_LOOK = 5


class WebhookUpkeep:
    """Does one batch in one short transaction at a time; any number of workers may do so at once."""

    def __init__(
        self,
        session_factory: async_sessionmaker[AsyncSession],
        clock: Clock | None = None,
        *,
        retention: Retention | None = None,
        poll_seconds: float = 1.0,
        on_queued: Callable[[], None] | None = None,
    ) -> None:
        """``on_queued`` is called after a replay has made deliveries due (``Deliverer.wake``)."""
        self._session_factory = session_factory
        self._clock = clock or SystemClock()
        self._retention = retention or Retention()
        self._poll_seconds = poll_seconds
        self._on_queued = on_queued

    async def advance(self) -> bool:
        """Do one batch of a replay; False if none is due."""
        async with self._session_factory.begin() as session:
            has_advanced = await session.run_sync(
                advance_replay,
                now=self._clock.now(),
                kept=min(self._retention.delivered, self._retention.dead),
            )
            if has_advanced:
                failpoints.reached("before_replay_commit")
        if has_advanced and self._on_queued is not None:
            self._on_queued()
        return has_advanced

    async def prune(self) -> int:
        """Delete all that is too old, and removed endpoints with nothing left; return how many rows."""
        total = 0
        while count := await self._prune_deliveries():
            total += count
        total += await self._clear_removed()
        after: str | None = ""
        while after is not None:
            async with self._session_factory.begin() as session:
                count, after = await session.run_sync(
                    prune_messages, retention=self._retention, now=self._clock.now(), after=after
                )
            total += count
        if total:
            log.info("webhooks.pruned", count=total)
        return total

    async def run(self, stop: asyncio.Event) -> None:
        """Advance replays and prune until ``stop`` is set."""

        async def prune() -> bool:
            await self.prune()
            return False

        async with asyncio.TaskGroup() as loops:
            loops.create_task(
                run_loop(
                    "webhooks.replays",
                    self.advance,
                    stop=stop,
                    poll_seconds=_POLLS_PER_LOOK * self._poll_seconds,
                )
            )
            loops.create_task(run_loop("webhooks.prune", prune, stop=stop, poll_seconds=_PRUNE_SECONDS))

    async def _prune_deliveries(self) -> int:
        async with self._session_factory.begin() as session:
            return await session.run_sync(prune_deliveries, retention=self._retention, now=self._clock.now())

    async def _clear_removed(self) -> int:
        async with self._session_factory.begin() as session:
            now = self._clock.now()
            replays = await session.run_sync(prune_replays, retention=self._retention, now=now)
            return replays + await session.run_sync(clear_removed, now=now)
