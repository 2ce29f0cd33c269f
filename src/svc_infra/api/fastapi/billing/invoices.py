"""Reading invoices: a list, one, its lines, and why it is so much."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.access import PathId, Reader
from svc_infra.api.fastapi.billing.fields import Month, year_and_month
from svc_infra.api.fastapi.billing.invoice_bodies import (
    ExplainedLineBody,
    ExplanationBody,
    InvoiceBody,
    InvoiceStatus,
    LineBody,
    PendingLineBody,
)
from svc_infra.api.fastapi.etags import IfNoneMatch, etag_of, is_known
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.billing.explanation import explain_invoice
from svc_infra.billing.invoices import get_invoice, invoice_lines, list_invoices, list_pending
from svc_infra.billing.models import Invoice
from svc_infra.billing.periods import month_bounds
from svc_infra.billing.tenants import zones_of

NO_INVOICE = refusals(_404="The tenant has no such invoice.")
ETAG_HEADER: dict[str, Any] = {
    "headers": {
        "ETag": {"description": "The state that is shown, for If-Match.", "schema": {"type": "string"}}
    }
}


def invoices_router() -> APIRouter:
    """Make the routes that read invoices."""
    router = APIRouter(route_class=UnitOfWorkRoute, tags=["invoices"])
    router.add_api_route("/invoices", read_invoices, methods=["GET"], operation_id="billing_list_invoices")
    router.add_api_route(
        "/invoices/{invoice_id}",
        read_invoice,
        methods=["GET"],
        operation_id="billing_get_invoice",
        response_model=InvoiceBody,
        responses={**NO_INVOICE, 200: ETAG_HEADER, 304: {"description": "It is as the caller has it."}},
    )
    router.add_api_route(
        "/invoices/{invoice_id}/lines",
        read_lines,
        methods=["GET"],
        operation_id="billing_list_invoice_lines",
        responses=NO_INVOICE,
    )
    router.add_api_route(
        "/invoices/{invoice_id}/explanation",
        read_explanation,
        methods=["GET"],
        operation_id="billing_explain_invoice",
        responses=NO_INVOICE,
    )
    router.add_api_route(
        "/pending-lines", read_pending, methods=["GET"], operation_id="billing_list_pending_lines"
    )
    return router


async def read_invoices(
    principal: Reader,
    session: UnitSession,
    paging: Paging,
    status: Annotated[InvoiceStatus | None, Query(description="Only in this state.")] = None,
    period: Annotated[Month | None, Query(description="Only those that begin in this month.")] = None,
) -> Page[InvoiceBody]:
    """List the tenant's invoices in the order they were made."""

    def page(sync_session: Session) -> Page[InvoiceBody]:
        month, begins_in = year_and_month(period), None
        if month is not None:
            zone = zones_of(sync_session, [principal.tenant_id])[principal.tenant_id]
            begins_in = month_bounds(*month, zone)
        position = paging.position(sync_session)
        found = list_invoices(
            sync_session,
            tenant_id=principal.tenant_id,
            begins_in=begins_in,
            status=status,
            after=None if position is None else (principal.tenant_id, position[0]),
            limit=paging.reach,
        )
        return paging.cut(
            sync_session, found, item=InvoiceBody.model_validate, key=lambda invoice: [invoice.id]
        )

    return await session.run_sync(page)


async def read_invoice(
    invoice_id: PathId, principal: Reader, session: UnitSession, response: Response, known: IfNoneMatch = None
) -> InvoiceBody | Response:
    """Show an invoice, without its lines."""
    body = InvoiceBody.model_validate(await session.run_sync(get_invoice, principal.tenant_id, invoice_id))
    etag = invoice_etag(body)
    if is_known(known, etag):
        return Response(status_code=304, headers={"ETag": etag})
    response.headers["ETag"] = etag
    return body


async def read_lines(
    invoice_id: PathId, principal: Reader, session: UnitSession, paging: Paging
) -> Page[LineBody]:
    """List the lines of an invoice in their order."""

    def page(sync_session: Session) -> Page[LineBody]:
        get_invoice(sync_session, principal.tenant_id, invoice_id)
        position = paging.position(sync_session)
        after = None if position is None else int(position[0])
        lines = invoice_lines(sync_session, principal.tenant_id, invoice_id, after=after, limit=paging.reach)
        return paging.cut(
            sync_session, lines, item=LineBody.model_validate, key=lambda line: [str(line.position)]
        )

    return await session.run_sync(page)


async def read_explanation(invoice_id: PathId, principal: Reader, session: UnitSession) -> ExplanationBody:
    """Say of each line how its amount comes about: its price tier by tier, its days, its events."""
    found = await session.run_sync(explain_invoice, principal.tenant_id, invoice_id)
    return ExplanationBody(
        invoice=InvoiceBody.model_validate(found.invoice),
        lines=[ExplainedLineBody.of(line) for line in found.lines],
    )


async def read_pending(principal: Reader, session: UnitSession, paging: Paging) -> Page[PendingLineBody]:
    """List what waits for the tenant's next invoice: late usage of earlier ones, and credits."""

    def page(sync_session: Session) -> Page[PendingLineBody]:
        position = paging.position(sync_session)
        after = None if position is None else position[0]
        found = list_pending(sync_session, principal.tenant_id, after=after, limit=paging.reach)
        return paging.cut(
            sync_session, found, item=PendingLineBody.model_validate, key=lambda line: [line.id]
        )

    return await session.run_sync(page)


def invoice_etag(invoice: InvoiceBody | Invoice) -> str:
    """The tag of an invoice's state: of everything that ``InvoiceBody`` shows."""
    body = invoice if isinstance(invoice, InvoiceBody) else InvoiceBody.model_validate(invoice)
    return etag_of(body.model_dump_json())
