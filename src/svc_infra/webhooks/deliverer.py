"""The deliverer: claims due deliveries, sends them with no transaction open, records what came of it.

One loop (``_step``) does all the talking to the database, claims and results in batches; tasks do the talking
to the endpoints meanwhile. The SQL is in ``delivery_rows``, the decision in ``delivery.judge``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from random import Random

import structlog
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra import failpoints
from svc_infra.clock import Clock, SystemClock
from svc_infra.jobs.loop import run_loop, wait_any
from svc_infra.webhooks.attempt_log import log_attempts
from svc_infra.webhooks.claimed_delivery import ClaimedDelivery, DeliveryResult
from svc_infra.webhooks.claimer import Claimer, ClaimTerms
from svc_infra.webhooks.deliverer_stats import DelivererStats
from svc_infra.webhooks.delivery import (
    RetrySchedule,
    asks_to_wait,
    is_overload,
    judge,
)
from svc_infra.webhooks.delivery_rows import record, release, rescue
from svc_infra.webhooks.health import HealthPolicy
from svc_infra.webhooks.lanes import Lane, Lanes
from svc_infra.webhooks.sealing import KeyRing
from svc_infra.webhooks.sending import Sender, attempt

_FLUSH_AT = 100
_MAX_FLUSH = 500
_FLUSH_SECONDS = 0.02
_RESCUE_SECONDS = 5.0
_QUICK_MS = 1_000
_RATED_AHEAD_SECONDS = 2.0

log = structlog.get_logger(__name__)


class Deliverer:
    """Sends what is due, beside any number of other deliverers on the same database.

    ``lease_seconds`` bounds how long a delivery of a process that died stays unsent. It must exceed
    ``send_seconds``, the sender's deadline: what cannot be sent before its lease ends is given back instead.
    ``per_endpoint`` and ``in_flight`` cap the requests under way, for each endpoint and in all.
    """

    def __init__(
        self,
        session_factory: async_sessionmaker[AsyncSession],
        sender: Sender,
        clock: Clock | None = None,
        *,
        schedule: RetrySchedule | None = None,
        lease_seconds: float = 30.0,
        send_seconds: float = 15.0,
        in_flight: int = 200,
        per_endpoint: int = 8,
        poll_seconds: float = 1.0,
        rng: Random | None = None,
        keys: KeyRing | None = None,
        health: HealthPolicy | None = None,
    ) -> None:
        self.stats = DelivererStats()
        self._session_factory = session_factory
        self._sender = sender
        self._clock = clock or SystemClock()
        self._schedule = schedule or RetrySchedule()
        self._poll_seconds = poll_seconds
        self._rng = rng or Random()
        self._health = health or HealthPolicy()
        self._slots = asyncio.Semaphore(in_flight)
        rated_ahead_seconds = min(_RATED_AHEAD_SECONDS, (lease_seconds - send_seconds) / 2)
        self._lanes = Lanes(per_endpoint, rated_ahead_seconds=rated_ahead_seconds)
        terms = ClaimTerms(lease_seconds, send_seconds, poll_seconds, keys, self._health)
        self.claimer = Claimer(session_factory, self._lanes, terms, self._send_from)
        self._tasks: set[asyncio.Task[None]] = set()
        self._crash: BaseException | None = None
        self._results: list[DeliveryResult] = []
        self._too_late: list[ClaimedDelivery] = []
        self._oldest_result_at = 0.0
        self._wake = asyncio.Event()
        self._ending = asyncio.Event()
        self._next_rescue_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until ``stop`` is set; then what is being sent is finished and the rest given back."""
        self.claimer.is_open = True
        try:
            await run_loop(
                "webhooks.deliverer",
                self._step,
                stop=stop,
                wake=self._wake,
                poll_seconds=self._poll_seconds,
            )
            await self._wind_down()
        finally:
            self._abandon()

    def wake(self) -> None:
        """Say that something may have become due."""
        self.claimer.more_due = True
        self._wake.set()

    async def drain(self) -> int:
        """Deliver until nothing is due and return how many were delivered; not beside ``run``."""
        return await self._drain(None)

    async def run_once(self) -> int:
        """Attempt everything once that is due at this instant; return how many were delivered."""
        return await self._drain(self._clock.now())

    async def _drain(self, due_at: datetime | None) -> int:
        before = self.stats.delivered
        self.claimer.more_due = True
        try:
            while True:
                self._wake.clear()
                if await self._step(due_at):
                    continue
                if not (self._lanes.held or self._results or self._too_late or self.claimer.more_due):
                    return self.stats.delivered - before
                await self._wake.wait()
        finally:
            self._abandon()

    async def _step(self, due_at: datetime | None = None) -> bool:
        """Do what the database is needed for now; True when there may be more to claim at once."""
        self._raise_crash()
        if time.monotonic() >= self._next_rescue_at:
            await self._rescue()
        if self._is_flush_due():
            await self._flush()
        if self.claimer.is_due():
            return await self.claimer.claim(due_at or self._clock.now())
        return False

    async def _rescue(self) -> None:
        self._next_rescue_at = time.monotonic() + _RESCUE_SECONDS
        async with self._session_factory.begin() as session:
            rescued = await session.run_sync(
                rescue, now=self._clock.now(), max_attempts=self._schedule.max_attempts
            )
        if rescued:
            log.warning("webhooks.deliveries_rescued", count=rescued)
            self.claimer.more_due = True

    # --- sending --------------------------------------------------------------------------------------------

    def _send_from(self, lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            self._start_senders(lane)
        if self.claimer.more_due:
            self._wake.set()

    def _start_senders(self, lane: Lane) -> None:
        while lane.senders < min(lane.senders_allowed, lane.held):
            lane.senders += 1
            task = asyncio.create_task(self._send_all(lane))
            self._tasks.add(task)
            task.add_done_callback(lambda task: self._on_sender_end(lane, task))

    def _on_sender_end(self, lane: Lane, task: asyncio.Task[None]) -> None:
        lane.senders -= 1
        self._tasks.discard(task)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._crash = error
            self._wake.set()
        else:
            self._start_senders(lane)  # several may have ended at once because the endpoint slowed down

    async def _send_all(self, lane: Lane) -> None:
        """Send what waits in a lane, one after the other; as many of these run as the lane may have."""
        while lane.waiting and lane.senders <= lane.senders_allowed:
            if pause_seconds := lane.next_slot(time.monotonic()):
                await wait_any(self._ending, timeout_seconds=pause_seconds)
            async with self._slots:
                if not lane.waiting:
                    return
                delivery, send_before = lane.waiting.popleft()
                lane.sending += 1
                try:
                    if time.monotonic() < send_before:
                        await self._send(lane, delivery)
                    else:
                        self._too_late.append(delivery)
                finally:
                    lane.sending -= 1
                    self._lanes.held -= 1
            self._notice_progress(lane)

    async def _send(self, lane: Lane, delivery: ClaimedDelivery) -> None:
        result, attempted_at = await attempt(self._sender, delivery.message, delivery.target)
        judged_at = self._clock.now()
        verdict = judge(
            result,
            attempt=delivery.scheduled_attempt,
            now=judged_at,
            schedule=self._schedule,
            rng=self._rng,
            wall_now=attempted_at,
        )
        lane.adapt(
            is_delivered=verdict.state == "delivered",
            was_quick=result.duration_ms < _QUICK_MS,
            is_overloaded=is_overload(result),
        )
        if verdict.disable_endpoint or asks_to_wait(result) or self._is_pause_due(lane):
            # What was claimed ahead is not to be sent now; the next claim of it sees what is to become of it.
            self._too_late += self._lanes.take_waiting(lane)
        self._start_senders(lane)
        if not self._results:
            self._oldest_result_at = time.monotonic()
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._wake.set)
        self._results.append(DeliveryResult(delivery, result, verdict, attempted_at, judged_at))

    def _is_pause_due(self, lane: Lane) -> bool:
        return lane.failures_in_a_row > 0 and lane.failures_in_a_row % self._health.pause_after == 0

    def _notice_progress(self, lane: Lane) -> None:
        if lane.wants_refill():
            self.claimer.more_due = True
        if self._is_flush_due() or (self.claimer.more_due and self.claimer.has_room()):
            self._wake.set()

    # --- recording ------------------------------------------------------------------------------------------

    def _is_flush_due(self) -> bool:
        if not self._results:
            return bool(self._too_late)
        is_old = time.monotonic() - self._oldest_result_at >= _FLUSH_SECONDS
        return is_old or len(self._results) >= _FLUSH_AT or not self._lanes.held

    async def _flush(self) -> None:
        """Record the results so far in one transaction; a failure keeps them for the next try."""
        results, self._results = self._results[:_MAX_FLUSH], self._results[_MAX_FLUSH:]
        too_late, self._too_late = self._too_late, []
        if results:
            failpoints.reached("before_delivery_recorded")
        try:
            async with self._session_factory.begin() as session:
                held: set[str] = set()
                if too_late:
                    await session.run_sync(release, too_late)
                if results:
                    held = await session.run_sync(record, results, health=self._health)
                if held:
                    failpoints.reached("before_record_commit")
        except BaseException:
            self._results[:0], self._too_late[:0] = results, too_late
            raise
        if held:
            failpoints.reached("after_record_commit")
        self.claimer.more_due = self.claimer.more_due or bool(too_late)
        self.stats.count(results, held)
        log_attempts(results, held)

    # --- ending ---------------------------------------------------------------------------------------------

    async def _wind_down(self) -> None:
        """Give back what was not sent, and wait for and record what is being sent."""
        await self.claimer.close()
        self._too_late += self._lanes.take_waiting()
        self._ending.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        while self._results or self._too_late:
            await self._flush()

    def _abandon(self) -> None:
        """Drop what is left after an error or a cancellation; its leases end by themselves."""
        self.claimer.is_open = False
        self._lanes.take_waiting()
        for task in self._tasks:
            task.cancel()
        self._results.clear()
        self._too_late.clear()

    def _raise_crash(self) -> None:
        crash, self._crash = self._crash, None
        if crash is not None:
            raise crash
