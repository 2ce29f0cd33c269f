"""Usage events of requests that come at once, recorded together: one transaction for all that waited.

A request alone is recorded at once. While a tenant's transaction is on its way, further events of that
tenant wait for it and then share the next one, so a commit that takes a millisecond is not paid by each of
them. Every request is answered after the commit of its own event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.usage_intake import (
    Read,
    Transactions,
    UsageIn,
    event_of,
    id_of,
    record_read,
)
from svc_infra.billing.first_use import ready
from svc_infra.billing.usage import RecordedUsage
from svc_infra.billing.usage_limits import UsageLimits
from svc_infra.clock import Clock
from svc_infra.exceptions import SvcInfraError

_MOST_AT_ONCE = 500
_Task: TypeAlias = "asyncio.Task[list[RecordedUsage]]"


@dataclass
class _Together:
    """Events of one tenant that will be committed together."""

    events: list[Read] = field(default_factory=list)


class UsageGatherer:
    """Records events alone or together, as they come; one for each application."""

    def __init__(self, clock: Clock, limits: UsageLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._collecting: dict[str, tuple[_Together, _Task]] = {}
        self._last: dict[str, _Task] = {}

    async def record(self, usage: UsageIn, tenant_id: str, sessions: Transactions) -> str:
        """Record an event in a transaction of its tenant's ``sessions`` and return its id after the commit.

        That is the id of the event that its key was first used for.

        Raises:
            InvalidUsage: it cannot be stored; where its amount or instant is refused, a record is kept of it.
            IdempotencyConflict: its key was used for another payload.
        """
        read = usage, event_of(usage, tenant_id, self._clock.now())
        together, task = self._collecting.get(tenant_id) or self._begin(tenant_id, sessions)
        place = len(together.events)
        together.events.append(read)
        if place + 1 == _MOST_AT_ONCE:
            del self._collecting[tenant_id]
        try:
            # Shielded: a caller who gives up takes no other's event along.
            recorded = (await asyncio.shield(task))[place]
        except SvcInfraError:  # one of them is refused as a whole, and the others are not to be
            if len(together.events) == 1:
                raise
            [recorded] = await self._commit([read], sessions)
        return id_of(recorded)

    def _begin(self, tenant_id: str, sessions: Transactions) -> tuple[_Together, _Task]:
        together = _Together()
        task = asyncio.create_task(self._record(tenant_id, together, sessions, self._last.get(tenant_id)))
        task.add_done_callback(lambda done: self._forget(tenant_id, done))
        self._last[tenant_id] = task
        self._collecting[tenant_id] = together, task
        return together, task

    async def _record(
        self, tenant_id: str, together: _Together, sessions: Transactions, before: _Task | None
    ) -> list[RecordedUsage]:
        if before is not None:
            await asyncio.wait([before])
        collecting, _ = self._collecting.get(tenant_id, (None, None))
        if collecting is together:
            del self._collecting[tenant_id]  # who comes now waits for the next one
        return await self._commit(together.events, sessions)

    def _forget(self, tenant_id: str, done: _Task) -> None:
        if self._last.get(tenant_id) is done:
            del self._last[tenant_id]
        if not done.cancelled():
            done.exception()  # every request that still waits has it

    async def _commit(self, events: Sequence[Read], sessions: Transactions) -> list[RecordedUsage]:
        def write(session: Session) -> list[RecordedUsage]:
            ready(session)
            return record_read(session, events, now=self._clock.now(), limits=self._limits)

        async with sessions.begin() as session:
            return await session.run_sync(write)
