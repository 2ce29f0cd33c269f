"""The claimer of a worker: it fills the lanes, in the common order and for tenants in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from random import Random

from svc_infra.clock import Clock
from svc_infra.jobs.handlers import Handlers
from svc_infra.jobs.job import Job
from svc_infra.jobs.lane import Lane
from svc_infra.jobs.loop import run_loop
from svc_infra.jobs.queue import JobQueue
from svc_infra.jobs.sql import SqlJobQueue

# Jobs that were enqueued with a limit although their kind has none come first so often while others keep
# coming; else they are looked for where no others are due.
_LIMITS_FIRST_SECONDS = 2.0


class Claimer:
    """Claims jobs of ``handlers`` for lanes that have room.

    ``settle``, awaited before each claim, writes what is left of earlier ones. ``on_claimed`` starts the jobs
    of a lane, and is told whether they were claimed in turn.
    """

    def __init__(
        self,
        queue: JobQueue,
        handlers: Handlers,
        lanes: Sequence[Lane],
        *,
        clock: Clock,
        queues: Collection[str] | None,
        lease_seconds: float,
        settle: Callable[[], Awaitable[None]],
        on_claimed: Callable[[Lane, Sequence[Job], bool], None],
    ) -> None:
        self._queue = queue
        self._handlers = handlers
        self._lanes = lanes
        self._clock = clock
        self._queues = queues
        self._lease_seconds = lease_seconds
        self._settle = settle
        self._on_claimed = on_claimed
        self._wake = asyncio.Event()
        self._wake_for_turns = asyncio.Event()
        self._wakes_for_turns_at = 0.0
        self._has_found_since: float | None = None

    def wake(self) -> None:
        """Claim now instead of at the next poll."""
        self._wake.set()

    def wake_for_news(self) -> None:
        """Claim now, and look for tenants that would wait behind others: something was enqueued."""
        for lane in self._lanes:
            lane.has_news = True
        self._wake.set()
        self._wake_for_turns.set()

    def ended_some(self, lane: Lane) -> None:
        """Claim where the end of some jobs of ``lane`` has made room for others."""
        if lane.room() or self._handlers.has_limits:
            self._wake.set()
        if lane.wants_turns and lane.room_for_turns():
            self._wake_for_turns.set()

    def has_room(self) -> bool:
        """Whether a lane has."""
        return any(lane.room() for lane in self._lanes)

    async def run(self, stop: asyncio.Event, *, poll_seconds: float, rng: Random) -> None:
        """Claim until ``stop`` is set, in turn beside the common order: neither waits for the other."""

        async def step() -> bool:
            has_found = await self.claim()
            # A claim that found less than it could take has found all; to ask again would only delay that.
            has_more = self._handlers.has_limits or any(lane.has_backlog for lane in self._lanes)
            if has_more:
                self._wake_for_turns.set()
            return has_found and has_more and self.has_room()

        async with asyncio.TaskGroup() as loops:
            for name, work, wake in (
                ("jobs.claim", step, self._wake),
                ("jobs.claim_in_turn", self.claim_in_turn, self._wake_for_turns),
            ):
                loops.create_task(
                    run_loop(name, work, stop=stop, wake=wake, poll_seconds=poll_seconds, rng=rng)
                )

    async def claim(self) -> bool:
        """Claim for every lane that has room, in the common order; True if anything was."""
        await self._settle()
        is_idle = not any(lane.is_busy for lane in self._lanes)
        # An idle worker asks one thing and not three.
        if is_idle and len(self._lanes) > 1 and not self._handlers.has_limits:
            if not await self._claim_for_all():
                return False
            found = True
        else:
            found = False
        for lane in self._lanes:
            if room := lane.room():
                jobs = await self._claim_of(lane.names, room)
                lane.claimed(jobs, room)
                self._on_claimed(lane, jobs, False)
                found = found or bool(jobs)
        return found

    async def claim_in_turn(self) -> bool:
        """Claim for tenants that would wait behind others, while there is a backlog; True if anything was.

        A limited kind may have one without filling any claim.
        """
        found = False
        for lane in self._lanes:
            if lane.has_backlog or self._handlers.has_limits:
                found = await self._claim_turns_of(lane) or found
        return found

    async def _claim_for_all(self) -> bool:
        room = min(lane.room() for lane in self._lanes)
        jobs = await self._claim_of(self._handlers.names, room)
        for lane in self._lanes:
            lane.claimed(jobs, room)
            self._on_claimed(lane, [job for job in jobs if job.name in lane.names], False)
        return bool(jobs)

    async def _claim_of(self, names: Collection[str], room: int) -> list[Job]:
        now = asyncio.get_running_loop().time()
        since = self._has_found_since
        is_time_for_limits = since is not None and now - since >= _LIMITS_FIRST_SECONDS
        jobs = await self._queue.claim(
            room,
            names=names,
            versions=self._handlers.versions,
            has_limits=self._handlers.has_limits or is_time_for_limits,
            queues=self._queues,
            now=self._clock.now(),
            lease_seconds=self._lease_seconds,
        )
        # A claim that found nothing has looked for those with a limit.
        if not jobs:
            self._has_found_since = None
        elif since is None or is_time_for_limits:
            self._has_found_since = now
        return jobs

    async def _claim_turns_of(self, lane: Lane) -> bool:
        loop, room = asyncio.get_running_loop(), lane.room_for_turns()
        lane.wants_turns = not room
        if not isinstance(self._queue, SqlJobQueue) or not room:
            return False
        wait_seconds = lane.seconds_to_look(loop.time())
        if wait_seconds > 0:
            self._look_in(wait_seconds)
            return False
        lane.has_news = False
        jobs = await self._queue.claim_in_turn(
            room,
            each=lane.each(),
            passing_over=lane.tenants_in_hand(),
            names=lane.names,
            versions=self._handlers.versions,
            queues=self._queues,
            now=self._clock.now(),
            lease_seconds=self._lease_seconds,
        )
        lane.looked(loop.time(), has_found=bool(jobs))
        self._look_in(lane.seconds_to_look(loop.time()))
        self._on_claimed(lane, jobs, True)
        return bool(jobs)

    def _look_in(self, seconds: float) -> None:
        """Look for turns again in so many seconds, unless that is to happen sooner."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not now < self._wakes_for_turns_at <= now + seconds:
            self._wakes_for_turns_at = now + seconds
            loop.call_later(seconds, self._wake_for_turns.set)
