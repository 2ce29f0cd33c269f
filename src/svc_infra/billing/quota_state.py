"""The state of a quota: what the plans of a tenant say of it, and what is used of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from sqlalchemy import Row
from sqlalchemy.orm import Session

from svc_infra.billing import quota_statements as statements
from svc_infra.billing.first_use import ready
from svc_infra.billing.periods import Period, day_bounds, local_day, month_bounds, zone
from svc_infra.billing.quota_statements import given
from svc_infra.canonical import canonical_decimal

Window = Literal["day", "month"]
WINDOWS: tuple[Window, ...] = ("day", "month")


@dataclass(frozen=True, slots=True)
class Quota:
    """The state of one entitlement: quantities used and allowed in the window that ``now`` falls in.

    ``used`` is what was recorded as usage plus what reservations hold or have committed. A ``limit`` of None
    is no limit.
    """

    key: str
    window: Window
    period: Period
    limit: int | None
    used: Decimal
    is_soft: bool = False

    @property
    def is_used_up(self) -> bool:
        return self.limit is not None and self.used >= self.limit

    @property
    def is_exceeded(self) -> bool:
        return self.limit is not None and self.used > self.limit

    def __str__(self) -> str:
        limit = "unlimited" if self.limit is None else self.limit
        return f"{canonical_decimal(self.used)} of {limit} {self.key} used in this {self.window}"


class Entitlement(NamedTuple):
    """What the active plans say together."""

    period: Period
    limit: int | None
    is_soft: bool
    alert_percents: tuple[int, ...]
    timezone: str = "UTC"


def quota_of(session: Session, tenant_id: str, key: str, window: Window, *, now: datetime) -> Quota | None:
    """The quota of a key in the tenant's current day or month; None if no active plan has an entitlement.

    The entitlements of several active plans add up. It is a reading: to use up what it says is free, reserve.
    """
    ready(session)
    entitled = entitled_of(session, tenant_id, key, window, now)
    if entitled is None:
        return None
    asked = window_of(tenant_id, key, window, entitled.period)
    connection = session.connection()
    used = count_recorded(session, asked)
    row = connection.execute(statements.taken(), asked | given(now=now)).one_or_none()
    if row is not None:
        used += row[0] - (row[2] or Decimal(0))
    return Quota(key, window, entitled.period, entitled.limit, used, entitled.is_soft)


def entitled_of(
    session: Session, tenant_id: str, key: str, window: Window, now: datetime
) -> Entitlement | None:
    """What the active plans say together of a key and window; None if none says anything."""
    asked = given(tenant_id=tenant_id, key=key, window=window, now=now)
    rows = session.connection().execute(statements.entitlements(), asked).all()
    return together(rows, period_at(now, window, rows[0].timezone)) if rows else None


def together(rows: Sequence[Row[Any]], period: Period) -> Entitlement:
    """What the plans of these rows say together."""
    limits = [row.limit_per_window for row in rows]
    return Entitlement(
        period,
        None if None in limits else sum(limits),
        any(row.is_soft for row in rows),
        tuple(sorted({percent for row in rows for percent in row.alert_percents or ()})),
        rows[0].timezone,
    )


def period_at(now: datetime, window: Window, timezone: str) -> Period:
    """The window that ``now`` falls in: a day or a month of this zone."""
    tenant_zone = zone(timezone)
    today = local_day(now, tenant_zone)
    if window == "day":
        return day_bounds(today, tenant_zone)
    return month_bounds(today.year, today.month, tenant_zone)


def window_of(tenant_id: str, key: str, window: str, period: Period) -> dict[str, Any]:
    """The parameters that name a window."""
    return given(
        tenant_id=tenant_id, key=key, window=window, window_start=period.start, window_end=period.end
    )


def count_recorded(session: Session, named: dict[str, Any]) -> Decimal:
    """The exact quantity that was recorded as usage in a window."""
    return session.connection().execute(statements.recorded(), named).scalar() or Decimal(0)
