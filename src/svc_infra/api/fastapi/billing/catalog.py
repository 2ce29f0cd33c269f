"""The catalog over HTTP: plans with what they allow, and prices with their versions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.access import Name, PathId, Reader
from svc_infra.api.fastapi.billing.fields import InstantText
from svc_infra.api.fastapi.billing.usage_intake import Metric
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.billing.catalog_listing import entitlements_of, get_plan, list_plans, list_prices
from svc_infra.billing.catalog_prices import price_terms
from svc_infra.billing.models import Plan, PlanEntitlement, Price


class PlanEntitlementBody(BaseModel):
    """How much of ``key`` a plan allows in each window, null for no limit; or the ``value`` of a feature."""

    key: str
    window: Literal["day", "month", "always"]
    limit: int | None
    is_soft: bool
    alert_percents: list[int]
    value: bool | int | str | None


class PlanBody(BaseModel):
    """What tenants subscribe to."""

    key: str
    name: str
    description: str
    is_default: bool
    entitlements: list[PlanEntitlementBody]
    created_at: InstantText

    @classmethod
    def of(cls, plan: Plan, entitlements: Sequence[PlanEntitlement]) -> PlanBody:
        """Make it of stored rows."""
        return cls(
            key=plan.key,
            name=plan.name,
            description=plan.description,
            is_default=plan.is_default,
            created_at=plan.created_at,
            entitlements=[
                PlanEntitlementBody.model_validate(
                    {
                        "key": row.key,
                        "window": row.window,
                        "limit": row.limit_per_window,
                        "is_soft": row.is_soft,
                        "alert_percents": row.alert_percents or [],
                        "value": row.value,
                    }
                )
                for row in entitlements
                if row.plan_id == plan.id
            ],
        )


class PriceBody(BaseModel):
    """A version of a price; without a plan it bills every tenant.

    It bills what begins on the tenant's day ``effective_on`` or later, and before ``ended_on``. ``terms`` is
    the whole price, with amounts in minor units as decimal text.
    """

    id: str
    plan: str | None
    key: str
    currency: str
    metric: str | None
    model: str
    recurring_interval: str | None
    effective_on: date
    ended_on: date | None
    terms: dict[str, Any]

    @classmethod
    def of(cls, found: tuple[Price, str | None]) -> PriceBody:
        """Make it of a stored version and the key of its plan."""
        price, plan_key = found
        return cls(
            id=price.id,
            plan=plan_key,
            key=price.key,
            currency=price.currency,
            metric=price.metric,
            model=price.model,
            recurring_interval=price.recurring_interval,
            effective_on=price.effective_on,
            ended_on=price.ended_on,
            terms=price_terms(price).to_snapshot(),
        )


def catalog_router() -> APIRouter:
    """Make the routes of the catalog."""
    router = APIRouter(route_class=UnitOfWorkRoute, tags=["catalog"])
    router.add_api_route("/plans", read_plans, methods=["GET"], operation_id="billing_list_plans")
    router.add_api_route(
        "/plans/{plan_key}",
        read_plan,
        methods=["GET"],
        operation_id="billing_get_plan",
        responses=refusals(_404="There is no such plan."),
    )
    router.add_api_route("/prices", read_prices, methods=["GET"], operation_id="billing_list_prices")
    return router


async def read_plans(principal: Reader, session: UnitSession, paging: Paging) -> Page[PlanBody]:
    """List the plans in the order of their keys, with what each allows."""

    def page(sync_session: Session) -> Page[PlanBody]:
        position = paging.position(sync_session)
        plans = list_plans(sync_session, after=None if position is None else position[0], limit=paging.reach)
        entitlements = entitlements_of(sync_session, [plan.id for plan in plans])
        return paging.cut(
            sync_session,
            plans,
            item=lambda plan: PlanBody.of(plan, entitlements),
            key=lambda plan: [plan.key],
        )

    return await session.run_sync(page)


async def read_plan(plan_key: PathId, principal: Reader, session: UnitSession) -> PlanBody:
    """Show a plan."""

    def read(sync_session: Session) -> PlanBody:
        plan = get_plan(sync_session, plan_key)
        return PlanBody.of(plan, entitlements_of(sync_session, [plan.id]))

    return await session.run_sync(read)


async def read_prices(
    principal: Reader,
    session: UnitSession,
    paging: Paging,
    plan: Annotated[Name | None, Query(description="Only of the plan of this key.")] = None,
    currency: Annotated[
        str | None, Query(pattern=r"^[A-Za-z]{3}$", description="Only in this currency.")
    ] = None,
    metric: Annotated[Metric | None, Query(description="Only what bills this metric.")] = None,
    on: Annotated[date | None, Query(description="Only what bills that which begins on this day.")] = None,
) -> Page[PriceBody]:
    """List the versions of prices in the order they were made."""

    def page(sync_session: Session) -> Page[PriceBody]:
        position = paging.position(sync_session)
        found = list_prices(
            sync_session,
            plan_key=plan,
            currency=currency,
            metric=metric,
            on=on,
            after=None if position is None else position[0],
            limit=paging.reach,
        )
        return paging.cut(sync_session, found, item=PriceBody.of, key=lambda row: [row[0].id])

    return await session.run_sync(page)
