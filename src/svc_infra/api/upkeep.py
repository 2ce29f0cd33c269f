"""The upkeep of the HTTP API's tables in a worker: answers that nobody can ask for again are pruned."""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.api.answers import prune_answers
from svc_infra.clock import Clock, SystemClock
from svc_infra.jobs.loop import run_loop

log = structlog.get_logger(__name__)

_PRUNE_SECONDS = 60.0
_BATCH = 1_000


class ApiUpkeep:
    """Prunes one batch in one short transaction at a time; any number of workers may do so at once."""

    def __init__(self, session_factory: async_sessionmaker[AsyncSession], clock: Clock | None = None) -> None:
        self._session_factory = session_factory
        self._clock = clock or SystemClock()

    async def prune(self) -> bool:
        """Delete a batch of old answers; True if there may be more."""
        async with self._session_factory.begin() as session:
            count = await session.run_sync(prune_answers, now=self._clock.now(), limit=_BATCH)
        if count:
            log.info("api.pruned", answers=count)
        return count >= _BATCH

    async def run(self, stop: asyncio.Event) -> None:
        """Prune every minute until ``stop`` is set."""
        await run_loop("api.prune", self.prune, stop=stop, poll_seconds=_PRUNE_SECONDS)
