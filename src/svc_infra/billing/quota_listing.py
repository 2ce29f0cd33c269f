"""What a tenant is entitled to now: every quota with its state, and every feature with its value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from svc_infra.billing.catalog_entitlement import ALWAYS, FeatureValue
from svc_infra.billing.entitlements import WINDOWS, Quota, feature_of, quota_of
from svc_infra.billing.models import PlanEntitlement, Subscription
from svc_infra.exceptions import NotFound


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
    row = PlanEntitlement
    names = (
        select(row.key, row.window)
        .join(Subscription, Subscription.plan_id == row.plan_id)
        .where(
            Subscription.tenant_id == tenant_id,
            Subscription.effective_at <= now,
            or_(Subscription.ended_at.is_(None), Subscription.ended_at > now),
        )
        .distinct()
        .order_by(row.key, row.window)
        .limit(limit)
    )
    if key is not None:
        names = names.where(row.key == key)
    if after is not None:
        names = names.where(or_(row.key > after[0], (row.key == after[0]) & (row.window > after[1])))
    return [_entitled(session, tenant_id, *name, now) for name in session.execute(names).all()]


def entitled_to(session: Session, tenant_id: str, key: str, *, now: datetime) -> Sequence[Entitled]:
    """The tenant's entitlements of one key; NotFound if no active plan has any."""
    found = list_entitled(session, tenant_id, now=now, key=key)
    if not found:
        raise NotFound(f"no active plan of tenant {tenant_id!r} says anything of {key!r}")
    return found


def _entitled(session: Session, tenant_id: str, key: str, window: str, now: datetime) -> Entitled:
    if window == ALWAYS:
        return Entitled(key, window, None, feature_of(session, tenant_id, key, now=now))
    [known] = [each for each in WINDOWS if each == window]
    return Entitled(key, window, quota_of(session, tenant_id, key, known, now=now), None)
