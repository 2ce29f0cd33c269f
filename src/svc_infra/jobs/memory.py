"""A queue in this process's memory, with the rules of the durable one: for tests and first steps."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra.clock import Clock, SystemClock
from svc_infra.db.after_commit import call_after_commit
from svc_infra.db.base import new_id
from svc_infra.exceptions import InvalidPayload
from svc_infra.jobs.enqueueing import new_job
from svc_infra.jobs.job import FINISHED, Job, JobState, encode_payload
from svc_infra.jobs.kind import JobKind, Payload
from svc_infra.jobs.outcome import Transition
from svc_infra.jobs.queue import (
    DEFAULT_LEASE_SECONDS,
    Enqueuer,
    Finish,
    Rescued,
    StoredJob,
    claim_order,
    make_request,
)


@dataclass(slots=True)
class _Record:
    """A job and where it is; ``queued`` counts its entries, so that an outdated one is known."""

    job: Job
    state: JobState
    payload_json: str
    lease_until: float | None = None
    finished_at: datetime | None = None
    entry: int = 0


class InMemoryJobQueue:
    """Jobs in memory, gone with the process.

    ``enqueue`` takes effect at once; through ``bind(session)`` it does when that session commits. Not for
    several threads.
    """

    def __init__(
        self, *, clock: Clock | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self._monotonic = monotonic
        self._records: dict[str, _Record] = {}
        # Jobs wait by run_at until they are due, and then by the order in which they are claimed. An entry is
        # only taken if its number is still that of its record.
        self._waiting: list[tuple[datetime, int, str]] = []
        self._due: list[tuple[tuple[int, datetime, str], int]] = []

    @property
    def jobs(self) -> list[StoredJob]:
        """All jobs as they are stored, in the order in which they were enqueued."""
        return [self._stored(record) for record in self._records.values()]

    def enqueue(self, name: str | JobKind, payload: Payload = None, **options: Any) -> Job:
        """Store the job; see ``Enqueuer.enqueue``."""
        job = self._new_job(name, payload, options)
        self._store(job)
        return job

    def bind(self, session: Session | AsyncSession) -> Enqueuer:
        """Return an enqueuer whose jobs appear when ``session`` commits."""
        return _Bound(self, session.sync_session if isinstance(session, AsyncSession) else session)

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
        """Lease up to ``limit`` due jobs; see ``JobQueue.claim``."""
        at = now or self.clock.now()
        self._move_due(at)
        passed_over: list[tuple[tuple[int, datetime, str], int]] = []
        chosen: list[_Record] = []
        while self._due and len(chosen) < limit:
            entry = heapq.heappop(self._due)
            record = self._records.get(entry[0][2])
            if record is None or record.entry != entry[1] or record.state is not JobState.AVAILABLE:
                continue
            job = record.job
            is_known = names is None or (
                job.name in names and job.payload_version <= (versions or {}).get(job.name, 1)
            )
            is_ours = is_known and (queues is None or job.queue in queues)
            if not is_ours or job.run_at > at or (job.rescues and chosen):
                passed_over.append(entry)
                continue
            chosen.append(record)
            if job.rescues:
                break
        for entry in passed_over:
            heapq.heappush(self._due, entry)
        return self._lease(chosen, lease_seconds)

    async def finish(self, finishes: Iterable[Finish]) -> set[str]:
        """Write the transitions of jobs that are still held; see ``JobQueue.finish``."""
        ended = set()
        for job, end in finishes:
            record = self._held(job)
            if record is not None:
                self._write(record, end)
                ended.add(job.id)
        return ended

    async def extend(self, jobs: Iterable[Job], *, lease_seconds: float) -> set[str]:
        """Extend leases; see ``JobQueue.extend``."""
        held = [record for job in jobs if (record := self._held(job)) is not None]
        for record in held:
            record.lease_until = self._monotonic() + lease_seconds
        return {record.job.id for record in held}

    async def release(self, jobs: Iterable[Job]) -> set[str]:
        """Give jobs and their attempts back; see ``JobQueue.release``."""
        held = [record for job in jobs if (record := self._held(job)) is not None]
        for record in held:
            self._write(record, _available(record.job.run_at, record.job.attempt - 1, None))
        return {record.job.id for record in held}

    async def rescue(self, *, now: datetime | None = None, limit: int = 1_000) -> Rescued:
        """Return expired leases; see ``JobQueue.rescue``."""
        at, wall = now or self.clock.now(), self._monotonic()
        running = [record for record in self._records.values() if record.state is JobState.RUNNING]
        expired = [record for record in running if (record.lease_until or 0) < wall][:limit]
        discarded = 0
        for record in expired:
            job, error = record.job, "the lease expired"
            record.job = replace(job, rescues=job.rescues + 1)
            if job.attempt >= job.max_attempts:
                discarded += 1
                self._write(record, Transition(JobState.DISCARDED, None, job.attempt, error, at))
            else:
                self._write(record, _available(job.run_at, job.attempt, error))
        return Rescued(len(expired) - discarded, discarded)

    async def prune(
        self, *, finished_before: datetime, states: Collection[JobState] = FINISHED, limit: int = 1_000
    ) -> int:
        """Delete old finished jobs; see ``JobQueue.prune``."""
        old = [
            job_id
            for job_id, record in self._records.items()
            if record.state in states
            and record.finished_at is not None
            and record.finished_at < finished_before
        ][:limit]
        for job_id in old:
            del self._records[job_id]
        return len(old)

    async def find(self, job_id: str) -> StoredJob | None:
        """Return one job as it is stored."""
        record = self._records.get(job_id)
        return None if record is None else self._stored(record)

    def for_heartbeat(self) -> None:
        """Return nothing: no other process or thread can see this queue."""
        return None

    def _new_job(self, name: str | JobKind, payload: Payload, options: dict[str, Any]) -> Job:
        now = self.clock.now()
        request = make_request(name, payload, now=now, **options)
        if request.unique is not None:
            raise InvalidPayload("the memory queue has no unique jobs; use a SqlJobQueue")
        if request.limit is not None or request.rate is not None or request.waits_for is not None:
            raise InvalidPayload("the memory queue has no limits, rates and groups; use a SqlJobQueue")
        return new_job(request, now=now)

    def _store(self, job: Job) -> None:
        record = self._records[job.id] = _Record(job, JobState.AVAILABLE, encode_payload(job.payload))
        self._make_available(record)

    def _make_available(self, record: _Record) -> None:
        record.entry += 1
        heapq.heappush(self._waiting, (record.job.run_at, record.entry, record.job.id))

    def _move_due(self, now: datetime) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            _, entry, job_id = heapq.heappop(self._waiting)
            record = self._records.get(job_id)
            if record is not None and record.entry == entry:
                heapq.heappush(self._due, (claim_order(record.job), entry))

    def _lease(self, records: list[_Record], lease_seconds: float) -> list[Job]:
        lease_id, lease_until = new_id(), self._monotonic() + lease_seconds
        for record in records:
            job = record.job
            # A payload of its own for each attempt: a handler may change it.
            payload = json.loads(record.payload_json)
            record.job = replace(job, attempt=job.attempt + 1, lease_id=lease_id, payload=payload)
            record.state, record.lease_until = JobState.RUNNING, lease_until
        return [record.job for record in records]

    def _held(self, job: Job) -> _Record | None:
        record = self._records.get(job.id)
        if record is None or record.state is not JobState.RUNNING or record.job.lease_id != job.lease_id:
            return None
        return record

    def _write(self, record: _Record, end: Transition) -> None:
        job = record.job
        record.job = replace(
            job,
            lease_id=None,
            attempt=end.attempt,
            run_at=end.run_at or job.run_at,
            last_error=job.last_error if end.error is None else end.error,
        )
        record.state, record.lease_until, record.finished_at = end.state, None, end.finished_at
        if end.state is JobState.AVAILABLE:
            self._make_available(record)

    def _stored(self, record: _Record) -> StoredJob:
        lease_until = None
        if record.lease_until is not None:
            left = timedelta(seconds=record.lease_until - self._monotonic())
            lease_until = datetime.now(UTC) + left
        job = replace(record.job, payload=json.loads(record.payload_json))
        return StoredJob(job, record.state, lease_until, record.finished_at)


class _Bound:
    """A memory queue whose jobs wait for the commit of one session."""

    def __init__(self, queue: InMemoryJobQueue, session: Session) -> None:
        self._queue = queue
        self._session = session

    def enqueue(self, name: str | JobKind, payload: Payload = None, **options: Any) -> Job:
        job = self._queue._new_job(name, payload, options)
        call_after_commit(self._session, lambda: self._queue._store(job))
        return job


def _available(run_at: datetime, attempt: int, error: str | None) -> Transition:
    return Transition(JobState.AVAILABLE, run_at, attempt, error, None)
