"""The registered meters: writing them, and reading those of some metrics."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import and_, exists, insert, literal, or_, select, text
from sqlalchemy.orm import Session

from svc_infra.billing.columns import METRIC_LENGTH
from svc_infra.billing.first_use import ready
from svc_infra.billing.metering import Metering
from svc_infra.billing.usage_lock import hold_back_usage
from svc_infra.billing.usage_models import UsageAggregate, UsageDirtyDay, UsageMeter
from svc_infra.exceptions import InvalidMeter


def register_meter(session: Session, metering: Metering, *, now: datetime) -> bool:
    """Store what is made of a metric's events; False if that is stored already. Does not commit.

    Once the metric has usage, its meter and unique key are fixed: invoices were made with them. Dimensions
    may be changed, which marks every stored day of the metric, so that the next aggregation sorts its events
    anew; conversion and rounding hold for what is invoiced from now on.

    Raises:
        InvalidMeter: the metric's name cannot be stored, or its meter is fixed already.
    """
    ready(session)
    if not 0 < len(metering.metric) <= METRIC_LENGTH:
        raise InvalidMeter(f"a metric has 1 to {METRIC_LENGTH} characters, got {metering.metric!r:.80}")
    if session.get_bind().dialect.name == "postgresql":
        # A second registration waits for this one.
        session.execute(text("LOCK TABLE usage_meters IN SHARE ROW EXCLUSIVE MODE"))
    hold_back_usage(session)
    row = session.get(UsageMeter, metering.metric, populate_existing=True)
    old = Metering(metering.metric) if row is None else _metering(row)
    if row is not None and old == metering:
        return False
    if not metering.measures_like(old) and _has_usage(session, metering.metric):
        raise InvalidMeter(
            f"metric {metering.metric!r} has usage that is measured as {old.meter.value}, so its meter is "
            "fixed; record the usage that is to be measured differently under another metric"
        )
    if row is None:
        row = UsageMeter(metric=metering.metric, created_at=now)
        session.add(row)
    row.meter, row.definition = metering.meter.value, metering.to_snapshot()
    session.flush()
    if metering.dimensions != old.dimensions:
        _mark_all_days(session, metering.metric)
    return True


def meterings_of(session: Session, metrics: Iterable[str]) -> dict[str, Metering]:
    """What is made of each of these metrics; a plain sum of one without a registered meter."""
    found = {metric: Metering(metric) for metric in metrics}
    if found:
        rows = session.execute(
            select(UsageMeter.metric, UsageMeter.definition).where(UsageMeter.metric.in_(sorted(found)))
        )
        found.update({metric: Metering.from_snapshot(metric, definition) for metric, definition in rows})
    return found


def list_meters(session: Session) -> list[Metering]:
    """Every registered meter, by metric."""
    return [_metering(row) for row in session.scalars(select(UsageMeter).order_by(UsageMeter.metric))]


def _metering(row: UsageMeter) -> Metering:
    return Metering.from_snapshot(row.metric, row.definition)


def _has_usage(session: Session, metric: str) -> bool:
    # Whatever was recorded left a mark or a total, and those are far fewer than the events.
    of_metric = or_(
        exists(select(literal(1)).where(UsageDirtyDay.metric == metric)),
        exists(select(literal(1)).where(UsageAggregate.metric == metric)),
    )
    return bool(session.execute(select(of_metric)).scalar_one())


def _mark_all_days(session: Session, metric: str) -> None:
    days = select(
        UsageAggregate.tenant_id,
        UsageAggregate.metric,
        UsageAggregate.period_start,
        UsageAggregate.period_end,
    ).where(and_(UsageAggregate.metric == metric, UsageAggregate.granularity == "day"))
    columns = ["tenant_id", "metric", "day_start", "day_end"]
    session.execute(insert(UsageDirtyDay).from_select(columns, days))
