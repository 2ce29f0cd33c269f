"""Changing and ending subscriptions: the old one ends where the new one begins, nothing is rewritten."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.billing.cycles import parse_cycle
from svc_infra.billing.first_use import ready
from svc_infra.billing.invoice_draft import PERIOD_KIND
from svc_infra.billing.models import Invoice, Plan, Subscription
from svc_infra.billing.periods import day_bounds, floor_to_day, is_local_midnight
from svc_infra.billing.subscriptions import NewSubscription, refuse_overlap
from svc_infra.billing.tenant_lock import LockedTenant, lock_tenants
from svc_infra.db.base import new_id
from svc_infra.exceptions import InvalidSubscription, NotFound


def change_subscription(
    session: Session,
    tenant_id: str,
    subscription_id: str,
    *,
    plan_key: str | None = None,
    quantity: int | None = None,
    at: datetime | None = None,
    at_period_end: bool = False,
    now: datetime,
) -> str:
    """Go on with another plan or quantity from a local midnight on; return the id of what goes on.

    Now, which is today's midnight, unless ``at`` names another or ``at_period_end`` waits for the end of the
    running period. Within a period the fixed prices of both sides are charged for their days, and what was
    charged in advance is given back. The billing cycle, the end and a trial that still runs stay.

    Raises:
        NotFound: no such subscription or plan.
        InvalidSubscription: the instant is no midnight of the tenant, lies outside the subscription or in a
            period that was invoiced, or the new plan cannot stand beside another subscription.
    """
    tenant, held = _locked(session, tenant_id, subscription_id, now)
    if at_period_end:
        at = parse_cycle(held.cycle).period_at(now, tenant.zone).end
    at = floor_to_day(now, tenant.zone) if at is None else at
    _check(session, held, tenant, at)
    if quantity is not None and (type(quantity) is not int or quantity < 1):
        raise InvalidSubscription(f"a quantity of {quantity!r} cannot be billed; use a whole number from 1")
    if held.ended_at is not None and held.ended_at <= at:
        raise InvalidSubscription(f"subscription {subscription_id!r} has ended by {at.isoformat()}")
    if plan_key is None:
        plan_key = session.scalars(select(Plan.key).where(Plan.id == held.plan_id)).one()
    new = NewSubscription(tenant_id, plan_key, at, held.ended_at)
    plan_id = refuse_overlap(session, new, replaces=held.id)
    going_on = held
    if at > held.effective_at:
        trial_ends_at = held.trial_ends_at if held.trial_ends_at and held.trial_ends_at > at else None
        going_on = Subscription(
            id=new_id(),
            tenant_id=tenant_id,
            plan_id=plan_id,
            effective_at=at,
            ended_at=held.ended_at,
            quantity=held.quantity,
            trial_ends_at=trial_ends_at,
            cycle=held.cycle,
            anchor_on=held.anchor_on,
            replaces_id=held.id,
            created_at=now,
        )
        held.ended_at = at
        session.flush()  # the old one ends before the new one begins
        session.add(going_on)
    going_on.plan_id = plan_id
    going_on.quantity = quantity or going_on.quantity
    session.flush()
    return going_on.id


def end_subscription(
    session: Session, tenant_id: str, subscription_id: str, *, ended_at: datetime | None = None, now: datetime
) -> datetime:
    """End a subscription at a local midnight, by default the end of its running period; return it.

    Raises:
        NotFound: no such subscription.
        InvalidSubscription: the instant is no midnight of the tenant, is not after the beginning, or lies in
            a period that was invoiced.
    """
    tenant, held = _locked(session, tenant_id, subscription_id, now)
    if ended_at is None:
        ended_at = parse_cycle(held.cycle).period_at(now, tenant.zone).end
    _check(session, held, tenant, ended_at)
    if ended_at <= held.effective_at:
        raise InvalidSubscription(f"subscription {subscription_id!r} would end before it starts")
    held.ended_at = ended_at
    session.flush()
    return ended_at


def _locked(
    session: Session, tenant_id: str, subscription_id: str, now: datetime
) -> tuple[LockedTenant, Subscription]:
    ready(session)
    session.flush()
    tenant = lock_tenants(session, [tenant_id], now=now)[tenant_id]
    held = session.get(Subscription, (tenant_id, subscription_id), populate_existing=True)
    if held is None:
        raise NotFound(f"tenant {tenant_id!r} has no subscription {subscription_id!r}")
    return tenant, held


def _check(session: Session, held: Subscription, tenant: LockedTenant, at: datetime) -> None:
    if at.tzinfo is None or not is_local_midnight(at, tenant.zone):
        near = (
            "" if at.tzinfo is None else f"; the nearest is {day_bounds(at, tenant.zone).start.isoformat()}"
        )
        raise InvalidSubscription(f"{at.isoformat()} is not a midnight of tenant {held.tenant_id!r}{near}")
    if at < held.effective_at:
        raise InvalidSubscription(f"subscription {held.id!r} begins only at {held.effective_at.isoformat()}")
    invoiced = select(Invoice.period_end).where(
        Invoice.tenant_id == held.tenant_id,
        Invoice.cycle == held.cycle,
        Invoice.kind == PERIOD_KIND,
        Invoice.status.not_in(["draft", "void"]),
        Invoice.period_end > at,
    )
    invoiced_until = session.scalar(invoiced.order_by(Invoice.period_end.desc()).limit(1))
    if invoiced_until is not None:
        raise InvalidSubscription(
            f"tenant {held.tenant_id!r} is invoiced until {invoiced_until.isoformat()}, and what was issued "
            "does not change; choose that day or a later one, and make a credit note for what is too much"
        )
