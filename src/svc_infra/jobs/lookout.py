"""The lookout: one question for all loops of a process, whether there is anything for them to do.

What was committed elsewhere mostly comes with a notice, and what is due at a later time without one. Each
loop looks for itself, and alone that is correct; where a lookout looks for all of them, they need to do so
rarely, and an idle process asks one thing a second instead of five.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.clock import Clock
from svc_infra.db.session import by_statements
from svc_infra.jobs.loop import run_loop

RARELY_SECONDS = 5.0
"""How often a loop that a lookout wakes need look for itself."""


class Lookout:
    """Looks every ``poll_seconds`` and wakes those whose query found a row."""

    def __init__(
        self, session_factory: Callable[[], AsyncSession], clock: Clock, *, poll_seconds: float
    ) -> None:
        self._session_factory = session_factory
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._watched: list[tuple[Select[Any], Callable[[], None]]] = []
        self._statement: Select[Any] | None = None

    def watch(self, query: Select[Any], wake: Callable[[], None]) -> None:
        """Call ``wake`` whenever ``query``, of one column and perhaps the parameter ``now``, finds a row."""
        self._watched.append((query, wake))
        found = [each.limit(1).scalar_subquery() for each, _ in self._watched]
        self._statement = select(*found)

    async def look(self) -> None:
        """Look once, by one statement."""
        statement, now = self._statement, {"now": self._clock.now()}
        if statement is None:
            return
        found = await by_statements(
            self._session_factory, lambda session: session.execute(statement, now).one()
        )
        for (_, wake), one in zip(self._watched, found, strict=True):
            if one is not None:
                wake()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until ``stop`` is set."""

        async def step() -> bool:
            await self.look()
            return False

        await run_loop("lookout", step, stop=stop, poll_seconds=self._poll_seconds)
