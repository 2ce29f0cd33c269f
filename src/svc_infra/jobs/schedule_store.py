"""Where schedules keep how far they have fired: in the database, or in memory beside a memory queue."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, Protocol

from sqlalchemy import String, bindparam, delete, exists, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra.db.base import UtcDateTime
from svc_infra.db.rowset import Rowset
from svc_infra.db.session import commit
from svc_infra.failpoints import reached
from svc_infra.jobs.enqueueing import enqueue_all, insert_jobs
from svc_infra.jobs.job import JobRequest
from svc_infra.jobs.models import CronFireRow, ScheduleRow
from svc_infra.jobs.queue import Enqueuer
from svc_infra.jobs.rows import dialect_of

_schedules = ScheduleRow.metadata.tables[ScheduleRow.__tablename__]
_fires = CronFireRow.metadata.tables[CronFireRow.__tablename__]
_NEW_FIRES = Rowset("new_fires", schedule=String, fire_at=UtcDateTime, job_id=String)


class Fire(NamedTuple):
    """One fire and the job that it makes; a missed fire, which is only recorded, makes none."""

    fire_at: datetime
    request: JobRequest | None


class ScheduleStore(Protocol):
    """What makes a fire happen once, however many schedulers there are."""

    async def fired_until(self, names: Collection[str]) -> dict[str, datetime]:
        """Return how far the schedules of these names have been dealt with; a new one is absent."""
        ...

    async def start(self, starts: Mapping[str, datetime], *, now: datetime) -> None:
        """Store where new schedules start; one that is there already is left as it is."""
        ...

    async def fire(
        self, schedule: str, fires: Collection[Fire], *, fired_until: datetime, now: datetime
    ) -> int:
        """Record the fires nobody has recorded yet, enqueue their jobs and move on, in one transaction.

        Return how many jobs were enqueued.
        """
        ...

    async def prune(self, *, before: datetime, limit: int = 1_000) -> int:
        """Delete records of fires before then that no schedule can come back to; return how many."""
        ...


class SqlScheduleStore:
    """The tables ``schedules`` and ``cron_fires``; the primary key of the latter is the guarantee."""

    def __init__(self, session_factory: Callable[[], AsyncSession]) -> None:
        self._session_factory = session_factory

    async def fired_until(self, names: Collection[str]) -> dict[str, datetime]:
        async with self._session_factory() as session:
            rows = await session.execute(
                select(_schedules.c.name, _schedules.c.fired_until).where(_schedules.c.name.in_(names))
            )
            return {name: fired_until for name, fired_until in rows}

    async def start(self, starts: Mapping[str, datetime], *, now: datetime) -> None:
        rows = [{"name": name, "fired_until": at, "updated_at": now} for name, at in sorted(starts.items())]

        def insert_missing(session: Session) -> None:
            insert = sqlite.insert if dialect_of(session) == "sqlite" else postgresql.insert
            session.execute(insert(_schedules).values(rows).on_conflict_do_nothing())

        async with self._session_factory() as session:
            await session.run_sync(insert_missing)
            await commit(session)

    async def fire(
        self, schedule: str, fires: Collection[Fire], *, fired_until: datetime, now: datetime
    ) -> int:
        async with self._session_factory() as session:
            enqueued = await session.run_sync(
                lambda sync: _fire(sync, schedule, fires, fired_until=fired_until, now=now)
            )
            reached("in_tick")
            await commit(session)
            return enqueued

    async def prune(self, *, before: datetime, limit: int = 1_000) -> int:
        async with self._session_factory() as session:
            deleted = (await session.execute(_prune(), {"before": before, "limit": limit})).all()
            await commit(session)
            return len(deleted)


class InMemoryScheduleStore:
    """Schedules beside a memory queue, gone with the process."""

    def __init__(self, queue: Enqueuer) -> None:
        self._queue = queue
        self._fired_until: dict[str, datetime] = {}
        self._fires: set[tuple[str, datetime]] = set()

    async def fired_until(self, names: Collection[str]) -> dict[str, datetime]:
        return {name: self._fired_until[name] for name in names if name in self._fired_until}

    async def start(self, starts: Mapping[str, datetime], *, now: datetime) -> None:
        self._fired_until = {**starts, **self._fired_until}

    async def fire(
        self, schedule: str, fires: Collection[Fire], *, fired_until: datetime, now: datetime
    ) -> int:
        enqueued = 0
        for fire_at, request in fires:
            if (schedule, fire_at) in self._fires:
                continue
            self._fires.add((schedule, fire_at))
            if request is not None:
                self._queue.enqueue(
                    request.name,
                    request.payload,
                    queue=request.queue,
                    run_at=request.run_at,
                    unique=request.unique,
                    limit=request.limit,
                )
                enqueued += 1
        self._fired_until[schedule] = max(fired_until, self._fired_until[schedule])
        return enqueued

    async def prune(self, *, before: datetime, limit: int = 1_000) -> int:
        old = [key for key in self._fires if key[1] < before and key[1] <= self._fired_until[key[0]]][:limit]
        self._fires.difference_update(old)
        return len(old)


def _fire(
    session: Session, schedule: str, fires: Collection[Fire], *, fired_until: datetime, now: datetime
) -> int:
    """Insert the fires; whoever's row stands owns the fire, and only its owner enqueues the job."""
    dialect = dialect_of(session)
    is_paused = session.execute(_is_paused(), {"schedule": schedule}).scalar_one_or_none() is not None
    requests = {fire.fire_at: None if is_paused else fire.request for fire in fires}
    enqueued = 0
    if requests:
        rows = [(schedule, fire_at, None) for fire_at in sorted(requests)]
        parameters = {**_NEW_FIRES.parameters(dialect, rows), "now": now}
        won = sorted(session.execute(_insert_fires(dialect), parameters).scalars())
        owned = [(at, request) for at in won if (request := requests[at]) is not None]
        links = _enqueue(session, schedule, owned, now=now)
        if links:
            session.execute(_link_jobs(dialect), _NEW_FIRES.parameters(dialect, links))
        enqueued = len(links)
    session.execute(_advance(), {"schedule": schedule, "until": fired_until, "now": now})
    return enqueued


def _enqueue(
    session: Session, schedule: str, fires: Sequence[tuple[datetime, JobRequest]], *, now: datetime
) -> list[tuple[str, datetime, str]]:
    """Enqueue the jobs of fires; one that overlaps with an earlier one may have none of its own."""
    requests = [request for _, request in fires]
    if any(request.unique is not None for request in requests):
        made = [(done.job.id, done.is_new) for done in enqueue_all(session, requests, now=now)]
    else:
        made = [(job_id, True) for job_id in insert_jobs(session, requests, now=now)]
    return [
        (schedule, fire_at, job_id)
        for (fire_at, _), (job_id, is_new) in zip(fires, made, strict=True)
        if is_new
    ]


def record_fire(
    session: Session, schedule: str, request: JobRequest, *, fire_at: datetime, now: datetime
) -> str | None:
    """Record one fire out of turn with its job; return the job's id, or None if the fire was there."""
    dialect = dialect_of(session)
    parameters = _NEW_FIRES.parameters(dialect, [(schedule, fire_at, None)])
    if not session.execute(_insert_fires(dialect), {**parameters, "now": now}).scalars().all():
        return None
    (job_id,) = insert_jobs(session, [request], now=now)
    session.execute(_link_jobs(dialect), _NEW_FIRES.parameters(dialect, [(schedule, fire_at, job_id)]))
    return job_id


@cache
def _insert_fires(dialect: str) -> Any:
    new = _NEW_FIRES.table(dialect)
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    rows = select(new.c.schedule, new.c.fire_at, bindparam("now", type_=UtcDateTime))
    if dialect == "sqlite":
        # Without a WHERE, SQLite would read ON CONFLICT as the ON of a join.
        rows = rows.where(new.c.schedule.is_not(None))
    return (
        insert(_fires)
        .from_select(["schedule", "fire_at", "created_at"], rows)
        .on_conflict_do_nothing()
        .returning(_fires.c.fire_at)
    )


@cache
def _link_jobs(dialect: str) -> Any:
    new = _NEW_FIRES.table(dialect)
    return (
        update(_fires)
        .where(_fires.c.schedule == new.c.schedule, _fires.c.fire_at == new.c.fire_at)
        .values(job_id=new.c.job_id)
    )


@cache
def _is_paused() -> Any:
    """Locked, so that a pause that is being made comes before these fires or after them."""
    name = _schedules.c.name == bindparam("schedule", type_=String)
    return select(_schedules.c.paused_at).where(name).with_for_update()


@cache
def _advance() -> Any:
    """Never backwards: a scheduler that was asleep may come late with an older instant."""
    until = bindparam("until", type_=UtcDateTime)
    return (
        update(_schedules)
        .where(_schedules.c.name == bindparam("schedule", type_=String), _schedules.c.fired_until < until)
        .values(fired_until=until, updated_at=bindparam("now", type_=UtcDateTime))
    )


@cache
def _prune() -> Any:
    cannot_come_back = exists().where(
        _schedules.c.name == _fires.c.schedule, _schedules.c.fired_until >= _fires.c.fire_at
    )
    old = (
        select(_fires.c.schedule, _fires.c.fire_at)
        .where(_fires.c.fire_at < bindparam("before", type_=UtcDateTime), cannot_come_back)
        .limit(bindparam("limit"))
        .cte("old")
    )
    is_old = exists().where(old.c.schedule == _fires.c.schedule, old.c.fire_at == _fires.c.fire_at)
    return delete(_fires).where(is_old).returning(_fires.c.schedule)
