"""What becomes of an issued invoice: paid, void, uncollectible. Each step is fenced by the state before."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from svc_infra.billing.first_use import ready
from svc_infra.billing.invoice_lines import ADJUSTMENT, CREDIT
from svc_infra.billing.invoice_models import Invoice, InvoiceLine, PendingLine
from svc_infra.billing.invoices import adjustments_of, get_invoice
from svc_infra.billing.tenant_lock import lock_tenants
from svc_infra.db.base import new_id
from svc_infra.exceptions import InvalidStatus

# The database has the same table (``invoice_guards``): from which states each of them is reached.
_FROM = {
    "paid": ("finalized", "uncollectible"),
    "void": ("finalized", "uncollectible"),
    "uncollectible": ("finalized",),
}


def mark_paid(session: Session, tenant_id: str, invoice_id: str, *, now: datetime) -> Invoice:
    """Note that an issued invoice was paid; again, it stays as it is. NotFound, or InvalidStatus."""
    return _move(session, tenant_id, invoice_id, "paid", None, now)


def mark_uncollectible(
    session: Session, tenant_id: str, invoice_id: str, *, reason: str, now: datetime
) -> Invoice:
    """Give up on an issued invoice; it may be paid or voided all the same. NotFound, or InvalidStatus."""
    return _move(session, tenant_id, invoice_id, "uncollectible", reason, now)


def void_invoice(session: Session, tenant_id: str, invoice_id: str, *, reason: str, now: datetime) -> Invoice:
    """Take an issued invoice back as if it had not been issued; its number stays used.

    Its period can be invoiced again, and is not by itself. What it carried from elsewhere (adjustments of
    earlier invoices, credits) waits for the tenant's next invoice again, and what later invoices billed for
    its late usage is offset there.

    Raises:
        NotFound: the tenant has no such invoice.
        InvalidStatus: it is a draft or paid, or some of it was credited: credit the rest of that one.
    """
    ready(session)
    lock_tenants(session, [tenant_id], now=now)
    invoice = get_invoice(session, tenant_id, invoice_id)
    session.refresh(invoice)
    if invoice.credited_amount:
        raise InvalidStatus(
            f"invoice {invoice_id!r} has credit notes, so it stands; credit what is left of it"
        )
    was_void = invoice.status == "void"
    voided = _move(session, tenant_id, invoice_id, "void", reason, now)
    if not was_void:
        _return_carried(session, voided, now)
        _take_back_adjustments(session, voided, now)
    return voided


def _move(
    session: Session, tenant_id: str, invoice_id: str, status: str, reason: str | None, now: datetime
) -> Invoice:
    ready(session)
    session.flush()
    moved = (
        update(Invoice)
        .where(Invoice.tenant_id == tenant_id, Invoice.id == invoice_id, Invoice.status.in_(_FROM[status]))
        .values(status=status, closed_at=now, closed_reason=reason)
        .returning(Invoice.id)
        .execution_options(synchronize_session=False)
    )
    has_moved = session.execute(moved).scalar_one_or_none() is not None
    invoice = get_invoice(session, tenant_id, invoice_id)
    session.refresh(invoice)
    if not has_moved and invoice.status != status:
        raise InvalidStatus(
            f"invoice {invoice_id!r} is {invoice.status}; only one that is {' or '.join(_FROM[status])} "
            f"can become {status}"
        )
    return invoice


def _return_carried(session: Session, invoice: Invoice, now: datetime) -> None:
    """What it carried from elsewhere waits again."""
    carried = select(InvoiceLine).where(
        InvoiceLine.tenant_id == invoice.tenant_id,
        InvoiceLine.invoice_id == invoice.id,
        InvoiceLine.kind.in_([ADJUSTMENT, CREDIT]),
    )
    session.add_all([_waiting(line, invoice, 1, now) for line in session.scalars(carried)])
    session.flush()


def _take_back_adjustments(session: Session, invoice: Invoice, now: datetime) -> None:
    """Its late usage is billed with the whole period again, so what adjusts it elsewhere must not stay.

    What waits goes; what other invoices billed cannot change and is offset on the tenant's next invoice.
    """
    waits = delete(PendingLine).where(
        PendingLine.tenant_id == invoice.tenant_id, PendingLine.adjusts_invoice_id == invoice.id
    )
    session.execute(waits.execution_options(synchronize_session=False))
    billed = adjustments_of([invoice.tenant_id], [invoice.id])
    session.add_all([_waiting(line, invoice, -1, now) for line in session.scalars(billed)])
    session.flush()


def _waiting(line: InvoiceLine, invoice: Invoice, sign: int, now: datetime) -> PendingLine:
    """A pending line that repeats (``sign`` 1) or offsets (-1) a line of an invoice that cannot change."""
    return PendingLine(
        id=new_id(),
        tenant_id=line.tenant_id,
        cycle=invoice.cycle,
        currency=invoice.currency,
        kind=line.kind,
        price_id=line.price_id,
        subscription_id=line.subscription_id,
        metric=line.metric,
        description=line.description if sign > 0 else f"{line.description}, of a voided invoice",
        period_start=line.period_start,
        period_end=line.period_end,
        quantity=sign * line.quantity,
        amount=sign * line.amount,
        price_snapshot=line.price_snapshot,
        details=line.details,
        adjusts_invoice_id=line.adjusts_invoice_id,
        created_at=now,
    )
