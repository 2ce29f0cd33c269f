"""Simulated time: the real scheduler, worker, relay and sender, with the clock moved from fire to fire."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.clock import FixedClock
from svc_infra.jobs.job import JobState
from svc_infra.jobs.models import JobRow
from svc_infra.runtime import Runtime
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.models import DeliveryRow


class SimulatedTime:
    """A runtime whose business time moves only when everything that is due has been done.

    ``on_fire`` is told each instant at which something fired, after its work is done.
    """

    def __init__(
        self, runtime: Runtime, clock: FixedClock, *, on_fire: Callable[[datetime], None] | None = None
    ) -> None:
        self._runtime = runtime
        self._clock = clock
        self._on_fire = on_fire or (lambda _at: None)

    async def advance_to(self, until: datetime) -> None:
        """Move the clock to ``until``, stopping at every fire and every retry on the way."""
        async with self._runtime.worker.kept():
            await self._runtime.drain()
            while True:
                next_at = await self._next_instant()
                if next_at is None or next_at > until:
                    break
                self._clock.set(max(next_at, self._clock.now()))
                await self._runtime.scheduler.tick()
                await self._runtime.drain()
                self._on_fire(next_at)
            self._clock.set(until)

    async def _next_instant(self) -> datetime | None:
        """The next fire, or an earlier retry of a job or a delivery."""
        async with self._runtime.session_factory() as session:
            retries = [
                await _earliest(session, JobRow, JobState.AVAILABLE),
                await _earliest(session, DeliveryRow, DeliveryState.PENDING),
            ]
        instants = [at for at in (*retries, self._runtime.scheduler.next_fire()) if at is not None]
        return min(instants, default=None)


async def _earliest(
    session: AsyncSession, table: type[JobRow] | type[DeliveryRow], state: str
) -> datetime | None:
    return await session.scalar(select(func.min(table.run_at)).where(table.state == str(state)))
