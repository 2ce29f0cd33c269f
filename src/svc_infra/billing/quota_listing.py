"""What a tenant is entitled to now: every quota with its state, and every feature with its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from itertools import groupby
from typing import Any, TypeAlias, cast

from sqlalchemy import Select, Table, and_, func, null, or_, select, union_all
from sqlalchemy.orm import Session

from svc_infra.billing.catalog_entitlement import FeatureValue
from svc_infra.billing.entitlements import WINDOWS, Quota, Window, best_of
from svc_infra.billing.first_use import ready
from svc_infra.billing.models import (
    MetricText,
    PlanEntitlement,
    Subscription,
    Tenant,
    UsageAggregate,
    UsageDirtyDay,
    UsageEvent,
)
from svc_infra.billing.quota_models import QuotaReservation, QuotaWindow, WindowText
from svc_infra.billing.quota_state import Entitlement, period_at, together
from svc_infra.billing.quota_statements import IS_MARKED, NOW, TENANT_ID, given
from svc_infra.billing.usage_dimensions import is_counted
from svc_infra.db.base import UtcDateTime
from svc_infra.db.exact import exact_sum
from svc_infra.db.rowset import Rowset
from svc_infra.exceptions import NotFound

_EVENT, _MARK, _AGGREGATE, _WINDOW, _RESERVATION = (
    cast("Table", model.__table__)
    for model in (UsageEvent, UsageDirtyDay, UsageAggregate, QuotaWindow, QuotaReservation)
)
_ASKED = Rowset("asked", key=MetricText, window=WindowText, start=UtcDateTime, end=UtcDateTime)

Name: TypeAlias = tuple[str, Window]


@dataclass(frozen=True, slots=True)
class Entitled:
    """An entitlement of a tenant: a quota for a day or month, or a feature."""

    key: str
    window: str
    quota: Quota | None
    value: FeatureValue | None


def list_entitled(
    session: Session,
    tenant_id: str,
    *,
    now: datetime,
    key: str | None = None,
    after: tuple[str, str] | None = None,
    limit: int = 100,
) -> list[Entitled]:
    """What the tenant's active plans allow together, in the order of keys and windows; behind ``after``."""
    ready(session)
    row = PlanEntitlement
    is_active = and_(
        Subscription.tenant_id == tenant_id,
        Subscription.effective_at <= now,
        or_(Subscription.ended_at.is_(None), Subscription.ended_at > now),
    )
    names = (
        select(row.key, row.window)
        .join(Subscription, Subscription.plan_id == row.plan_id)
        .where(is_active)
        .distinct()
        .order_by(row.key, row.window)
        .limit(limit)
    )
    if key is not None:
        names = names.where(row.key == key)
    if after is not None:
        names = names.where(or_(row.key > after[0], (row.key == after[0]) & (row.window > after[1])))
    name = names.subquery()
    said = (
        select(
            row.key,
            row.window,
            row.limit_per_window,
            row.is_soft,
            row.alert_percents,
            row.value,
            func.coalesce(Tenant.timezone, "UTC").label("timezone"),
        )
        .join(name, and_(name.c.key == row.key, name.c.window == row.window))
        .join(Subscription, Subscription.plan_id == row.plan_id)
        .outerjoin(Tenant, Tenant.tenant_id == Subscription.tenant_id)
        .where(is_active)
        .order_by(row.key, row.window)
    )
    return _entitled(session, tenant_id, session.execute(said).all(), now)


def entitled_to(session: Session, tenant_id: str, key: str, *, now: datetime) -> Sequence[Entitled]:
    """The tenant's entitlements of one key; NotFound if no active plan has any."""
    found = list_entitled(session, tenant_id, now=now, key=key)
    if not found:
        raise NotFound(f"no active plan of tenant {tenant_id!r} says anything of {key!r}")
    return found


def _entitled(session: Session, tenant_id: str, said: Sequence[Any], now: datetime) -> list[Entitled]:
    """What plans say, in the order of keys and windows, with what is used: two statements for all."""
    by_name = {name: list(rows) for name, rows in groupby(said, key=lambda row: (row.key, row.window))}
    quotas: dict[Name, Entitlement] = {
        (key, known): together(rows, period_at(now, known, rows[0].timezone))
        for (key, window), rows in by_name.items()
        for known in WINDOWS
        if known == window
    }
    used = _used(session, given(tenant_id=tenant_id, now=now), quotas)
    states = {
        (key, window): Quota(key, window, each.period, each.limit, used[key, window], each.is_soft)
        for (key, window), each in quotas.items()
    }
    return [
        Entitled(*name, states[name], None)
        if name in states
        else Entitled(*name, None, best_of(row.value for row in rows))
        for name, rows in by_name.items()
    ]


def _used(
    session: Session, asked: dict[str, Any], quotas: Mapping[Name, Entitlement]
) -> Mapping[tuple[str, str], Decimal]:
    """What is used in each window: what was recorded, and what is taken without what has expired."""
    used: dict[tuple[str, str], Decimal] = {name: Decimal(0) for name in quotas}
    if quotas:
        dialect = session.get_bind().dialect.name
        windows = [(*name, each.period.start, each.period.end) for name, each in quotas.items()]
        parameters = asked | _ASKED.parameters(dialect, windows)
        for statement in (_recorded(dialect), _taken(dialect)):
            for key, window, amount, expired in session.connection().execute(statement, parameters):
                used[key, window] += (amount or Decimal(0)) - (expired or Decimal(0))
    return used


@cache
def _recorded(dialect: str) -> Select[Any]:
    """As ``quota_statements.recorded``, for many windows."""
    asked, day, mark, event = _ASKED.table(dialect), _AGGREGATE.c, _MARK.c, _EVENT.c
    totals = (
        select(asked.c.key, asked.c.window, day.total.label("amount"))
        .select_from(asked)
        .join(_AGGREGATE, and_(day.tenant_id == TENANT_ID, day.metric == asked.c.key))
        .where(day.granularity == "day", day.period_start >= asked.c.start, day.period_start < asked.c.end)
        .where(~IS_MARKED)
    )
    changed = (
        select(asked.c.key, asked.c.window, mark.day_start, mark.day_end)
        .select_from(asked)
        .join(_MARK, and_(mark.tenant_id == TENANT_ID, mark.metric == asked.c.key))
        .where(mark.day_start >= asked.c.start, mark.day_start < asked.c.end)
        .distinct()
        .subquery("changed")
    )
    events = (
        select(changed.c.key, changed.c.window, event.amount)
        .select_from(changed)
        .join(_EVENT, and_(event.tenant_id == TENANT_ID, event.metric == changed.c.key))
        .where(event.at_ts >= changed.c.day_start, event.at_ts < changed.c.day_end, is_counted(event))
    )
    both = union_all(totals, events).subquery("used")
    return select(both.c.key, both.c.window, exact_sum(both.c.amount), null()).group_by(
        both.c.key, both.c.window
    )


@cache
def _taken(dialect: str) -> Select[Any]:
    """As ``quota_statements.taken``, for many windows."""
    asked, window, held = _ASKED.table(dialect), _WINDOW.c, _RESERVATION.c
    expired = (
        select(exact_sum(held.amount))
        .where(held.tenant_id == window.tenant_id, held.key == window.key, held.window == window.window)
        .where(held.window_start == window.window_start, held.state == "open", held.expires_at <= NOW)
        .scalar_subquery()
    )
    return (
        select(window.key, window.window, window.taken, expired)
        .select_from(asked)
        .join(_WINDOW, and_(window.tenant_id == TENANT_ID, window.key == asked.c.key))
        .where(window.window == asked.c.window, window.window_start == asked.c.start)
    )
