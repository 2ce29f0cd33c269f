"""Archiving usage: events that were invoiced long ago move into a table of their own, day by day.

Moved, not deleted: whatever reads recorded usage reads both tables, so a replay is still a duplicate and a
day is still recomputed with all of its events. The live table and its indexes stay as large as what is young.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple, TypeAlias, cast

import structlog
from sqlalchemy import (
    ColumnElement,
    Delete,
    Insert,
    Integer,
    Select,
    Table,
    bindparam,
    delete,
    exists,
    insert,
    literal,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from svc_infra.billing.columns import TenantText
from svc_infra.billing.invoice_models import Invoice, UsageChange
from svc_infra.billing.usage_days import AGGREGATED_DAYS
from svc_infra.billing.usage_lock import hold_back_usage
from svc_infra.billing.usage_models import ArchivedUsage, UsageAggregate, UsageDirtyDay, UsageEvent
from svc_infra.clock import Clock, SystemClock
from svc_infra.db.base import IdText, UtcDateTime
from svc_infra.db.rowset import Rowset
from svc_infra.jobs.loop import run_loop

log = structlog.get_logger(__name__)

DAYS_AT_A_TIME = 500
EVENTS_AT_A_TIME = 5_000
_POLL_SECONDS = 3_600.0
# Whoever records usage waits behind us for the table, so that we must not wait for long ourselves.
_NO_LONG_WAIT = text("SET LOCAL lock_timeout = '1s'")

Place: TypeAlias = tuple[datetime, str, str]
"""Where a walk through the days has come to: the day's start, its tenant, the aggregate's id."""

_EVENT, _ARCHIVE, _DAY = (
    cast("Table", model.__table__) for model in (UsageEvent, ArchivedUsage, UsageAggregate)
)
_COLUMNS = [column.name for column in _EVENT.columns]
_CHOSEN = Rowset("chosen_events", tenant_id=TenantText, id=IdText)


class Archived(NamedTuple):
    """What a batch moved; ``place`` is where the next one goes on, None at the end."""

    days: int
    events: int
    place: Place | None


def archive_usage(
    session: Session,
    *,
    before: datetime,
    now: datetime,
    after: Place | None = None,
    limit: int = EVENTS_AT_A_TIME,
) -> Archived:
    """Archive a batch of events of days that ended until ``before``. Does not commit.

    Of days that an issued invoice covers and no draft, and of metrics with nothing that waits to be counted
    or settled. On PostgreSQL recording usage waits for the commit: an insert that ran beside it could find a
    key neither here nor there.
    """
    days = session.execute(_candidates(before, after)).all()
    if not days:
        return Archived(0, 0, None)
    dialect = session.get_bind().dialect.name
    if dialect == "postgresql":
        session.execute(_NO_LONG_WAIT)
    hold_back_usage(session)
    locked = set(session.scalars(_locked([(day.tenant_id, day.id) for day in days], before)))
    rows = [
        (at, day.tenant_id, day.metric, day.period_start, day.period_end, day.id)
        for at, day in enumerate(days)
        if day.id in locked
    ]
    last = days[-1]
    place = None if len(days) < DAYS_AT_A_TIME else (last.period_start, last.tenant_id, last.id)
    if not rows:
        return Archived(0, 0, place)
    parameters = AGGREGATED_DAYS.parameters(dialect, rows)
    chosen = session.connection().execute(_choose(dialect), {**parameters, "limit": limit}).all()
    if chosen:
        events = _CHOSEN.parameters(dialect, [tuple(each) for each in chosen])
        session.connection().execute(_copy(dialect), {**events, "now": now})
        session.connection().execute(_delete(dialect), events)
    closed = session.connection().execute(_close(dialect), {**parameters, "now": now}).all()
    # A day may have more events than a batch takes; then the next one begins with it again.
    return Archived(len(closed), len(chosen), after if len(chosen) == limit else place)


class UsageArchiver:
    """Archives what is older than so many days, a batch in a transaction, once an hour to the end.

    Several workers may; with 0 days nothing is archived.
    """

    def __init__(
        self,
        session_factory: async_sessionmaker[AsyncSession],
        clock: Clock | None = None,
        *,
        after_days: float,
    ) -> None:
        self._session_factory = session_factory
        self._clock = clock or SystemClock()
        self._kept = timedelta(days=after_days)
        self._place: Place | None = None

    async def archive(self) -> bool:
        """Archive a batch; True if there may be more."""
        now = self._clock.now()
        async with self._session_factory.begin() as session:
            done = await session.run_sync(archive_usage, before=now - self._kept, now=now, after=self._place)
        has_more = done.place is not None or done.events == EVENTS_AT_A_TIME
        self._place = done.place if has_more else None
        if done.events:
            log.info("usage.archived", events=done.events, days=done.days)
        return has_more

    async def run(self, stop: asyncio.Event) -> None:
        """Archive until ``stop`` is set."""
        if self._kept:
            await run_loop("billing.archive", self.archive, stop=stop, poll_seconds=_POLL_SECONDS)


def _candidates(before: datetime, after: Place | None) -> Select[str, str, str, datetime, datetime]:
    day = UsageAggregate
    place = (day.period_start, day.tenant_id, day.id)
    found = select(day.id, day.tenant_id, day.metric, day.period_start, day.period_end).where(
        *_may_be_archived(before)
    )
    if after is not None:
        found = found.where(tuple_(*place) > tuple_(*after))
    return found.order_by(*place).limit(DAYS_AT_A_TIME)


def _locked(keys: list[tuple[str, str]], before: datetime) -> Select[str]:
    """Of the days that still may be archived those that nobody else is at, locked against a recompute."""
    day = UsageAggregate
    found = select(day.id).where(tuple_(day.tenant_id, day.id).in_(keys), *_may_be_archived(before))
    return found.with_for_update(skip_locked=True, of=day)


def _may_be_archived(before: datetime) -> list[ColumnElement[bool]]:
    day, invoice, mark, note = UsageAggregate, Invoice, UsageDirtyDay, UsageChange
    covering = (
        invoice.tenant_id == day.tenant_id,
        invoice.kind == "period",
        invoice.period_start <= day.period_start,
        invoice.period_end >= day.period_end,
    )
    return [
        day.archived_at.is_(None),
        day.period_end <= before,
        exists().where(*covering, invoice.status.not_in(["draft", "void"])),
        ~exists().where(*covering, invoice.status == "draft"),
        ~exists().where(mark.tenant_id == day.tenant_id, mark.metric == day.metric, mark.day_start < before),
        ~exists().where(
            note.tenant_id == day.tenant_id, note.metric == day.metric, note.month < before.date()
        ),
    ]


@cache
def _choose(dialect: str) -> Select[Any]:
    days, event = AGGREGATED_DAYS.table(dialect), _EVENT.c
    of_day = select(event.tenant_id, event.id).where(
        event.tenant_id == days.c.tenant_id,
        event.metric == days.c.metric,
        event.at_ts >= days.c.day_start,
        event.at_ts < days.c.day_end,
    )
    limit = bindparam("limit", type_=Integer)
    if dialect == "postgresql":
        # From the days to the events by their index, whatever the planner believes of the tables' sizes.
        each = of_day.order_by(event.at_ts).limit(limit).lateral("each")
        return select(each.c.tenant_id, each.c.id).select_from(days.join(each, true())).limit(limit)
    return of_day.limit(limit)


@cache
def _copy(dialect: str) -> Insert:
    chosen, event = _CHOSEN.table(dialect), _EVENT.c
    rows = select(*(event[name] for name in _COLUMNS), bindparam("now", type_=UtcDateTime)).where(
        event.tenant_id == chosen.c.tenant_id, event.id == chosen.c.id
    )
    return insert(_ARCHIVE).from_select([*_COLUMNS, "archived_at"], rows)


@cache
def _delete(dialect: str) -> Delete:
    chosen = _CHOSEN.table(dialect)
    return delete(_EVENT).where(
        tuple_(_EVENT.c.tenant_id, _EVENT.c.id).in_(select(chosen.c.tenant_id, chosen.c.id))
    )


@cache
def _close(dialect: str) -> ReturningUpdate[Any]:
    """Note the days that have no event left."""
    days, event = AGGREGATED_DAYS.table(dialect), _EVENT.c
    left = select(literal(1)).where(
        event.tenant_id == _DAY.c.tenant_id,
        event.metric == _DAY.c.metric,
        event.at_ts >= _DAY.c.period_start,
        event.at_ts < _DAY.c.period_end,
    )
    return (
        update(_DAY)
        .where(
            tuple_(_DAY.c.tenant_id, _DAY.c.id).in_(select(days.c.tenant_id, days.c.aggregate_id)),
            left.limit(1).correlate(_DAY).scalar_subquery().is_(None),
        )
        .values(archived_at=bindparam("now", type_=UtcDateTime))
        .returning(_DAY.c.id)
    )
