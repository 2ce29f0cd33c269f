"""Subscriptions over HTTP: which plans a tenant is on, since when, and changing that."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.access import AppClock, Name, PathId, Reader, Writer, record
from svc_infra.api.fastapi.billing.fields import DayOrInstant, InstantText
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.billing.periods import day_bounds
from svc_infra.billing.subscription_changes import change_subscription, end_subscription
from svc_infra.billing.subscriptions import (
    ListedSubscription,
    get_subscription,
    list_subscriptions,
    subscribe,
    subscription_states,
)
from svc_infra.billing.tenants import zones_of

_MAX_SEATS = 2**63 - 1
_MAX_TRIAL_DAYS = 3_660
_NO_SUBSCRIPTION = refusals(_404="The tenant has no such subscription.")
_NO_PLAN = refusals(_404="There is no such subscription, or no such plan.")

Seats = Annotated[int, Field(strict=True, ge=1, le=_MAX_SEATS)]


class SubscriptionBody(BaseModel):
    """A tenant on a plan over the half-open span from ``effective_at`` to ``ended_at``; null is no end.

    ``quantity`` multiplies the plan's fixed prices. ``replaces_id`` is the one that this one goes on after.
    """

    model_config = ConfigDict(from_attributes=True)

    id: str
    plan: str
    effective_at: InstantText
    ended_at: InstantText | None
    quantity: int
    trial_ends_at: InstantText | None
    cycle: str
    created_at: InstantText
    replaces_id: str | None

    @classmethod
    def of(cls, found: ListedSubscription) -> SubscriptionBody:
        """Make it of a stored subscription."""
        known = found._asdict()
        return cls(plan=known.pop("plan_key"), **known)


class SubscriptionStates(BaseModel):
    """What a subscription was, is and will be, the oldest first; every change begins another one."""

    items: list[SubscriptionBody]


class NewSubscriptionBody(BaseModel):
    """A plan from a day of the tenant on; with ``ended_at`` until the day before it.

    In the first ``trial_days`` the fixed prices cost nothing. With ``anchor_on`` it is billed by months (with
    ``interval`` by years) that begin on the anchor's day, otherwise by calendar months.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"plan": "team", "effective_at": "2030-01-01", "quantity": 3}]},
    )

    plan: Name
    effective_at: DayOrInstant
    ended_at: DayOrInstant | None = None
    quantity: Seats = 1
    trial_days: Annotated[int, Field(strict=True, ge=0, le=_MAX_TRIAL_DAYS)] = 0
    anchor_on: date | None = None
    interval: Literal["month", "year"] = "month"


class SubscriptionChange(BaseModel):
    """Another plan or quantity: from today on, from the day ``at``, or when the running period ends."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"quantity": 5, "at_period_end": True}]}
    )

    plan: Name | None = None
    quantity: Seats | None = None
    at: DayOrInstant | None = None
    at_period_end: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _one_change_at_one_time(self) -> SubscriptionChange:
        if self.plan is None and self.quantity is None:
            raise ValueError("give a plan, a quantity or both")
        if self.at is not None and self.at_period_end:
            raise ValueError("give at or at_period_end, not both")
        return self


class SubscriptionEnd(BaseModel):
    """The day after its last one; without it the end of the running period."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}]})

    at: DayOrInstant | None = None


def subscriptions_router() -> APIRouter:
    """Make the routes of subscriptions."""
    router = APIRouter(route_class=UnitOfWorkRoute, tags=["subscriptions"])
    reads = (
        ("/subscriptions", read_subscriptions, "billing_list_subscriptions", None),
        ("/subscriptions/{subscription_id}", read_subscription, "billing_get_subscription", _NO_SUBSCRIPTION),
        (
            "/subscriptions/{subscription_id}/changes",
            read_changes,
            "billing_list_subscription_changes",
            _NO_SUBSCRIPTION,
        ),
    )
    for path, read, operation_id, responses in reads:
        router.add_api_route(path, read, methods=["GET"], operation_id=operation_id, responses=responses)
    router.add_api_route(
        "/subscriptions",
        begin,
        methods=["POST"],
        status_code=201,
        operation_id="billing_subscribe",
        responses=refusals(_404="There is no such plan."),
    )
    router.add_api_route(
        "/subscriptions/{subscription_id}/change",
        change,
        methods=["POST"],
        operation_id="billing_change_subscription",
        responses=_NO_PLAN,
    )
    router.add_api_route(
        "/subscriptions/{subscription_id}/cancel",
        cancel,
        methods=["POST"],
        operation_id="billing_cancel_subscription",
        responses=_NO_SUBSCRIPTION,
    )
    return router


async def read_subscriptions(
    principal: Reader, session: UnitSession, paging: Paging
) -> Page[SubscriptionBody]:
    """List the tenant's subscriptions, ended ones too, in the order they were made."""

    def page(sync_session: Session) -> Page[SubscriptionBody]:
        position = paging.position(sync_session)
        found = list_subscriptions(
            sync_session,
            tenant_id=principal.tenant_id,
            after=None if position is None else (principal.tenant_id, position[0]),
            limit=paging.reach,
        )
        return paging.cut(sync_session, found, item=SubscriptionBody.of, key=lambda each: [each.id])

    return await session.run_sync(page)


async def read_subscription(
    subscription_id: PathId, principal: Reader, session: UnitSession
) -> SubscriptionBody:
    """Show a subscription."""
    found = await session.run_sync(get_subscription, principal.tenant_id, subscription_id)
    return SubscriptionBody.of(found)


async def read_changes(
    subscription_id: PathId, principal: Reader, session: UnitSession
) -> SubscriptionStates:
    """List what a subscription was before each change and what it goes on as."""
    found = await session.run_sync(subscription_states, principal.tenant_id, subscription_id)
    return SubscriptionStates(items=[SubscriptionBody.of(each) for each in found])


async def begin(
    new: NewSubscriptionBody, principal: Writer, session: UnitSession, clock: AppClock
) -> SubscriptionBody:
    """Put the tenant on a plan."""
    now, tenant_id = clock.now(), principal.tenant_id

    def act(sync_session: Session) -> SubscriptionBody:
        subscription_id = subscribe(
            sync_session,
            tenant_id=tenant_id,
            plan_key=new.plan,
            effective_at=_midnight(sync_session, tenant_id, new.effective_at),
            ended_at=None if new.ended_at is None else _midnight(sync_session, tenant_id, new.ended_at),
            quantity=new.quantity,
            trial_days=new.trial_days,
            anchor_on=new.anchor_on,
            interval=new.interval,
            now=now,
        )
        record(sync_session, principal, "subscribe", subscription_id, now=now, plan=new.plan)
        return SubscriptionBody.of(get_subscription(sync_session, tenant_id, subscription_id))

    return await session.run_sync(act)


async def change(
    subscription_id: PathId,
    wanted: SubscriptionChange,
    principal: Writer,
    session: UnitSession,
    clock: AppClock,
) -> SubscriptionBody:
    """Go on with another plan or quantity; what is answered is the subscription that goes on."""
    now, tenant_id = clock.now(), principal.tenant_id

    def act(sync_session: Session) -> SubscriptionBody:
        going_on = change_subscription(
            sync_session,
            tenant_id,
            subscription_id,
            plan_key=wanted.plan,
            quantity=wanted.quantity,
            at=None if wanted.at is None else _midnight(sync_session, tenant_id, wanted.at),
            at_period_end=wanted.at_period_end,
            now=now,
        )
        record(sync_session, principal, "change_subscription", subscription_id, now=now, goes_on_as=going_on)
        return SubscriptionBody.of(get_subscription(sync_session, tenant_id, going_on))

    return await session.run_sync(act)


async def cancel(
    subscription_id: PathId,
    end: SubscriptionEnd,
    principal: Writer,
    session: UnitSession,
    clock: AppClock,
) -> SubscriptionBody:
    """End a subscription, by default when its running period ends."""
    now, tenant_id = clock.now(), principal.tenant_id

    def act(sync_session: Session) -> SubscriptionBody:
        ended_at = None if end.at is None else _midnight(sync_session, tenant_id, end.at)
        end_subscription(sync_session, tenant_id, subscription_id, ended_at=ended_at, now=now)
        record(sync_session, principal, "end_subscription", subscription_id, now=now)
        return SubscriptionBody.of(get_subscription(sync_session, tenant_id, subscription_id))

    return await session.run_sync(act)


def _midnight(session: Session, tenant_id: str, day: date) -> datetime:
    if isinstance(day, datetime):
        return day
    return day_bounds(day, zones_of(session, [tenant_id])[tenant_id]).start
