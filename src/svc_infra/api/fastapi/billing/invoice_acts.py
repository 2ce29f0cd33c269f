"""What is done to invoices over HTTP: finalize, pay, give up, void; each for the state that was read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.access import AppClock, PathId, Writer, record
from svc_infra.api.fastapi.billing.fields import Reason
from svc_infra.api.fastapi.billing.invoice_bodies import InvoiceBody
from svc_infra.api.fastapi.billing.invoices import ETAG_HEADER, invoice_etag
from svc_infra.api.fastapi.dependencies import Principal, get_has_provider
from svc_infra.api.fastapi.etags import IfMatch, require_match
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.billing.invoice_states import mark_paid, mark_uncollectible, void_invoice
from svc_infra.billing.invoices import get_invoice
from svc_infra.billing.invoicing import finalize_invoices
from svc_infra.billing.models import Invoice
from svc_infra.billing.provider import enqueue_sync
from svc_infra.billing.tenant_lock import lock_tenants
from svc_infra.clock import Clock

ACT_REFUSALS = refusals(
    _404="The tenant has no such invoice.",
    _409="The state of the invoice, or of the tenant, does not allow it.",
    _412="The invoice has changed since it was read.",
    _428="If-Match is missing.",
)
HasProvider = Annotated[bool, Depends(get_has_provider)]


class WithReason(BaseModel):
    """Why it is done; it is kept."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "billed twice"}]})

    reason: Reason


def invoice_acts_router() -> APIRouter:
    """Make the routes of acts on invoices."""
    router = APIRouter(route_class=UnitOfWorkRoute, tags=["invoices"])
    acts: tuple[tuple[str, Callable[..., Any]], ...] = (
        ("finalize", finalize),
        ("mark-paid", pay),
        ("mark-uncollectible", give_up),
        ("void", void),
    )
    for name, act in acts:
        router.add_api_route(
            f"/invoices/{{invoice_id}}/{name}",
            act,
            methods=["POST"],
            operation_id=f"billing_{name.replace('-', '_')}_invoice",
            responses={**ACT_REFUSALS, 200: ETAG_HEADER},
        )
    return router


async def finalize(
    invoice_id: PathId,
    principal: Writer,
    session: UnitSession,
    clock: AppClock,
    response: Response,
    has_provider: HasProvider,
    if_match: IfMatch = None,
) -> InvoiceBody:
    """Issue a draft now, without waiting for the end of its grace. One that was issued stays as it is."""
    now = clock.now()

    def issue(sync_session: Session) -> Invoice:
        lock_invoice(sync_session, principal.tenant_id, invoice_id, if_match, now=now)
        key = principal.tenant_id, invoice_id
        [result] = finalize_invoices(sync_session, [key], now=now, is_early=True)
        if result.error is not None:
            raise result.error
        if result.is_issued:
            if has_provider:
                enqueue_sync(sync_session, [key], now=now)
            record(sync_session, principal, "finalize_invoice", invoice_id, now=now)
        return sync_session.get_one(Invoice, key, populate_existing=True)

    return _answer(await session.run_sync(issue), response)


async def pay(
    invoice_id: PathId,
    principal: Writer,
    session: UnitSession,
    clock: AppClock,
    response: Response,
    if_match: IfMatch = None,
) -> InvoiceBody:
    """Note that an issued invoice was paid."""
    return await _act(
        "mark_invoice_paid", mark_paid, invoice_id, principal, session, clock, response, if_match
    )


async def give_up(
    invoice_id: PathId,
    why: WithReason,
    principal: Writer,
    session: UnitSession,
    clock: AppClock,
    response: Response,
    if_match: IfMatch = None,
) -> InvoiceBody:
    """Give up on an issued invoice; it can still be paid or voided."""
    return await _act(
        "mark_invoice_uncollectible",
        mark_uncollectible,
        invoice_id,
        principal,
        session,
        clock,
        response,
        if_match,
        reason=why.reason,
    )


async def void(
    invoice_id: PathId,
    why: WithReason,
    principal: Writer,
    session: UnitSession,
    clock: AppClock,
    response: Response,
    if_match: IfMatch = None,
) -> InvoiceBody:
    """Take an issued invoice back; its number stays used, and its period can be invoiced again."""
    return await _act(
        "void_invoice",
        void_invoice,
        invoice_id,
        principal,
        session,
        clock,
        response,
        if_match,
        reason=why.reason,
    )


async def _act(
    name: str,
    move: Callable[..., Invoice],
    invoice_id: str,
    principal: Principal,
    session: AsyncSession,
    clock: Clock,
    response: Response,
    if_match: IfMatch,
    **why: str,
) -> InvoiceBody:
    """Move an invoice on from the state that the caller means, and record who did it."""
    now = clock.now()

    def act(sync_session: Session) -> Invoice:
        lock_invoice(sync_session, principal.tenant_id, invoice_id, if_match, now=now)
        invoice = move(sync_session, principal.tenant_id, invoice_id, now=now, **why)
        record(sync_session, principal, name, invoice_id, now=now, **why)
        return invoice

    return _answer(await session.run_sync(act), response)


def lock_invoice(
    session: Session, tenant_id: str, invoice_id: str, if_match: Sequence[str] | None, *, now: datetime
) -> Invoice:
    """Hold an invoice in the state that the caller means, until the end of the transaction.

    Raises:
        NotFound: the tenant has no such invoice.
        Refusal: 428 or 412, the caller names no state or another one.
    """
    get_invoice(session, tenant_id, invoice_id)  # before a lock that a stranger's guess would write for
    lock_tenants(session, [tenant_id], now=now)
    invoice = session.get_one(Invoice, (tenant_id, invoice_id), populate_existing=True)
    require_match(if_match, invoice_etag(invoice))
    return invoice


def _answer(invoice: Invoice, response: Response) -> InvoiceBody:
    body = InvoiceBody.model_validate(invoice)
    response.headers["ETag"] = invoice_etag(body)
    return body
