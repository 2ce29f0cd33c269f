"""Reading usage page by page: the recorded events of a metric, and the daily totals of all metrics."""

from __future__ import annotations

from datetime import datetime
from typing import cast

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from svc_infra.billing.usage_models import RECORDED, ArchivedUsage, UsageAggregate, UsageEvent


def list_events(
    session: Session,
    tenant_id: str,
    metric: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    after: tuple[datetime, str] | None = None,
    limit: int = 100,
) -> list[UsageEvent | ArchivedUsage]:
    """A tenant's events of a metric in the order of their instants, in ``[since, until)``.

    At most ``limit``, those behind the (instant, id) ``after``. Corrected and archived events are among them.
    """
    # The archive last, and each id once: an event may be moved between the two.
    rows: dict[str, UsageEvent | ArchivedUsage] = {}
    for row in RECORDED:
        found = (
            select(row)
            .where(row.tenant_id == tenant_id, row.metric == metric)
            .order_by(row.at_ts, row.id)
            .limit(limit)
        )
        if since is not None:
            found = found.where(row.at_ts >= since)
        if until is not None:
            found = found.where(row.at_ts < until)
        if after is not None:
            found = found.where(tuple_(row.at_ts, row.id) > tuple_(*after))
        page = cast("list[UsageEvent | ArchivedUsage]", session.scalars(found).all())
        rows.update({each.id: each for each in page})
    return sorted(rows.values(), key=lambda each: (each.at_ts, each.id))[:limit]


def list_aggregates(
    session: Session,
    tenant_id: str,
    *,
    metric: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    after: tuple[str, datetime] | None = None,
    limit: int = 100,
) -> list[UsageAggregate]:
    """A tenant's stored daily totals by metric and day, of the days that begin in ``[since, until)``.

    At most ``limit``, those behind the (metric, period_start) ``after``.
    """
    row = UsageAggregate
    found = select(row).where(row.tenant_id == tenant_id).order_by(row.metric, row.period_start).limit(limit)
    if metric is not None:
        found = found.where(row.metric == metric)
    if since is not None:
        found = found.where(row.period_start >= since)
    if until is not None:
        found = found.where(row.period_start < until)
    if after is not None:
        found = found.where(tuple_(row.metric, row.period_start) > tuple_(*after))
    return list(session.scalars(found))
