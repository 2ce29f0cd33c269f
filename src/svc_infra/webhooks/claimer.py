"""The claimer: leases due deliveries for a deliverer, in transactions of its own or in a relay's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra import failpoints
from svc_infra.db.session import finds_any
from svc_infra.webhooks.claimed_delivery import ClaimedDelivery
from svc_infra.webhooks.delivery_claim import claim
from svc_infra.webhooks.due_deliveries import Round, any_due
from svc_infra.webhooks.health import HealthPolicy
from svc_infra.webhooks.lanes import Lane, Lanes
from svc_infra.webhooks.sealing import KeyRing

_BATCH = 200
_MAX_CLAIMED = 400


@dataclass(frozen=True, slots=True)
class ClaimTerms:
    """How a deliverer claims: for how long, and within which seconds what is claimed must be sent."""

    lease_seconds: float
    send_seconds: float
    poll_seconds: float
    keys: KeyRing | None
    health: HealthPolicy


class _Claim(NamedTuple):
    started: float
    claimed: list[ClaimedDelivery]
    allowances: dict[str, int]
    is_to_go_on: bool


class Claimer:
    """Fills the lanes of a deliverer, which ``on_claimed`` tells of those that got some."""

    def __init__(
        self,
        session_factory: async_sessionmaker[AsyncSession],
        lanes: Lanes,
        terms: ClaimTerms,
        on_claimed: Callable[[Sequence[Lane]], None],
    ) -> None:
        self.more_due = True
        self.is_open = False
        self._session_factory = session_factory
        self._lanes = lanes
        self._terms = terms
        self._on_claimed = on_claimed
        self._round = Round()
        self._lock = asyncio.Lock()
        self._next_poll_at = 0.0

    def has_room(self) -> bool:
        """Whether a whole claim fits beside what is in hand."""
        return _MAX_CLAIMED - self._lanes.held >= _BATCH

    def is_due(self) -> bool:
        """Whether it is time to claim."""
        return self.has_room() and (self.more_due or time.monotonic() >= self._next_poll_at)

    async def claim(self, now: datetime) -> bool:
        """Claim what is due at ``now``; True when there may be more to claim at once."""
        async with self._lock:
            if not self.more_due and not await self._is_any_due(now):
                return False
            async with self._session_factory.begin() as session:
                found = await self._claim_within(session, now)
            return self._take(found)

    @asynccontextmanager
    async def handover(self, now: datetime) -> AsyncIterator[Callable[[AsyncSession], Awaitable[bool]]]:
        """Let a relay of this process lease what it makes in its own transaction: that saves a claim's.

        The function that it gets is called with the session of that transaction, which must end within the
        block; what was leased is sent after it. False where it does not suit: the loop is to claim then.
        """
        found: _Claim | None = None

        async def lease(session: AsyncSession) -> bool:
            nonlocal found
            if not self.is_open or self._lock.locked() or not self.has_room():
                return False
            await self._lock.acquire()
            stack.callback(self._lock.release)
            found = await self._claim_within(session, now)
            return True

        with ExitStack() as stack:
            yield lease
            if found is not None:
                self._take(found)

    async def close(self) -> None:
        """Hand nothing over any more, and wait for a claim that is under way."""
        self.is_open = False
        async with self._lock:
            pass

    async def _is_any_due(self, now: datetime) -> bool:
        self._next_poll_at = self._poll_after(time.monotonic())
        return await finds_any(self._session_factory, any_due(), {"now": now})

    def _poll_after(self, now: float) -> float:
        # The loop polls with jitter: half of it, so that no poll comes too early to count.
        return now + self._terms.poll_seconds / 2

    async def _claim_within(self, session: AsyncSession, now: datetime) -> _Claim:
        started = time.monotonic()
        allowances = self._lanes.allowances(started)
        round_ = self._round if self._lanes.is_crowded else None
        self.more_due = False
        self._next_poll_at = self._poll_after(started)
        claimed, has_given_back = await session.run_sync(
            claim,
            now=now,
            lease_seconds=self._terms.lease_seconds,
            limit=_BATCH,
            allowance=self._lanes.in_flight_cap,
            allowances=allowances,
            keys=self._terms.keys,
            health=self._terms.health,
            round_=round_,
        )
        is_to_go_on = has_given_back or (round_ is not None and not round_.is_complete)
        return _Claim(started, claimed, allowances, is_to_go_on)

    def _take(self, found: _Claim) -> bool:
        if found.claimed:
            failpoints.reached("after_delivery_claim")
        send_before = found.started + self._terms.lease_seconds - self._terms.send_seconds
        lanes = self._lanes.put(found.claimed, found.allowances, send_before=send_before)
        # An endpoint that got all it may have, or nothing as it is paused, could have hidden what is due for
        # others, and so could the endpoints that a round has not come to yet.
        is_full = len(found.claimed) == _BATCH
        if found.is_to_go_on or is_full or any(lane.has_more for lane in lanes):
            self.more_due = True
        self._on_claimed(lanes)
        return self.more_due
