"""The second table of usage: days by dimension, for the metrics whose days do not simply add up.

A day's rows are replaced while its aggregate row is locked, by the recompute that consumed its marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Delete,
    FromClause,
    Insert,
    Integer,
    Select,
    String,
    Subquery,
    Table,
    bindparam,
    func,
    insert,
    literal,
    null,
    select,
    true,
    type_coerce,
    union_all,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import Session
from sqlalchemy.types import Text

from svc_infra.billing.columns import MetricText, TenantText
from svc_infra.billing.metering import Metering
from svc_infra.billing.meters import Meter
from svc_infra.billing.usage_days import delete_of_days
from svc_infra.billing.usage_models import (
    ArchivedUsage,
    UsageCorrection,
    UsageDimension,
    UsageEvent,
)
from svc_infra.db.base import Quantity
from svc_infra.db.exact import exact_max, exact_moment, exact_sum, latest_value
from svc_infra.db.metadata_text import metadata_text
from svc_infra.db.rowset import Rowset

_DAY = ("tenant_id", "metric", "day_start")
_EVENT, _ARCHIVE, _STORED, _CORRECTION = (
    cast("Table", model.__table__) for model in (UsageEvent, ArchivedUsage, UsageDimension, UsageCorrection)
)
_COLUMNS = ("dimension", "unique_value", "total", "events", "measure", "last_at", "last_id", *_DAY)
DAYS = Rowset(
    "metered_days",
    position=Integer,
    tenant_id=TenantText,
    metric=MetricText,
    day_start=DateTime(timezone=True),
    day_end=DateTime(timezone=True),
)


def is_counted(event: Any) -> ColumnElement[bool]:
    """Whether an event counts: it was neither voided nor amended."""
    corrected = _CORRECTION.c
    return ~(
        select(literal(1))
        .where(corrected.tenant_id == event.tenant_id, corrected.event_id == event.id)
        .exists()
    )


def replace_days(session: Session, metering: Metering, days: Sequence[tuple[Any, ...]]) -> None:
    """Make the rows of these days anew from their events; ``days`` are rows of ``DAYS``, of this metric."""
    connection = session.connection()
    dialect = connection.dialect.name
    parameters = DAYS.parameters(dialect, days)
    connection.execute(_delete_days(dialect), parameters)
    keys = {f"key_{number}": key for number, key in enumerate(metering.dimensions)}
    statement = _insert_days(dialect, metering.meter, len(keys))
    connection.execute(statement, {**parameters, **keys, "unique_key": metering.unique_key})


def day_totals(session: Session, meter: Meter, days: Iterable[tuple[Any, ...]]) -> dict[int, Any]:
    """What the meter makes of each day's rows, by position; of a weighted sum the net change of the day."""
    connection = session.connection()
    dialect = connection.dialect.name
    rows = connection.execute(_day_totals(dialect, meter), DAYS.parameters(dialect, days))
    return {position: total for position, total in rows}


def reduced(meter: Meter, row: Any) -> ColumnElement[Any]:
    """One quantity of several rows; not of a weighted sum, whose quantity depends on the period, too."""
    match meter:
        case Meter.SUM | Meter.WEIGHTED_SUM:
            return exact_sum(row.total)
        case Meter.COUNT:
            return type_coerce(func.sum(row.events), Quantity(50))
        case Meter.MAXIMUM:
            return exact_max(row.measure)
        case Meter.LATEST:
            return latest_value(row.measure, row.last_at, row.last_id)
        case Meter.UNIQUE_COUNT:
            return type_coerce(func.count(row.unique_value.distinct()), Quantity(50))


@cache
def _delete_days(dialect: str) -> Delete:
    return delete_of_days(_STORED, DAYS.table(dialect))


@cache
def _insert_days(dialect: str, meter: Meter, dimensions: int) -> Insert:
    days = DAYS.table(dialect)
    recorded = _recorded_on(dialect, days)
    event = recorded.c
    dimension = _dimension(dialect, event, dimensions)
    unique = metadata_text(event.metadata_json, bindparam("unique_key", type_=Text))
    is_unique = meter is Meter.UNIQUE_COUNT
    sums: list[ColumnElement[Any]] = [
        dimension.label("dimension"),
        (unique if is_unique else sql_cast(null(), Text)).label("unique_value"),
        exact_sum(event.amount).label("total"),
        func.count().label("events"),
        _measure(meter, event).label("measure"),
        func.max(event.at_ts).label("last_at"),
        _last_id(meter, event).label("last_id"),
    ]
    found = select(*sums).group_by(*([sums[0], sums[1]] if is_unique else [sums[0]]))
    if dialect == "postgresql":
        # From the days to the events by their index, whatever the planner believes of the tables' sizes.
        each = found.lateral("found")
        rows = select(*each.c, *(days.c[name] for name in _DAY)).select_from(days.join(each, true()))
    else:
        rows = found.add_columns(*(event[name] for name in _DAY)).group_by(event.position)
    return insert(_STORED).from_select(list(_COLUMNS), rows)


def _recorded_on(dialect: str, days: FromClause) -> Subquery:
    """The events of the days that count, archived or not; on SQLite each with its day."""
    given = [] if dialect == "postgresql" else [days.c.position, *(days.c[name] for name in _DAY)]
    parts = [
        select(row.id, row.amount, row.at_ts, row.metadata_json, *given).where(
            row.tenant_id == days.c.tenant_id,
            row.metric == days.c.metric,
            row.at_ts >= days.c.day_start,
            row.at_ts < days.c.day_end,
            is_counted(row),
        )
        for row in (_EVENT.c, _ARCHIVE.c)
    ]
    if dialect == "postgresql":
        parts = [part.correlate(days) for part in parts]
    return union_all(*parts).subquery("recorded")


@cache
def _day_totals(dialect: str, meter: Meter) -> Select[Any]:
    days, row = DAYS.table(dialect), _STORED.c
    total = select(reduced(meter, row)).where(
        row.tenant_id == days.c.tenant_id, row.metric == days.c.metric, row.day_start == days.c.day_start
    )
    return select(days.c.position, total.correlate(days).scalar_subquery())


def _dimension(dialect: str, event: Any, dimensions: int) -> ColumnElement[str]:
    """The values of the meter's dimensions as a JSON object: it says itself what was looked at."""
    parts: list[ColumnElement[Any]] = []
    for number in range(dimensions):
        key = sql_cast(bindparam(f"key_{number}", type_=Text), Text)
        parts += [key, metadata_text(event.metadata_json, key)]
    if not parts:
        return sql_cast(literal("{}"), Text)
    if dialect == "postgresql":
        return sql_cast(func.jsonb_build_object(*parts), Text)
    return func.json_object(*parts, type_=Text)


def _measure(meter: Meter, event: Any) -> ColumnElement[Any]:
    match meter:
        case Meter.MAXIMUM:
            return exact_max(event.amount)
        case Meter.LATEST:
            return latest_value(event.amount, event.at_ts, event.id)
        case Meter.WEIGHTED_SUM:
            return exact_moment(event.amount, event.at_ts)
        case _:
            return sql_cast(null(), Quantity(76))


def _last_id(meter: Meter, event: Any) -> ColumnElement[Any]:
    if meter is Meter.LATEST:
        return type_coerce(latest_value(event.id, event.at_ts, event.id), String)
    return sql_cast(null(), String)
