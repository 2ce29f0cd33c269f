"""Reading the stored catalog: plans with what they allow, and the versions of prices."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from svc_infra.billing.models import Plan, PlanEntitlement, Price
from svc_infra.exceptions import NotFound


def list_plans(session: Session, *, after: str | None = None, limit: int = 100) -> list[Plan]:
    """Plans in the order of their keys, behind the key ``after``."""
    plans = select(Plan).order_by(Plan.key).limit(limit)
    return list(session.scalars(plans if after is None else plans.where(Plan.key > after)))


def get_plan(session: Session, key: str) -> Plan:
    """The plan of this key; NotFound if there is none."""
    plan = session.scalars(select(Plan).where(Plan.key == key)).one_or_none()
    if plan is None:
        raise NotFound(f"there is no plan {key!r}")
    return plan


def entitlements_of(session: Session, plan_ids: Collection[str]) -> Sequence[PlanEntitlement]:
    """What these plans allow, in the order of keys and windows."""
    row = PlanEntitlement
    found = select(row).where(row.plan_id.in_(sorted(plan_ids))).order_by(row.key, row.window, row.id)
    return session.scalars(found).all()


def list_prices(
    session: Session,
    *,
    plan_key: str | None = None,
    currency: str | None = None,
    metric: str | None = None,
    on: date | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[tuple[Price, str | None]]:
    """Versions of prices with the keys of their plans, in the order they were made, behind the id ``after``.

    ``on`` keeps those that bill what begins on that day.
    """
    found = select(Price, Plan.key).outerjoin(Plan, Plan.id == Price.plan_id).order_by(Price.id).limit(limit)
    if plan_key is not None:
        found = found.where(Plan.key == plan_key)
    if currency is not None:
        found = found.where(Price.currency == currency.lower())
    if metric is not None:
        found = found.where(Price.metric == metric)
    if on is not None:
        found = found.where(Price.effective_on <= on, or_(Price.ended_on.is_(None), Price.ended_on > on))
    if after is not None:
        found = found.where(Price.id > after)
    return [(price, key) for price, key in session.execute(found)]
