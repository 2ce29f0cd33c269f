"""What a tenant's plans allow it, over HTTP: quotas with their state, features with their values."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.access import AppClock, PathId, Reader
from svc_infra.api.fastapi.billing.fields import InstantText, QuantityText
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.billing.entitlements import Quota
from svc_infra.billing.quota_listing import Entitled, entitled_to, list_entitled


class QuotaBody(BaseModel):
    """The state of a quota in the tenant's present day or month; a ``limit`` of null is no limit.

    ``used`` is what was recorded as usage plus what reservations hold or have committed.
    """

    limit: int | None
    used: QuantityText
    is_soft: bool
    is_used_up: bool
    window_start: InstantText
    window_end: InstantText

    @classmethod
    def of(cls, quota: Quota) -> QuotaBody:
        """Make it of a reading."""
        return cls(
            limit=quota.limit,
            used=quota.used,
            is_soft=quota.is_soft,
            is_used_up=quota.is_used_up,
            window_start=quota.period.start,
            window_end=quota.period.end,
        )


class EntitlementBody(BaseModel):
    """A quota (``window`` is ``day`` or ``month``), or a feature (``always``) with its value."""

    key: str
    window: Literal["day", "month", "always"]
    quota: QuotaBody | None
    value: bool | int | str | None

    @classmethod
    def of(cls, found: Entitled) -> EntitlementBody:
        """Make it of what was found."""
        quota = None if found.quota is None else QuotaBody.of(found.quota)
        return cls.model_validate(
            {"key": found.key, "window": found.window, "quota": quota, "value": found.value}
        )


class EntitlementsOfKey(BaseModel):
    """What is allowed of one key, by window."""

    items: list[EntitlementBody]


def entitlements_router() -> APIRouter:
    """Make the routes of entitlements."""
    router = APIRouter(route_class=UnitOfWorkRoute, tags=["entitlements"])
    router.add_api_route(
        "/entitlements", read_entitlements, methods=["GET"], operation_id="billing_list_entitlements"
    )
    router.add_api_route(
        "/entitlements/{entitlement_key}",
        read_entitlement,
        methods=["GET"],
        operation_id="billing_get_entitlement",
        responses=refusals(_404="No active plan of the tenant says anything of this key."),
    )
    return router


async def read_entitlements(
    principal: Reader, session: UnitSession, paging: Paging, clock: AppClock
) -> Page[EntitlementBody]:
    """List what the tenant's active plans allow together, with what is used of it in the present window."""

    def page(sync_session: Session) -> Page[EntitlementBody]:
        position = paging.position(sync_session)
        found = list_entitled(
            sync_session,
            principal.tenant_id,
            now=clock.now(),
            after=None if position is None else (position[0], position[1]),
            limit=paging.reach,
        )
        return paging.cut(
            sync_session, found, item=EntitlementBody.of, key=lambda each: [each.key, each.window]
        )

    return await session.run_sync(page)


async def read_entitlement(
    entitlement_key: PathId, principal: Reader, session: UnitSession, clock: AppClock
) -> EntitlementsOfKey:
    """Show what is allowed of one key, and what is used of it in the present window."""
    found = await session.run_sync(entitled_to, principal.tenant_id, entitlement_key, now=clock.now())
    return EntitlementsOfKey(items=[EntitlementBody.of(each) for each in found])
