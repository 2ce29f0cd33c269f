"""The scheduler: it turns cron fires into jobs, each fire once, with any number of schedulers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Any

import structlog

from svc_infra.canonical import canonical_instant
from svc_infra.clock import Clock, SystemClock
from svc_infra.exceptions import InvalidSchedule
from svc_infra.jobs.cron import CatchUp, DueFires, due_fires
from svc_infra.jobs.job import DEFAULT_QUEUE, JobRequest
from svc_infra.jobs.limit import Limit
from svc_infra.jobs.loop import run_loop
from svc_infra.jobs.schedule_store import Fire, ScheduleStore
from svc_infra.jobs.timing import NEVER, Timing
from svc_infra.jobs.uniqueness import Unique

log = structlog.get_logger(__name__)

# Records of fires are kept for as long as somebody may ask what happened; never less than catching up needs.
FIRES_KEPT = timedelta(days=400)
_MAX_NAME_LENGTH = 200
_TAKE_UP_SECONDS = 5.0


class Overlap(StrEnum):
    """What to do with a fire while the job of an earlier one waits or runs.

    ``parallel`` runs both, ``queue`` runs them one after the other, and ``skip`` makes no job for it.
    """

    PARALLEL = "parallel"
    QUEUE = "queue"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A job that is enqueued at every fire of ``cron``, with ``fire_at`` (ISO 8601, ``Z``) in its payload.

    ``cron`` may also be an ``Every`` or a ``Once``. ``catch_up`` says what becomes of fires that were missed
    while no scheduler ran; ``cap`` is how many of them one tick takes. ``overlap`` says what becomes of a
    fire while the job of an earlier one has not finished. Each job starts up to ``jitter_seconds`` after its
    fire: how much is fixed by the schedule's name and the fire, so that every scheduler says the same.

    Raises:
        InvalidSchedule: the name is empty or too long, the cap is not positive, or the jitter is negative.
    """

    name: str
    cron: Timing
    job_name: str
    payload: dict[str, Any] = field(default_factory=dict)
    queue: str = DEFAULT_QUEUE
    catch_up: CatchUp = CatchUp.ALL
    cap: int = 1_000
    overlap: Overlap = Overlap.PARALLEL
    jitter_seconds: float = 0

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > _MAX_NAME_LENGTH:
            raise InvalidSchedule(f"a schedule's name has 1 to {_MAX_NAME_LENGTH} characters: {self.name!r}")
        if not 0 <= self.jitter_seconds < math.inf:
            raise InvalidSchedule(f"jitter_seconds of schedule {self.name!r} must not be negative")
        if self.cap < 1:
            raise InvalidSchedule(f"the cap of schedule {self.name!r} is {self.cap}; the least is 1")

    def request(self, fire_at: datetime) -> JobRequest:
        """Return the job of the fire at ``fire_at``."""
        payload = {**self.payload, "fire_at": canonical_instant(fire_at)}
        key = f"schedule:{self.name}"
        return JobRequest(
            self.job_name,
            payload,
            queue=self.queue,
            run_at=fire_at + self._jitter(fire_at),
            unique=Unique(key) if self.overlap is Overlap.SKIP else None,
            limit=Limit(1, shared_key=key) if self.overlap is Overlap.QUEUE else None,
        )

    def _jitter(self, fire_at: datetime) -> timedelta:
        digest = sha256(f"{self.name} {canonical_instant(fire_at)}".encode()).digest()
        return timedelta(seconds=self.jitter_seconds * int.from_bytes(digest[:4], "big") / 2**32)


class Scheduler:
    """Enqueues the jobs of its schedules.

    Each tick deals with the fires up to the clock's now, one transaction per schedule that has some. There is
    no leader: the unique record of a fire, written with its job, is what makes it happen once. A new schedule
    starts at ``start_at``, by default at its first tick. ``added`` returns those that were added elsewhere
    meanwhile; ``run`` asks it every few seconds.
    """

    def __init__(
        self,
        store: ScheduleStore,
        schedules: Iterable[Schedule] = (),
        *,
        clock: Clock | None = None,
        start_at: datetime | None = None,
        added: Callable[[], Awaitable[Iterable[Schedule]]] | None = None,
    ) -> None:
        self._store = store
        self._added = added
        self._added_names: set[str] = set()
        self._clock: Clock = clock or SystemClock()
        self._start_at = start_at
        self._schedules: dict[str, Schedule] = {}
        # What the store said last. Others may have moved on since: then a tick finds nothing left to do.
        self._fired_until: dict[str, datetime] = {}
        self._next_fires: dict[str, datetime] = {}
        self._has_more = False
        for schedule in schedules:
            self.add(schedule)

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """The schedules in the order in which they were added."""
        return tuple(self._schedules.values())

    def add(self, schedule: Schedule) -> None:
        """Add a schedule.

        Raises:
            InvalidSchedule: there is one with this name.
        """
        if schedule.name in self._schedules:
            raise InvalidSchedule(f"there are two schedules named {schedule.name!r}; rename one")
        self._schedules[schedule.name] = schedule

    def next_fire(self) -> datetime | None:
        """Return the earliest fire that this scheduler has not dealt with; None without schedules."""
        after = self._start_at or self._clock.now()
        fires = [
            self._next_fires.get(name) or schedule.cron.next_fire(after)
            for name, schedule in self._schedules.items()
        ]
        first = min(fires, default=NEVER)
        return None if first == NEVER else first

    async def take_up(self) -> None:
        """Take up the schedules that were added or changed elsewhere, and let go of those that were removed.

        One whose name this scheduler has otherwise is left out.
        """
        if self._added is None:
            return
        own = self._schedules.keys() - self._added_names
        added = {schedule.name: schedule for schedule in await self._added() if schedule.name not in own}
        for name in self._added_names:
            if added.get(name) != self._schedules[name]:
                del self._schedules[name]
                self._next_fires.pop(name, None)
        self._schedules |= added
        self._added_names = set(added)

    async def tick(self) -> int:
        """Enqueue the jobs of all fires that are due and return how many were enqueued.

        While nothing is due it does not ask the database.
        """
        now = self._clock.now()
        waiting = {
            name: schedule for name, schedule in self._schedules.items() if not self._is_after(name, now)
        }
        self._has_more = False
        if not waiting:
            return 0
        await self._load(waiting, now)
        enqueued = 0
        for name, schedule in waiting.items():
            if name in self._fired_until:
                enqueued += await self._fire(schedule, now)
        return enqueued

    async def run(self, stop: asyncio.Event, *, poll_seconds: float = 1.0) -> None:
        """Tick until ``stop`` is set, and prune the records of fires long past."""

        async def step() -> bool:
            await self.tick()
            return self._has_more

        async def prune() -> bool:
            return await self._store.prune(before=self._clock.now() - FIRES_KEPT) > 0

        async def take_up() -> bool:
            await self.take_up()
            return False

        async with asyncio.TaskGroup() as group:
            group.create_task(run_loop("jobs.schedules", take_up, stop=stop, poll_seconds=_TAKE_UP_SECONDS))
            group.create_task(run_loop("jobs.scheduler", step, stop=stop, poll_seconds=poll_seconds))
            group.create_task(run_loop("jobs.prune_fires", prune, stop=stop, poll_seconds=3_600))

    async def _load(self, schedules: Mapping[str, Schedule], now: datetime) -> None:
        """Read how far the schedules are, and start those that are new."""
        stored = await self._store.fired_until(schedules)
        absent = schedules.keys() - stored.keys()
        for name in absent & self._added_names:
            # Whoever adds a schedule starts it: this one was removed just now.
            self._fired_until.pop(name, None)
        new = {name: self._start_at or now for name in absent - self._added_names}
        if new:
            await self._store.start(new, now=now)
            stored |= await self._store.fired_until(list(new))
        for name, fired_until in stored.items():
            self._dealt_with(schedules[name], fired_until)

    async def _fire(self, schedule: Schedule, now: datetime) -> int:
        if self._is_after(schedule.name, now):
            return 0
        due = due_fires(
            schedule.cron,
            after=self._fired_until[schedule.name],
            now=now,
            catch_up=schedule.catch_up,
            cap=schedule.cap,
        )
        fires = [Fire(at, schedule.request(at)) for at in due.fires] + [Fire(at, None) for at in due.missed]
        enqueued = await self._store.fire(schedule.name, fires, fired_until=due.fired_until, now=now)
        self._dealt_with(schedule, due.fired_until)
        self._has_more = self._has_more or due.has_more
        _report(schedule, due, enqueued)
        return enqueued

    def _dealt_with(self, schedule: Schedule, until: datetime) -> None:
        self._fired_until[schedule.name] = until
        self._next_fires[schedule.name] = schedule.cron.next_fire(until)

    def _is_after(self, name: str, now: datetime) -> bool:
        """Whether the schedule's next fire is known and still to come."""
        next_fire = self._next_fires.get(name)
        return next_fire is not None and next_fire > now


def _report(schedule: Schedule, due: DueFires, enqueued: int) -> None:
    if enqueued or due.missed:
        log.info("schedule.fired", schedule=schedule.name, jobs=enqueued, missed=len(due.missed))
