"""Daily totals of usage, recomputed by replacement for the days that are marked as changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    Boolean,
    Delete,
    FromClause,
    Insert,
    ScalarSelect,
    Select,
    Table,
    Update,
    bindparam,
    false,
    literal,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from svc_infra.billing.columns import TenantText
from svc_infra.billing.meters import Meter
from svc_infra.billing.money import MONEY_CONTEXT
from svc_infra.billing.periods import Period
from svc_infra.billing.usage_changes import leave_notes
from svc_infra.billing.usage_days import AGGREGATED_DAYS, DayKey, day_key, delete_of_days, dirty_days
from svc_infra.billing.usage_dimensions import day_totals, replace_days
from svc_infra.billing.usage_meters import meterings_of
from svc_infra.billing.usage_models import (
    ArchivedUsage,
    UsageAggregate,
    UsageCorrection,
    UsageDirtyDay,
    UsageEvent,
    UsageMeter,
)
from svc_infra.db.base import IdText, Quantity, UtcDateTime, new_id
from svc_infra.db.exact import exact_sum, ready_connection
from svc_infra.db.rowset import Rowset

__all__ = [
    "DailyAggregate",
    "DayKey",
    "DayTotal",
    "consume_marks_of",
    "dirty_days",
    "list_daily",
    "recompute",
]

DAY = "day"
_ZERO = Decimal(0)

# Their tables, not the entities: statements on these go past the unit of work.
_EVENT, _ARCHIVE, _CORRECTION, _MARK, _AGGREGATE, _METER = (
    cast("Table", model.__table__)
    for model in (UsageEvent, ArchivedUsage, UsageCorrection, UsageDirtyDay, UsageAggregate, UsageMeter)
)

_TOTALS = Rowset("totals", tenant_id=TenantText, aggregate_id=IdText, total=Quantity(50))
_TENANTS = Rowset("tenants_asked", tenant_id=TenantText)


@dataclass(frozen=True, slots=True)
class DayTotal:
    """The total quantity of a day as it is now stored.

    ``has_changed`` says whether this recompute changed it; ``is_published`` whether this very total was
    announced with ``billing.usage_aggregated`` before, which a day's first total never was.
    """

    key: DayKey
    aggregate_id: str
    total: Decimal
    has_changed: bool
    is_published: bool


class DailyAggregate(NamedTuple):
    """A stored total, as it is listed."""

    metric: str
    period_start: datetime
    granularity: str
    total: Decimal


def recompute(
    session: Session,
    keys: Iterable[DayKey],
    *,
    now: datetime,
    will_publish: bool = False,
    leaves_notes: bool = True,
) -> list[DayTotal]:
    """Recompute the totals of ``keys`` from the events and return them in key order, each key once.

    The statements are as many for one day as for thousands (of metrics with a meter, per metric). Their
    order is what keeps a total right under concurrent ingestion and recomputing: make or lock the aggregate
    rows, consume their marks, and only then, in a later statement, which sees every event whose mark was
    consumed, add up. An event that commits after that leaves its own mark.

    With ``will_publish`` the caller promises to announce, in the same transaction, every total that comes
    back with ``is_published`` False; it is then stored as published. Only invoicing, which looks at what
    changed itself, has no notes left for it.
    """
    ordered = sorted(set(keys))
    if not ordered:
        return []
    connection = ready_connection(session)
    dialect = connection.dialect.name
    rows = [
        (position, key.tenant_id, key.metric, key.day.start, key.day.end, new_id())
        for position, key in enumerate(ordered)
    ]
    parameters = AGGREGATED_DAYS.parameters(dialect, rows)
    connection.execute(_insert_or_lock(dialect), {**parameters, "now": now})
    connection.execute(_consume_marks(dialect), parameters)
    if leaves_notes:
        leave_notes(connection, ordered)
    totals = _recomputed(session, ordered, rows)
    stale = [
        (total.key.tenant_id, total.aggregate_id, total.total)
        for total in totals
        if total.has_changed or (will_publish and not total.is_published)
    ]
    if stale:
        values = {**_TOTALS.parameters(dialect, stale), "now": now, "is_published": will_publish}
        connection.execute(_store(dialect), values)
    return totals


def consume_marks_of(
    session: Session,
    tenant_ids: Iterable[str],
    period: Period,
    *,
    now: datetime,
    leaves_notes: bool = True,
) -> list[DayTotal]:
    """Recompute every marked day of these tenants that begins in ``period``: what invoicing does first.

    Of the metrics with a weighted sum also those before it.
    """
    dialect = session.get_bind().dialect.name
    parameters = _TENANTS.parameters(dialect, [(tenant_id,) for tenant_id in sorted(set(tenant_ids))])
    bounds = {"period_start": period.start, "period_end": period.end}
    rows = session.connection().execute(_marked_days(dialect), {**parameters, **bounds}).all()
    return recompute(session, [day_key(row) for row in rows], now=now, leaves_notes=leaves_notes)


def list_daily(
    session: Session,
    tenant_id: str,
    metric: str,
    *,
    after: datetime | None = None,
    until: datetime | None = None,
    limit: int = 100,
) -> list[DailyAggregate]:
    """Return a tenant's stored totals of a metric by day, at most ``limit``.

    Days that begin later than ``after`` (the ``period_start`` that the page before ended with) and earlier
    than ``until``. What was recorded since a day's last aggregation is not in its total yet.
    """
    stored = _AGGREGATE.c
    query = (
        select(stored.metric, stored.period_start, stored.granularity, stored.total)
        .where(stored.tenant_id == tenant_id, stored.metric == metric, stored.granularity == DAY)
        .order_by(stored.period_start)
        .limit(limit)
    )
    if after is not None:
        query = query.where(stored.period_start > after)
    if until is not None:
        query = query.where(stored.period_start < until)
    return [DailyAggregate(*row) for row in session.connection().execute(query)]


def _recomputed(session: Session, keys: Sequence[DayKey], rows: Sequence[tuple[Any, ...]]) -> list[DayTotal]:
    """What the events of the days make, beside what is stored: by the plain sum or by the metric's meter."""
    meterings = meterings_of(session, {key.metric for key in keys})
    connection = session.connection()
    dialect = connection.dialect.name
    plain = [row for row in rows if meterings[row[2]].is_plain]
    totals: dict[int, DayTotal] = {}
    if plain:
        for found in connection.execute(_sum(dialect), AGGREGATED_DAYS.parameters(dialect, plain)):
            total = found.recorded or _ZERO
            if found.archived is not None:
                total = MONEY_CONTEXT.add(total, found.archived)
            if found.corrected is not None:
                total = MONEY_CONTEXT.subtract(total, found.corrected)
            totals[found.position] = _compared(keys[found.position], found, total)
    by_metric: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows:
        if not meterings[row[2]].is_plain:
            by_metric.setdefault(row[2], []).append(row)
    for metric, of_metric in by_metric.items():
        days = [row[:-1] for row in of_metric]
        replace_days(session, meterings[metric], days)
        measured = day_totals(session, meterings[metric].meter, days)
        for found in connection.execute(_stored(dialect), AGGREGATED_DAYS.parameters(dialect, of_metric)):
            totals[found.position] = _compared(keys[found.position], found, measured[found.position])
    return [totals[position] for position in range(len(keys))]


def _compared(key: DayKey, row: Any, recomputed: Decimal | None) -> DayTotal:
    total = recomputed or _ZERO
    has_changed = total != row.total
    return DayTotal(key, row.id, total, has_changed, row.is_published and not has_changed)


@cache
def _insert_or_lock(dialect: str) -> Insert:
    days = AGGREGATED_DAYS.table(dialect)
    values = {
        "id": days.c.aggregate_id,
        "tenant_id": days.c.tenant_id,
        "metric": days.c.metric,
        "period_start": days.c.day_start,
        "period_end": days.c.day_end,
        "granularity": literal(DAY),
        "total": literal(Decimal(0), Quantity(50)),
        "is_published": false(),
        "updated_at": bindparam("now", type_=UtcDateTime),
    }
    # In key order, so that two recomputes never wait for each other in a circle. SQLite's grammar needs
    # the WHERE to tell ON CONFLICT from a join's ON.
    rows = select(*values.values()).where(true()).order_by(days.c.position)
    upsert = postgresql.insert(_AGGREGATE) if dialect == "postgresql" else sqlite.insert(_AGGREGATE)
    # An update that its WHERE keeps from being done still locks the row (PostgreSQL, "ON CONFLICT Clause").
    return upsert.from_select(list(values), rows).on_conflict_do_update(
        index_elements=["tenant_id", "metric", "period_start", "granularity"],
        set_={"total": _AGGREGATE.c.total},
        where=false(),
    )


@cache
def _consume_marks(dialect: str) -> Delete:
    return delete_of_days(_MARK, AGGREGATED_DAYS.table(dialect))


@cache
def _sum(dialect: str) -> Select[Any]:
    # What was recorded, and of that what was corrected: to look up every event among the corrections instead
    # costs as much again as to add them up. One statement, so that both are seen at one instant.
    days = AGGREGATED_DAYS.table(dialect)
    sums = {"recorded": _EVENT, "archived": _ARCHIVE, "corrected": _CORRECTION}
    return _stored_of(days).add_columns(*(_sum_in_day(days, table.c).label(n) for n, table in sums.items()))


def _sum_in_day(days: FromClause, row: Any) -> ScalarSelect[Any]:
    # A subquery per day, so that both databases go from the days to the rows by their index.
    return (
        select(exact_sum(row.amount))
        .where(
            row.tenant_id == days.c.tenant_id,
            row.metric == days.c.metric,
            row.at_ts >= days.c.day_start,
            row.at_ts < days.c.day_end,
        )
        .correlate(days)
        .scalar_subquery()
    )


@cache
def _stored(dialect: str) -> Select[Any]:
    return _stored_of(AGGREGATED_DAYS.table(dialect))


def _stored_of(days: FromClause) -> Select[Any]:
    stored = _AGGREGATE.c
    return select(days.c.position, stored.id, stored.total, stored.is_published).where(
        stored.tenant_id == days.c.tenant_id,
        stored.metric == days.c.metric,
        stored.period_start == days.c.day_start,
        stored.granularity == DAY,
    )


@cache
def _store(dialect: str) -> Update:
    totals = _TOTALS.table(dialect)
    return (
        update(_AGGREGATE)
        .where(_AGGREGATE.c.tenant_id == totals.c.tenant_id, _AGGREGATE.c.id == totals.c.aggregate_id)
        .values(
            total=totals.c.total,
            is_published=bindparam("is_published", type_=Boolean),
            updated_at=bindparam("now", type_=UtcDateTime),
            archived_at=null(),  # what changed it is not archived yet
        )
    )


@cache
def _marked_days(dialect: str) -> Select[Any]:
    asked, mark = _TENANTS.table(dialect), _MARK.c
    return (
        select(mark.tenant_id, mark.metric, mark.day_start, mark.day_end)
        .where(
            mark.tenant_id == asked.c.tenant_id,
            mark.day_start < bindparam("period_end", type_=UtcDateTime),
            or_(
                mark.day_start >= bindparam("period_start", type_=UtcDateTime),
                # The level that such a period begins with comes from the days before it.
                mark.metric.in_(select(_METER.c.metric).where(_METER.c.meter == Meter.WEIGHTED_SUM.value)),
            ),
        )
        .distinct()
    )
