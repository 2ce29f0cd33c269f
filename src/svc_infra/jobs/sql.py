"""The durable queue: jobs as rows of the application's own database, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import URL, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from svc_infra.clock import Clock, SystemClock
from svc_infra.db.full_scan import FullScan
from svc_infra.db.session import by_statements, commit, make_engine, make_session_factory
from svc_infra.exceptions import NotInTransaction
from svc_infra.failpoints import reached
from svc_infra.jobs import rows, statements
from svc_infra.jobs.enqueueing import Enqueued, add_job, enqueue_all, enqueue_committing, insert_jobs
from svc_infra.jobs.job import FINISHED, Job, JobRequest, JobState
from svc_infra.jobs.kind import JobKind, Payload
from svc_infra.jobs.limited_claim import are_limited, claim_limited, due_in_turn, due_limited, take
from svc_infra.jobs.lines import LIMIT, TENANT, Place
from svc_infra.jobs.queue import (
    DEFAULT_LEASE_SECONDS,
    Enqueuer,
    Finish,
    Rescued,
    StoredJob,
    claim_order,
    make_request,
)
from svc_infra.jobs.rate_store import prune_rates
from svc_infra.jobs.rows import ClaimTerms, database_of, sync_session
from svc_infra.jobs.spans import enqueueing_many

__all__ = ["SqlJobQueue", "database_of", "insert_jobs", "sync_session"]

_RESCUE_OVERLAP_SECONDS = 5.0
T = TypeVar("T")
SessionFactory = Callable[[], AsyncSession]


class SqlJobQueue:
    """A queue over the table ``jobs``.

    Jobs are enqueued in the caller's transaction: ``queue.bind(session).enqueue(...)``, or many at once with
    ``await queue.enqueue_many(session, requests)``. The other methods each use a short transaction of their
    own from ``session_factory``.
    """

    def __init__(self, session_factory: SessionFactory, *, clock: Clock | None = None) -> None:
        self.session_factory = session_factory
        self.clock: Clock = clock or SystemClock()
        # Where the looks along the lines of keys and of tenants are, for each choice of names.
        self._places: defaultdict[object, Place] = defaultdict(Place)
        self._claims = FullScan()
        self._rescues = FullScan()
        self._found_at: dict[object, rows.Position] = {}
        self._rescued_at = 0.0

    @property
    def url(self) -> URL:
        """The address of the database."""
        return self.session_factory().sync_session.get_bind().engine.url

    def bind(self, session: Session | AsyncSession) -> Enqueuer:
        """Return an enqueuer that adds its jobs to ``session``."""
        return _Bound(sync_session(session), self.clock)

    def enqueue(self, name: str | JobKind, payload: Payload = None, **options: Any) -> Job:
        """Refuse: a job of a durable queue belongs to a transaction.

        Raises:
            NotInTransaction: always.
        """
        raise NotInTransaction(
            f"{name!r} was enqueued on a durable queue without a transaction; pass queue.bind(session) "
            "instead of queue, and commit the session"
        )

    async def enqueue_many(self, session: AsyncSession, requests: Sequence[JobRequest]) -> list[str]:
        """Insert many jobs in the transaction of ``session``, in one statement, and return their ids."""
        now = self.clock.now()
        with enqueueing_many(requests):
            return await session.run_sync(lambda sync: insert_jobs(sync, requests, now=now))

    async def enqueue_unique(
        self, session: AsyncSession, name: str | JobKind, payload: Payload = None, **options: Any
    ) -> Enqueued:
        """Enqueue one job in the transaction of ``session`` now, and return the job that stands for it.

        The options are those of ``enqueue``. With ``unique`` that job may be one that was there already. A
        duplicate that another transaction has not committed yet is waited for.
        """
        now = self.clock.now()
        request = make_request(name, payload, now=now, **options)
        (enqueued,) = await session.run_sync(lambda sync: enqueue_all(sync, [request], now=now))
        return enqueued

    async def enqueue_alone(self, name: str | JobKind, payload: Payload = None, **options: Any) -> Enqueued:
        """Enqueue one job in a transaction of its own, for work that goes with no other change.

        On return it is committed. On PostgreSQL it is one statement, the quickest way to enqueue one job. The
        options and what is returned are those of ``enqueue_unique``.
        """
        now = self.clock.now()
        request = make_request(name, payload, now=now, **options)
        return await self._by_statements(lambda session: enqueue_committing(session, request, now=now))

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
        if limit < 1 or (names is not None and not names):
            return []
        terms = ClaimTerms(now or self.clock.now(), names, versions, queues, lease_seconds)
        place = self._places[LIMIT, frozenset(names or ())]
        due: list[Any] = []

        def claim(session: Session) -> list[Job]:
            claimed = self._claim(session, limit, terms)
            reached("after_claim")
            if not claimed:
                due.extend(due_limited(session, limit, terms, place=place))
            return claimed

        def claim_limited_first(session: Session) -> list[Job]:
            claimed = claim_limited(session, limit, terms, place=place)
            if _has_room(claimed, limit):
                claimed += self._claim(session, limit - len(claimed), terms)
            reached("after_claim")
            return claimed

        if has_limits:
            claimed = await self._in_transaction(claim_limited_first)
        else:
            claimed = await self._by_statements(claim)
        if due:
            claimed = await self._in_transaction(lambda session: take(session, due, limit, terms))
        reached("after_claim_commit")
        return claimed

    async def claim_in_turn(
        self,
        limit: int,
        *,
        each: int,
        passing_over: Collection[str] = (),
        names: Collection[str] | None = None,
        versions: Mapping[str, int] | None = None,
        queues: Collection[str] | None = None,
        now: datetime | None = None,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
    ) -> list[Job]:
        """Lease up to ``limit`` due jobs of tenants in turn, up to ``each`` of one, whatever waits before.

        Each call goes on where the one before ended. Tenants in ``passing_over`` get no turn, nor do jobs
        without a tenant; for all else see ``claim``.
        """
        terms = ClaimTerms(now or self.clock.now(), names, versions, queues, lease_seconds)
        place = self._places[TENANT, frozenset(names or ())]
        due: list[Any] = []

        def claim(session: Session) -> list[Job]:
            due.extend(due_in_turn(session, terms, each=each, passing_over=passing_over, place=place))
            return [] if not due or are_limited(due) else take(session, due, limit, terms)

        claimed = await self._by_statements(claim)
        if are_limited(due):
            claimed = await self._in_transaction(lambda session: take(session, due, limit, terms))
        return claimed

    async def finish(self, finishes: Iterable[Finish]) -> set[str]:
        """Write the transitions of jobs that are still held; see ``JobQueue.finish``."""
        ends = list(finishes)
        is_one_statement = not rows.may_be_cancelled(ends)
        run = self._by_statements if is_one_statement else self._in_transaction
        return await run(lambda session: rows.finish_jobs(session, ends))

    async def extend(self, jobs: Iterable[Job], *, lease_seconds: float) -> set[str]:
        """Extend leases; see ``JobQueue.extend``."""
        claimed = list(jobs)
        return await self._by_statements(
            lambda session: rows.extend_jobs(session, claimed, lease_seconds=lease_seconds)
        )

    async def wishes_to_cancel(self, jobs: Iterable[Job]) -> dict[str, str]:
        """Return which of these jobs somebody wants cancelled, with the reasons by id."""
        ids = [job.id for job in jobs]
        return await self._by_statements(lambda session: rows.cancellations_of(session, ids))

    async def release(self, jobs: Iterable[Job]) -> set[str]:
        """Give jobs and their attempts back; see ``JobQueue.release``."""
        claimed = list(jobs)
        released = await self._in_transaction(lambda session: rows.release_jobs(session, claimed))
        self._claims.force()
        return released

    async def rescue(self, *, now: datetime | None = None, limit: int = 1_000) -> Rescued:
        """Return expired leases; see ``JobQueue.rescue``."""
        at = now or self.clock.now()
        rescued = await self._in_transaction(lambda session: self._rescue(session, now=at, limit=limit))
        if any(rescued):
            self._claims.force()
        return rescued

    async def prune(
        self, *, finished_before: datetime, states: Collection[JobState] = FINISHED, limit: int = 1_000
    ) -> int:
        """Delete old finished jobs, and what no rate needs any more; see ``JobQueue.prune``."""

        def prune(session: Session) -> int:
            prune_rates(session, now=self.clock.now(), limit=limit)
            return rows.prune_jobs(session, finished_before=finished_before, states=states, limit=limit)

        return await self._in_transaction(prune)

    async def find(self, job_id: str) -> StoredJob | None:
        """Return one job as it is stored."""

        def find(session: Session) -> StoredJob | None:
            table = statements.jobs
            columns = (*statements.JOB_COLUMNS, table.c.state, table.c.lease_until, table.c.finished_at)
            row = session.execute(select(*columns).where(table.c.id == job_id)).one_or_none()
            if row is None:
                return None
            job = rows.job_from_row(row[:-3], database_of(session))
            return StoredJob(job, JobState(row.state), row.lease_until, row.finished_at)

        return await self._by_statements(find)

    def for_heartbeat(self) -> SqlJobQueue | None:
        """Return this queue over an engine of its own, for another thread; see ``JobQueue.for_heartbeat``."""
        engine = self.session_factory().sync_session.get_bind().engine
        if engine.url.database in (None, "", ":memory:"):
            return None
        # The pooler's mode is one without a pool, which is what a call every few seconds wants.
        own: AsyncEngine = make_engine(engine.url, behind_transaction_pooler=True)
        return SqlJobQueue(make_session_factory(own), clock=self.clock)

    async def dispose(self) -> None:
        """Close the connections of the engine; only for a queue that ``for_heartbeat`` made."""
        async with self.session_factory() as session:
            bind = session.bind
        if isinstance(bind, AsyncEngine):
            await bind.dispose()

    def _claim(self, session: Session, limit: int, terms: ClaimTerms) -> list[Job]:
        """Claim from all of the index, or while that is slow from where a job was found last."""
        key = str((terms.names, terms.versions, terms.queues))
        start = self._found_at.get(key)
        if start is None or self._claims.is_due:
            with self._claims.made(session) as found:
                claimed = rows.claim_jobs(session, limit, terms)
                found.append(len(claimed))
        else:
            claimed = rows.claim_jobs(session, limit, terms, start=start)
        if claimed:
            self._found_at[key] = claim_order(claimed[0])
        return claimed

    def _rescue(self, session: Session, *, now: datetime, limit: int) -> Rescued:
        """Rescue from all of the index, or while that is slow what expired since that was done."""
        if not self._rescues.is_due:
            since_seconds = time.monotonic() - self._rescued_at + _RESCUE_OVERLAP_SECONDS
            return rows.rescue_jobs(session, now=now, limit=limit, since_seconds=since_seconds)
        self._rescued_at = time.monotonic()
        with self._rescues.made(session) as found:
            rescued = rows.rescue_jobs(session, now=now, limit=limit)
            found.append(sum(rescued))
        return rescued

    async def _by_statements(self, work: Callable[[Session], T]) -> T:
        return await by_statements(self.session_factory, work)

    async def _in_transaction(self, work: Callable[[Session], T]) -> T:
        async with self.session_factory() as session:
            result = await session.run_sync(work)
            await commit(session)
            return result


def _has_room(claimed: Sequence[Job], limit: int) -> bool:
    """Whether more may be claimed: a rescued job may be what killed its process, and is run alone."""
    return len(claimed) < limit and not any(job.rescues for job in claimed)


class _Bound:
    """A durable queue in the transaction of one session: jobs are its pending objects until the flush."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def enqueue(self, name: str | JobKind, payload: Payload = None, **options: Any) -> Job:
        now = self._clock.now()
        return add_job(self._session, make_request(name, payload, now=now, **options), now=now)
