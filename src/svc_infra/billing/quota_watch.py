"""Watching quotas that nobody reserves from: recorded usage crosses thresholds, too."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy.orm import Session

from svc_infra.billing import quota_statements as statements
from svc_infra.billing.quota_alerts import Publisher, crossed, publish_crossed
from svc_infra.billing.quota_state import count_recorded, entitled_of, window_of
from svc_infra.billing.quota_statements import given


def announce_recorded(
    session: Session,
    days: Iterable[tuple[str, str, datetime]],
    *,
    now: datetime,
    webhooks: Publisher | None = None,
) -> None:
    """Publish the thresholds that recorded usage has crossed in the windows of these days.

    A day is (tenant id, metric, any instant of it). What aggregates usage calls this in its transaction, so
    that a quota nobody reserves from is watched, too; one statement if no plan wants alerts.
    """
    ordered = sorted(set(days))
    if not ordered:
        return
    connection = session.connection()
    dialect = connection.dialect.name
    rows = [(position, tenant_id, metric) for position, (tenant_id, metric, _) in enumerate(ordered)]
    wanted = connection.execute(statements.alerting(dialect), statements.USED.parameters(dialect, rows)).all()
    for position, window in wanted:
        tenant_id, key, at = ordered[position]
        entitled = entitled_of(session, tenant_id, key, window, at)
        if entitled is None:
            continue
        named = window_of(tenant_id, key, window, entitled.period)
        connection.execute(statements.lock_window(dialect), named)
        taken, alerted_percent, _ = connection.execute(statements.taken(), named | given(now=now)).one()
        used = taken + count_recorded(session, named)
        percents = crossed(entitled.alert_percents, alerted_percent, entitled.limit, used)
        publish_crossed(session, webhooks, percents, named, entitled.limit, used, now=now)
