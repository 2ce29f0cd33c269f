"""The queue as a port: what a worker, a handler and an application ask of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra.clock import Clock
from svc_infra.jobs.job import DEFAULT_QUEUE, FINISHED, Job, JobRequest, JobState
from svc_infra.jobs.kind import JobKind, Payload
from svc_infra.jobs.limit import Limit
from svc_infra.jobs.outcome import Transition
from svc_infra.jobs.rate import Rate
from svc_infra.jobs.spans import enqueueing
from svc_infra.jobs.uniqueness import Unique

DEFAULT_LEASE_SECONDS = 30.0


class Finish(NamedTuple):
    """A claimed job and what becomes of it."""

    job: Job
    transition: Transition


class Rescued(NamedTuple):
    """How many expired leases were returned, and how many jobs had no attempt left and were discarded."""

    available: int
    discarded: int


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as the queue keeps it, for looking and not for running. ``lease_until`` is wall time."""

    job: Job
    state: JobState
    lease_until: datetime | None
    finished_at: datetime | None


class Enqueuer(Protocol):
    """Whatever takes jobs: a memory queue, or a durable queue bound to a session."""

    def enqueue(
        self,
        name: str | JobKind,
        payload: Payload = None,
        *,
        queue: str = DEFAULT_QUEUE,
        tenant_id: str | None = None,
        priority: int = 0,
        run_at: datetime | None = None,
        delay_seconds: float = 0,
        max_attempts: int | None = None,
        unique: Unique | None = None,
        metadata: dict[str, Any] | None = None,
        trace_context: str | None = None,
        timeout_seconds: float | None = None,
        limit: Limit | None = None,
        rate: Rate | None = None,
        group_id: str | None = None,
        waits_for: str | None = None,
    ) -> Job:
        """Record the job, un-awaited. It exists once the transaction that it is bound to has committed.

        A ``JobKind`` in the place of the name brings its defaults and checks the payload.
        ``run_at`` and ``delay_seconds`` (added to ``run_at`` or to now) are business time; a lower
        ``priority`` runs first. With ``unique`` the job may turn out, when it is written, to be a duplicate:
        then it is not stored, and the one that is there stands for it. ``SqlJobQueue.enqueue_unique`` tells.

        Raises:
            InvalidPayload: the request cannot be stored; the message names the field.
            NotInTransaction: the queue is durable and not bound to a session.
        """
        ...


class JobQueue(Enqueuer, Protocol):
    """A queue of jobs. Every write of a claimed job names its lease; a stale one changes nothing.

    ``now`` is business time and decides what is due. Leases run in the database's own time.
    """

    clock: Clock

    def bind(self, session: Session | AsyncSession) -> Enqueuer:
        """Return an enqueuer whose jobs exist if and only if the transaction of ``session`` commits."""
        ...

    async def claim(
        self,
        limit: int,
        *,
        names: Collection[str] | None = None,
        versions: Mapping[str, int] | None = None,
        queues: Collection[str] | None = None,
        has_limits: bool = False,
        now: datetime | None = None,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
    ) -> list[Job]:
        """Lease up to ``limit`` due jobs in the order (priority, run_at, id), counting an attempt for each.

        A job that was rescued is returned alone, for it may be what killed its process. ``names`` and
        ``queues`` of None take all; a job of another name is left. ``versions`` are the newest versions of
        payloads that the claimer reads, by name, where they are above 1; a job of a newer one is left too.
        ``has_limits`` lets jobs with a limit come first, as far as slots are free; otherwise they are looked
        for where no others are due.
        """
        ...

    async def finish(self, finishes: Iterable[Finish]) -> set[str]:
        """Write the transitions of jobs that are still held and return their ids."""
        ...

    async def extend(self, jobs: Iterable[Job], *, lease_seconds: float) -> set[str]:
        """Let the leases that are still held run for ``lease_seconds`` from now and return their ids."""
        ...

    async def release(self, jobs: Iterable[Job]) -> set[str]:
        """Give back jobs that are still held, and their attempts, and return their ids."""
        ...

    async def rescue(self, *, now: datetime | None = None, limit: int = 1_000) -> Rescued:
        """Return expired leases; a job without attempts left is discarded."""
        ...

    async def prune(
        self, *, finished_before: datetime, states: Collection[JobState] = FINISHED, limit: int = 1_000
    ) -> int:
        """Delete up to ``limit`` jobs that finished before the business instant given; return how many."""
        ...

    async def find(self, job_id: str) -> StoredJob | None:
        """Return one job as it is stored."""
        ...

    def for_heartbeat(self) -> JobQueue | None:
        """Return this queue over connections of its own, for another thread; None if nobody else sees it."""
        ...


def make_request(
    name: str | JobKind,
    payload: Payload,
    *,
    now: datetime,
    run_at: datetime | None = None,
    delay_seconds: float = 0,
    **fields: Any,
) -> JobRequest:
    """Return the checked request of an ``enqueue`` call, with the delay worked into ``run_at``."""
    if delay_seconds:
        run_at = (run_at or now) + timedelta(seconds=delay_seconds)
    if isinstance(name, JobKind):
        with enqueueing(name.name, fields.get("queue") or name.queue):
            return name.request(payload, run_at=run_at, **fields)
    if isinstance(payload, BaseModel):
        payload = payload.model_dump(mode="json")
    with enqueueing(name, fields.get("queue")):
        return JobRequest(name, {} if payload is None else payload, run_at=run_at, **fields)


claim_order: Callable[[Job], tuple[int, datetime, str]] = attrgetter("priority", "run_at", "id")
"""The key of the order in which jobs are claimed."""
