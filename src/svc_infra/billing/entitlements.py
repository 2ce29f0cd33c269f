"""What a tenant's plans allow it in a window, and how much of that is used."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from svc_infra.billing.first_use import ready
from svc_infra.billing.models import PlanEntitlement, Subscription, UsageEvent
from svc_infra.billing.periods import Period, day_bounds, local_day, month_bounds
from svc_infra.billing.tenants import zones_of
from svc_infra.db.exact import exact_sum

Window = Literal["day", "month"]
WINDOWS: tuple[Window, ...] = ("day", "month")


@dataclass(frozen=True, slots=True)
class Quota:
    """The state of one entitlement: quantities used and allowed in the window that ``now`` falls in."""

    key: str
    window: Window
    period: Period
    limit: int
    used: Decimal

    @property
    def is_used_up(self) -> bool:
        return self.used >= self.limit


def quota_of(session: Session, tenant_id: str, key: str, window: Window, *, now: datetime) -> Quota | None:
    """The quota of a key in the tenant's current day or month; None if no active plan has an entitlement.

    The entitlements of several active plans add up. Used is the exact sum of the events recorded with the
    metric ``key``. It is a reading: two requests at once may both see the last unit free. Reserving in one
    atomic step comes with the quota issue.
    """
    ready(session)
    zone = zones_of(session, [tenant_id])[tenant_id]
    limits = session.scalars(
        select(PlanEntitlement.limit_per_window)
        .join(Subscription, Subscription.plan_id == PlanEntitlement.plan_id)
        .where(
            Subscription.tenant_id == tenant_id,
            Subscription.effective_at <= now,
            or_(Subscription.ended_at.is_(None), Subscription.ended_at > now),
            PlanEntitlement.key == key,
            PlanEntitlement.window == window,
        )
    ).all()
    if not limits:
        return None
    today = local_day(now, zone)
    period = day_bounds(today, zone) if window == "day" else month_bounds(today.year, today.month, zone)
    used = session.scalar(
        select(exact_sum(UsageEvent.amount)).where(
            UsageEvent.tenant_id == tenant_id,
            UsageEvent.metric == key,
            UsageEvent.at_ts >= period.start,
            UsageEvent.at_ts < period.end,
        )
    )
    return Quota(key, window, period, sum(limits), used or Decimal(0))
