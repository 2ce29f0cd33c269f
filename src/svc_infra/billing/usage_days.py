"""The days of usage that are to be recomputed or announced, by their marks and totals."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    CompoundSelect,
    DateTime,
    Delete,
    FromClause,
    Integer,
    Select,
    Table,
    bindparam,
    delete,
    false,
    literal,
    select,
    tuple_,
    union,
)
from sqlalchemy.orm import Session

from svc_infra.billing.columns import MetricText, TenantText
from svc_infra.billing.periods import Period
from svc_infra.billing.usage_models import UsageAggregate, UsageDirtyDay
from svc_infra.db.base import IdText, UtcDateTime
from svc_infra.db.rowset import Rowset

# Their tables, not the entities: statements on these go past the unit of work.
_MARK, _AGGREGATE = (cast("Table", model.__table__) for model in (UsageDirtyDay, UsageAggregate))
AGGREGATED_DAYS = Rowset(
    "days",
    position=Integer,
    tenant_id=TenantText,
    metric=MetricText,
    day_start=DateTime(timezone=True),
    day_end=DateTime(timezone=True),
    aggregate_id=IdText,
)
"""Days with their places in the caller's order and the ids of their stored totals."""
# So many marks are looked through for the days of a batch; busy days have many each.
_MARKS_PER_DAY = 20


class DayKey(NamedTuple):
    """One of a tenant's local days of a metric."""

    tenant_id: str
    metric: str
    day: Period


def dirty_days(
    session: Session, *, ended_before: datetime, limit: int | None = None, after: DayKey | None = None
) -> list[DayKey]:
    """Return the days that need the aggregation job: marked or not yet published, in key order.

    Only days that ended at ``ended_before`` or earlier; at most ``limit``, beginning behind ``after``.
    """
    days = _dirty_days().subquery()
    order = (days.c.tenant_id, days.c.metric, days.c.day_start)
    query = select(days).order_by(*order).limit(limit)
    if after is not None:
        behind = zip(order, (after.tenant_id, after.metric, after.day.start), strict=True)
        query = query.where(tuple_(*order) > tuple_(*[literal(value, c.type) for c, value in behind]))
    return [day_key(row) for row in session.connection().execute(query, {"ended_before": ended_before})]


def marked_days(session: Session, *, limit: int) -> list[DayKey]:
    """Return days that are marked, those of the oldest marks, at most ``limit``."""
    return [day_key(row) for row in session.connection().execute(_oldest_marks(limit))]


def any_mark() -> Select[Any]:
    """A mark of any day."""
    return select(_MARK.c.id).limit(1)


def day_key(row: Any) -> DayKey:
    """The day of a row of marks or totals."""
    return DayKey(row.tenant_id, row.metric, Period(row.day_start, row.day_end))


def delete_of_days(table: Table, days: FromClause) -> Delete:
    """Delete the rows of a table that are of one of these days, by tenant, metric and ``day_start``."""
    # An alias, or the subquery would mean the row that is being deleted and be run for each.
    row = table.alias("of_days").c
    gone = select(row.id).where(
        row.tenant_id == days.c.tenant_id, row.metric == days.c.metric, row.day_start == days.c.day_start
    )
    return delete(table).where(table.c.id.in_(gone))


@cache
def _oldest_marks(limit: int) -> Select[Any]:
    mark = _MARK.c
    oldest = select(_MARK).order_by(mark.id).limit(limit * _MARKS_PER_DAY).subquery().c
    days = (oldest.tenant_id, oldest.metric, oldest.day_start, oldest.day_end)
    return select(*days).distinct().limit(limit)


@cache
def _dirty_days() -> CompoundSelect[Any]:
    mark, stored = _MARK.c, _AGGREGATE.c
    ended_before = bindparam("ended_before", type_=UtcDateTime)
    return union(
        select(mark.tenant_id, mark.metric, mark.day_start, mark.day_end).where(mark.day_end <= ended_before),
        select(
            stored.tenant_id,
            stored.metric,
            stored.period_start.label("day_start"),
            stored.period_end.label("day_end"),
        ).where(stored.is_published.is_(false()), stored.period_end <= ended_before),
    )
