"""What was used over periods, by the metrics' meters: exact, and for many tenants in a few statements.

This is what invoicing rates. Marks of the periods have to be consumed first (``consume_marks_of``).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Table,
    Text,
    case,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.orm import Session

from svc_infra.billing.columns import MetricText, TenantText
from svc_infra.billing.dimensions import DEFAULT, DimensionFilter, filter_of
from svc_infra.billing.metering import Metering
from svc_infra.billing.meters import Meter
from svc_infra.billing.periods import Period
from svc_infra.billing.units import as_quantity
from svc_infra.billing.usage_dimensions import reduced
from svc_infra.billing.usage_meters import meterings_of
from svc_infra.billing.usage_models import UsageAggregate, UsageDimension
from svc_infra.db.base import UtcDateTime
from svc_infra.db.exact import exact_sum, ready_connection
from svc_infra.db.rowset import Rowset
from svc_infra.exceptions import InvalidMeter

_DAY, _DIMENSION = (cast("Table", model.__table__) for model in (UsageAggregate, UsageDimension))
_ZERO = Decimal(0)
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICROSECOND = timedelta(microseconds=1)

_PARTS = Rowset(
    "usage_parts",
    position=Integer,
    tenant_id=TenantText,
    metric=MetricText,
    period_start=UtcDateTime,
    period_end=UtcDateTime,
    dimension=Text,
)


class UsageQuery(NamedTuple):
    """What is asked for: a tenant's usage of a metric over a period bounded by its local midnights.

    ``filters`` are all the filters that share the metric out at that time (the default among them, if there
    is one) and ``wanted`` is the one of them that is asked for; without ``filters`` every event counts. With
    ``group_by`` there is one answer for each combination of the values of these metadata keys.
    """

    tenant_id: str
    metric: str
    period: Period
    filters: tuple[DimensionFilter, ...] = ()
    wanted: DimensionFilter = DEFAULT
    group_by: tuple[str, ...] = ()


class UsageQuantity(NamedTuple):
    """``measured`` is what the meter makes of the events; ``quantity`` is what of it is rated.

    ``group`` holds the values of the query's ``group_by`` keys, None for an event without the key; ``units``
    is how the one became the other, None where they are equal.
    """

    group: tuple[str | None, ...]
    measured: Decimal
    quantity: Decimal
    units: dict[str, Any] | None = None


_Bucket = tuple[int, tuple[str | None, ...]]  # (query, group)


def measure_usage(session: Session, queries: Sequence[UsageQuery]) -> list[list[UsageQuantity]]:
    """Answer each query, in the same order: one quantity, 0 without usage; grouped, one for each group.

    The statements are as many for one query as for thousands of them, per kind of meter.

    Raises:
        InvalidMeter: a query filters or groups by a key that is not a dimension of its metric's meter.
    """
    ready_connection(session)
    meterings = meterings_of(session, {query.metric for query in queries})
    plain: list[tuple[Any, ...]] = []
    by_meter: dict[Meter, list[int]] = defaultdict(list)
    for at, query in enumerate(queries):
        metering = meterings[query.metric]
        if query.filters or query.group_by:
            _check_keys(query, metering)
        elif metering.meter is Meter.SUM:  # the totals of the days say it already
            plain.append(_part(query, at))
            continue
        by_meter[metering.meter].append(at)
    answers: list[list[UsageQuantity]] = [[] for _ in queries]
    if plain:
        for at, total in _run(session, _plain_sums, plain):
            answers[at].append(_answer(meterings[queries[at].metric], (), total))
    measured: dict[_Bucket, Decimal] = {}
    for meter, chosen in by_meter.items():
        measured.update(_measure(session, meter, queries, chosen))
    for (at, group), value in sorted(measured.items(), key=_in_order):
        answers[at].append(_answer(meterings[queries[at].metric], group, value))
    for query, answer in zip(queries, answers, strict=True):
        if not answer and not query.group_by:
            answer.append(_answer(meterings[query.metric], (), _ZERO))
    return answers


def _measure(
    session: Session, meter: Meter, queries: Sequence[UsageQuery], chosen: Sequence[int]
) -> dict[_Bucket, Decimal]:
    """The values of these queries, all of metrics with this meter, by query and group."""
    buckets: list[_Bucket] = []
    rows = []
    whole = [at for at in chosen if not queries[at].filters and not queries[at].group_by]
    for at in whole:
        rows.append(_part(queries[at], len(buckets)))
        buckets.append((at, ()))
    for bucket, dimensions in _sorted_out(session, meter, queries, chosen).items():
        rows += [_part(queries[bucket[0]], len(buckets), dimension) for dimension in dimensions]
        buckets.append(bucket)
    if not rows:
        return {}
    if meter is not Meter.WEIGHTED_SUM:
        found = _run(session, _reductions(meter), rows)
        return {buckets[position]: value for position, value in found}
    return {
        buckets[position]: _level(queries[buckets[position][0]].period, before, total, moment)
        for position, before, total, moment in _run(session, _levels, rows)
    }


def _sorted_out(
    session: Session, meter: Meter, queries: Sequence[UsageQuery], chosen: Sequence[int]
) -> dict[_Bucket, list[str]]:
    """The stored dimensions that belong to each answer: every one falls under exactly one of the filters."""
    divided = [at for at in chosen if queries[at].filters or queries[at].group_by]
    found: dict[_Bucket, list[str]] = defaultdict(list)
    if divided:
        statement = _dimensions_before if meter is Meter.WEIGHTED_SUM else _dimensions_within
        for at, dimension in _run(session, statement, [_part(queries[at], at) for at in divided]):
            query, values = queries[at], json.loads(dimension)
            if not query.filters or filter_of(values, query.filters) == query.wanted:
                found[at, tuple(values.get(key) for key in query.group_by)].append(dimension)
    return found


def _level(period: Period, before: Decimal | None, total: Decimal | None, moment: Decimal | None) -> Decimal:
    """The average level over the period: what it began with, and each change for as long as it lasted."""
    start, end = ((bound - _EPOCH) // _MICROSECOND for bound in (period.start, period.end))
    lasting = Fraction(total or 0) * end - Fraction(moment or 0)
    return as_quantity(Fraction(before or 0) + lasting / (end - start))


def _answer(metering: Metering, group: tuple[str | None, ...], value: Decimal | None) -> UsageQuantity:
    measured = value or _ZERO
    quantity = metering.billed(measured)
    return UsageQuantity(group, measured, quantity, None if quantity == measured else metering.units)


def _in_order(item: tuple[_Bucket, Any]) -> tuple[int, list[tuple[bool, str]]]:
    at, group = item[0]
    return at, [(value is not None, value or "") for value in group]


def _part(query: UsageQuery, position: int, dimension: str | None = None) -> tuple[Any, ...]:
    return (position, query.tenant_id, query.metric, query.period.start, query.period.end, dimension)


def _check_keys(query: UsageQuery, metering: Metering) -> None:
    keys = {key for each in query.filters for key in each.keys} | set(query.group_by)
    if unknown := sorted(keys - set(metering.dimensions)):
        raise InvalidMeter(
            f"metric {query.metric!r} has no dimension {unknown[0]!r}; "
            f"register it, its dimensions are {', '.join(metering.dimensions) or 'none'}"
        )
    if query.filters and query.wanted not in query.filters:
        raise InvalidMeter(f"metric {query.metric!r}: the filter that is asked for is not among the filters")


def _run(session: Session, statement: Any, rows: Sequence[tuple[Any, ...]]) -> Any:
    connection = session.connection()
    dialect = connection.dialect.name
    return connection.execute(statement(dialect), _PARTS.parameters(dialect, rows))


@cache
def _plain_sums(dialect: str) -> Select[Any]:
    # A sub-query per row, not a join with GROUP BY: each is one short walk through the unique index.
    part, day = _PARTS.table(dialect), _DAY.c
    total = select(exact_sum(day.total)).where(
        day.tenant_id == part.c.tenant_id,
        day.metric == part.c.metric,
        day.granularity == "day",
        day.period_start >= part.c.period_start,
        day.period_start < part.c.period_end,
    )
    return select(part.c.position, total.correlate(part).scalar_subquery())


@cache
def _reductions(meter: Meter) -> Any:
    @cache
    def statement(dialect: str) -> Select[Any]:
        return _grouped(_PARTS.table(dialect), [reduced(meter, _DIMENSION.c)])

    return statement


@cache
def _levels(dialect: str) -> Select[Any]:
    part, row = _PARTS.table(dialect), _DIMENSION.c
    is_before = row.day_start < part.c.period_start
    sums = [
        exact_sum(case((is_before, row.total), else_=null())),
        exact_sum(case((~is_before, row.total), else_=null())),
        exact_sum(case((~is_before, row.measure), else_=null())),
    ]
    return _grouped(part, sums, from_the_beginning=True)


def _grouped(
    part: FromClause, sums: Sequence[ColumnElement[Any]], *, from_the_beginning: bool = False
) -> Select[Any]:
    belongs = or_(part.c.dimension.is_(None), _DIMENSION.c.dimension == part.c.dimension)
    return (
        select(part.c.position, *sums)
        .where(*_of_period(part, from_the_beginning), belongs)
        .group_by(part.c.position)
    )


@cache
def _dimensions_within(dialect: str) -> Select[Any]:
    part = _PARTS.table(dialect)
    return select(part.c.position, _DIMENSION.c.dimension).where(*_of_period(part, False)).distinct()


@cache
def _dimensions_before(dialect: str) -> Select[Any]:
    part = _PARTS.table(dialect)
    return select(part.c.position, _DIMENSION.c.dimension).where(*_of_period(part, True)).distinct()


def _of_period(part: Any, from_the_beginning: bool) -> list[ColumnElement[bool]]:
    row = _DIMENSION.c
    return [
        row.tenant_id == part.c.tenant_id,
        row.metric == part.c.metric,
        row.day_start < part.c.period_end,
        true() if from_the_beginning else row.day_start >= part.c.period_start,
    ]
