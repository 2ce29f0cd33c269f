"""Credit notes over HTTP: those of an invoice, all of a tenant's, one with its lines, and a new one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.access import AppClock, PathId, Reader, Writer, record
from svc_infra.api.fastapi.billing.fields import PositiveMinor, Reason
from svc_infra.api.fastapi.billing.invoice_acts import ACT_REFUSALS, lock_invoice
from svc_infra.api.fastapi.billing.invoice_bodies import CreditNoteBody, CreditNoteWithLines
from svc_infra.api.fastapi.billing.invoices import ETAG_HEADER, NO_INVOICE, invoice_etag
from svc_infra.api.fastapi.etags import IfMatch
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.billing.credit_notes import (
    credit_invoice,
    credit_note_lines,
    get_credit_note,
    list_credit_notes,
)
from svc_infra.billing.invoices import get_invoice

_MAX_LINES = 1_000
_MAX_POSITION = 2**31 - 1


class CreditedLine(BaseModel):
    """A line of the invoice by its position, and how much of it; without an amount all that is left."""

    model_config = ConfigDict(extra="forbid")

    position: Annotated[int, Field(strict=True, ge=1, le=_MAX_POSITION)]
    amount: PositiveMinor | None = None


class NewCreditNote(BaseModel):
    """What to take back: an ``amount`` spread over the lines, chosen ``lines``, or without either all."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"reason": "an outage", "amount": 1}
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE]})

    reason: Reason
    amount: PositiveMinor | None = None
    lines: list[CreditedLine] | None = Field(default=None, min_length=1, max_length=_MAX_LINES)

    @model_validator(mode="after")
    def _one_way(self) -> NewCreditNote:
        if self.amount is not None and self.lines is not None:
            raise ValueError("give an amount or lines, not both")
        if len({line.position for line in self.lines or ()}) != len(self.lines or ()):
            raise ValueError("a position comes twice")
        return self


def credit_notes_router() -> APIRouter:
    """Make the routes of credit notes."""
    router = APIRouter(route_class=UnitOfWorkRoute, tags=["credit notes"])
    router.add_api_route(
        "/credit-notes", read_credit_notes, methods=["GET"], operation_id="billing_list_credit_notes"
    )
    router.add_api_route(
        "/credit-notes/{credit_note_id}",
        read_credit_note,
        methods=["GET"],
        operation_id="billing_get_credit_note",
        responses=refusals(_404="The tenant has no such credit note."),
    )
    router.add_api_route(
        "/invoices/{invoice_id}/credit-notes",
        read_notes_of_invoice,
        methods=["GET"],
        operation_id="billing_list_credit_notes_of_invoice",
        responses=NO_INVOICE,
    )
    router.add_api_route(
        "/invoices/{invoice_id}/credit-notes",
        make_credit_note,
        methods=["POST"],
        status_code=201,
        operation_id="billing_credit_invoice",
        responses={**ACT_REFUSALS, 201: ETAG_HEADER},
    )
    return router


async def read_credit_notes(principal: Reader, session: UnitSession, paging: Paging) -> Page[CreditNoteBody]:
    """List the tenant's credit notes in the order they were issued."""
    return await session.run_sync(_page, principal.tenant_id, paging, None)


async def read_notes_of_invoice(
    invoice_id: PathId, principal: Reader, session: UnitSession, paging: Paging
) -> Page[CreditNoteBody]:
    """List the credit notes of an invoice in the order they were issued."""
    await session.run_sync(get_invoice, principal.tenant_id, invoice_id)
    return await session.run_sync(_page, principal.tenant_id, paging, invoice_id)


async def read_credit_note(
    credit_note_id: PathId, principal: Reader, session: UnitSession
) -> CreditNoteWithLines:
    """Show a credit note with what it takes back of each line."""

    def read(sync_session: Session) -> CreditNoteWithLines:
        note = get_credit_note(sync_session, principal.tenant_id, credit_note_id)
        return CreditNoteWithLines.of(
            note, credit_note_lines(sync_session, principal.tenant_id, credit_note_id)
        )

    return await session.run_sync(read)


async def make_credit_note(
    invoice_id: PathId,
    wanted: NewCreditNote,
    principal: Writer,
    session: UnitSession,
    clock: AppClock,
    response: Response,
    if_match: IfMatch = None,
) -> CreditNoteWithLines:
    """Make a credit note against an issued invoice. The ``ETag`` is that of the invoice as it is then."""
    now = clock.now()
    lines = None if wanted.lines is None else {line.position: line.amount for line in wanted.lines}

    def make(sync_session: Session) -> CreditNoteWithLines:
        invoice = lock_invoice(sync_session, principal.tenant_id, invoice_id, if_match, now=now)
        note = credit_invoice(
            sync_session,
            principal.tenant_id,
            invoice_id,
            reason=wanted.reason,
            actor=principal.actor,
            amount=wanted.amount,
            lines=lines,
            now=now,
        )
        detail = {"credit_note_id": note.id, "total_amount": note.total_amount}
        record(sync_session, principal, "credit_invoice", invoice_id, now=now, **detail)
        response.headers["ETag"] = invoice_etag(invoice)
        return CreditNoteWithLines.of(note, credit_note_lines(sync_session, principal.tenant_id, note.id))

    return await session.run_sync(make)


def _page(session: Session, tenant_id: str, paging: Paging, invoice_id: str | None) -> Page[CreditNoteBody]:
    position = paging.position(session)
    after = None if position is None else position[0]
    notes = list_credit_notes(session, tenant_id, invoice_id=invoice_id, after=after, limit=paging.reach)
    return paging.cut(session, notes, item=CreditNoteBody.model_validate, key=lambda note: [note.id])
