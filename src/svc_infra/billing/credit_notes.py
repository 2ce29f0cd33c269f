"""Credit notes: numbered documents that take back some of an issued invoice, which stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from svc_infra.billing.credit import CreditableLine, credit_amount, credit_lines, credit_whole
from svc_infra.billing.first_use import ready
from svc_infra.billing.invoice_models import CreditNote, CreditNoteLine, InvoiceLine
from svc_infra.billing.invoice_writing import take_numbers
from svc_infra.billing.invoices import get_invoice, invoice_lines
from svc_infra.billing.tenant_lock import lock_tenants
from svc_infra.db.base import new_id
from svc_infra.exceptions import AmountTooLarge, InvalidStatus, NotFound

_CREDITABLE = ("finalized", "paid", "uncollectible")


def credit_invoice(
    session: Session,
    tenant_id: str,
    invoice_id: str,
    *,
    reason: str,
    actor: str,
    amount: int | None = None,
    lines: Mapping[int, int | None] | None = None,
    now: datetime,
) -> CreditNote:
    """Make a credit note against an issued invoice and return it. Does not commit.

    ``amount`` (minor units) is spread over the lines in proportion to what is left of each, and adds up
    exactly; ``lines`` credits chosen ones, by their position on the invoice, each an amount or None for all
    that is left of it; without either everything that is left is credited. The note is a document: how the
    money goes back is up to whoever sends it.

    Raises:
        NotFound: the tenant has no such invoice, or the invoice no such line.
        InvalidStatus: it is a draft or void.
        AmountTooLarge: more than is left, or nothing at all.
    """
    ready(session)
    session.flush()
    tenant = lock_tenants(session, [tenant_id], now=now)[tenant_id]
    invoice = get_invoice(session, tenant_id, invoice_id)
    session.refresh(invoice)
    if invoice.status not in _CREDITABLE:
        raise InvalidStatus(f"invoice {invoice_id!r} is {invoice.status}; only an issued one can be credited")
    billed = invoice_lines(session, tenant_id, invoice_id)
    amounts = _amounts(billed, _credited(session, tenant_id, invoice_id), amount, lines)
    total = sum(amounts)
    if not total:
        raise AmountTooLarge(f"nothing is left to credit of invoice {invoice_id!r}")
    series = f"CN-{tenant.number_series}"
    number = take_numbers(session, {(tenant_id, series): 1})[tenant_id, series] + 1
    note = CreditNote(id=new_id(), tenant_id=tenant_id, invoice_id=invoice_id, series=series, number=number)
    note.currency, note.total_amount = invoice.currency, total
    note.reason, note.actor, note.issued_at = reason, actor, now
    _issue(session, note, zip(billed, amounts, strict=True))
    session.refresh(invoice)
    return note


def credit_notes_of(session: Session, tenant_id: str, invoice_id: str) -> list[CreditNote]:
    """The credit notes of an invoice in the order of their numbers."""
    notes = select(CreditNote).where(CreditNote.tenant_id == tenant_id, CreditNote.invoice_id == invoice_id)
    return list(session.scalars(notes.order_by(CreditNote.number)))


def get_credit_note(session: Session, tenant_id: str, credit_note_id: str) -> CreditNote:
    """A tenant's credit note; NotFound if it has none of this id."""
    note = session.get(CreditNote, (tenant_id, credit_note_id))
    if note is None:
        raise NotFound(f"tenant {tenant_id!r} has no credit note {credit_note_id!r}")
    return note


def list_credit_notes(
    session: Session,
    tenant_id: str,
    *,
    invoice_id: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> list[CreditNote]:
    """A tenant's credit notes, or an invoice's, in the order they were made, behind the id ``after``."""
    notes = select(CreditNote).where(CreditNote.tenant_id == tenant_id)
    if invoice_id is not None:
        notes = notes.where(CreditNote.invoice_id == invoice_id)
    if after is not None:
        notes = notes.where(CreditNote.id > after)
    return list(session.scalars(notes.order_by(CreditNote.id).limit(limit)))


def credit_note_lines(session: Session, tenant_id: str, credit_note_id: str) -> list[tuple[int, int]]:
    """(position of the invoice line, amount) of each line of a credit note."""
    found = (
        select(InvoiceLine.position, CreditNoteLine.amount)
        .join(
            InvoiceLine,
            (InvoiceLine.tenant_id == CreditNoteLine.tenant_id)
            & (InvoiceLine.id == CreditNoteLine.invoice_line_id),
        )
        .where(CreditNoteLine.tenant_id == tenant_id, CreditNoteLine.credit_note_id == credit_note_id)
        .order_by(InvoiceLine.position)
    )
    return [(position, amount) for position, amount in session.execute(found)]


def _issue(session: Session, note: CreditNote, amounts: Iterable[tuple[InvoiceLine, int]]) -> None:
    """Like an invoice: its lines first, and then it is issued with their sum."""
    session.add_all(
        CreditNoteLine(
            tenant_id=note.tenant_id, credit_note_id=note.id, invoice_line_id=line.id, amount=amount
        )
        for line, amount in amounts
        if amount
    )
    session.flush()
    session.add(note)
    session.flush()


def _credited(session: Session, tenant_id: str, invoice_id: str) -> dict[str, int]:
    """What was taken back of each line so far."""
    sums = (
        select(CreditNoteLine.invoice_line_id, func.sum(CreditNoteLine.amount))
        .join(
            CreditNote,
            (CreditNote.tenant_id == CreditNoteLine.tenant_id)
            & (CreditNote.id == CreditNoteLine.credit_note_id),
        )
        .where(CreditNote.tenant_id == tenant_id, CreditNote.invoice_id == invoice_id)
        .group_by(CreditNoteLine.invoice_line_id)
    )
    return {line_id: int(amount) for line_id, amount in session.execute(sums)}


def _amounts(
    billed: list[InvoiceLine],
    credited: Mapping[str, int],
    amount: int | None,
    chosen: Mapping[int, int | None] | None,
) -> list[int]:
    creditable = [CreditableLine(line.amount, credited.get(line.id, 0)) for line in billed]
    if chosen is not None:
        at = {line.position: index for index, line in enumerate(billed)}
        if unknown := sorted(chosen.keys() - at.keys()):
            raise NotFound(f"the invoice has no line {unknown[0]}; it has the lines 1 to {len(billed)}")
        return credit_lines(creditable, {at[position]: part for position, part in chosen.items()})
    return credit_whole(creditable) if amount is None else credit_amount(creditable, amount)
