"""What a month's invoices would be: as things are, or under another catalog. Nothing is kept."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.access import AppClock, Reader, Writer
from svc_infra.api.fastapi.billing.fields import Month, year_and_month
from svc_infra.api.fastapi.billing.invoice_bodies import PreviewBody
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import TryingRoute, UnitSession
from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.preview import preview_invoices

_MAX_CATALOG_LENGTH = 256 * 1024
_REFUSALS = refusals(_409="The month was invoiced already, or two prices bill the same usage.")
_CATALOG = """
[[plans]]
key = "standard"
name = "Standard"
default = true

[[prices]]
key = "exports"
currency = "usd"
model = "per_unit"
metric = "exports"
unit_amount = "0.5"
"""


class WhatIf(BaseModel):
    """Another catalog, as the text of its TOML file, and the month; without one it is the present month."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"month": "2030-01", "catalog": _CATALOG}
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE]})

    catalog: str = Field(min_length=1, max_length=_MAX_CATALOG_LENGTH)
    month: Month | None = None


class Previews(BaseModel):
    """One invoice for each currency of the prices that apply."""

    items: list[PreviewBody]


class ComparedPreviews(Previews):
    """The invoices as they would be, and those under the other catalog."""

    under_catalog: list[PreviewBody]


def previews_router() -> APIRouter:
    """Make the routes of previews."""
    router = APIRouter(route_class=TryingRoute, tags=["invoices"])
    router.add_api_route(
        "/preview",
        read_preview,
        methods=["GET"],
        operation_id="billing_preview_invoices",
        responses=_REFUSALS,
    )
    router.add_api_route(
        "/preview",
        try_catalog,
        methods=["POST"],
        operation_id="billing_preview_under_catalog",
        responses=_REFUSALS,
    )
    return router


async def read_preview(
    principal: Reader, session: UnitSession, clock: AppClock, month: Annotated[Month | None, Query()] = None
) -> Previews:
    """Say what the invoices of a month, the present one unless named, would be from the usage so far."""
    found = await session.run_sync(
        preview_invoices, principal.tenant_id, now=clock.now(), month=year_and_month(month)
    )
    return Previews(items=[PreviewBody.of(each) for each in found])


async def try_catalog(
    what_if: WhatIf, principal: Writer, session: UnitSession, clock: AppClock
) -> ComparedPreviews:
    """Compare a month's invoices with what they would be had another catalog held since its beginning.

    Nothing is kept. It needs ``billing.write`` all the same, for it holds up other changes of the catalog.
    """
    catalog = parse_catalog(what_if.catalog)
    month, now = year_and_month(what_if.month), clock.now()

    def compare(sync_session: Session) -> ComparedPreviews:
        as_it_is = preview_invoices(sync_session, principal.tenant_id, now=now, month=month)
        changed = preview_invoices(sync_session, principal.tenant_id, now=now, month=month, catalog=catalog)
        return ComparedPreviews(
            items=[PreviewBody.of(each) for each in as_it_is],
            under_catalog=[PreviewBody.of(each) for each in changed],
        )

    return await session.run_sync(compare)
