"""The aggregates follow the events within seconds: marked days are recomputed as they come.

It announces thresholds of quotas, and no totals: ``billing.usage_aggregated`` is published when a day has
ended, by the daily run, and for a day that changes after that by the next one. Correctness never depends on
it: invoicing consumes the marks of its period itself.
"""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.billing.aggregation import recompute
from svc_infra.billing.quota_watch import announce_recorded
from svc_infra.billing.usage_days import any_mark, marked_days
from svc_infra.clock import Clock, SystemClock
from svc_infra.db.session import finds_any
from svc_infra.jobs.loop import run_loop

_BATCH = 500


class UsageFollower:
    """Recomputes one batch of marked days in one short transaction at a time; several workers may."""

    def __init__(
        self,
        session_factory: async_sessionmaker[AsyncSession],
        clock: Clock | None = None,
        *,
        poll_seconds: float = 2.0,
    ) -> None:
        self._session_factory = session_factory
        self._clock = clock or SystemClock()
        self._poll_seconds = poll_seconds

    async def follow(self) -> bool:
        """Recompute a batch of marked days; False if that was all of them."""
        if not await finds_any(self._session_factory, any_mark()):
            return False
        async with self._session_factory.begin() as session:
            return await session.run_sync(self._follow) == _BATCH

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until ``stop`` is set."""
        await run_loop("billing.aggregates", self.follow, stop=stop, poll_seconds=self._poll_seconds)

    def _follow(self, session: Session) -> int:
        keys = marked_days(session, limit=_BATCH)
        now = self._clock.now()
        recompute(session, keys, now=now)
        announce_recorded(session, [(key.tenant_id, key.metric, key.day.start) for key in keys], now=now)
        return len(keys)
