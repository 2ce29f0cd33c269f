"""Reading invoices: one, a page of them, their lines, and rows for an export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Session

from svc_infra.billing.models import Invoice, InvoiceLine, PendingLine
from svc_infra.billing.periods import Period
from svc_infra.canonical import canonical_decimal, canonical_instant
from svc_infra.exceptions import NotFound

EXPORT_COLUMNS = (
    "tenant_id",
    "invoice_id",
    "series",
    "number",
    "status",
    "currency",
    "period_start",
    "period_end",
    "total_amount",
    "position",
    "kind",
    "metric",
    "description",
    "quantity",
    "amount",
)

_EXPORT_PAGE = 500


def get_invoice(session: Session, tenant_id: str, invoice_id: str) -> Invoice:
    """A tenant's invoice; NotFound if it has none of this id, whoever else may."""
    invoice = session.get(Invoice, (tenant_id, invoice_id))
    if invoice is None:
        raise NotFound(
            f"tenant {tenant_id!r} has no invoice {invoice_id!r}; list its invoices to find the id"
        )
    return invoice


def adjustments_of(tenant_ids: Sequence[str], invoice_ids: Sequence[str]) -> Select[InvoiceLine]:
    """Select the lines by which invoices that count adjust these invoices."""
    is_of = (Invoice.tenant_id == InvoiceLine.tenant_id) & (Invoice.id == InvoiceLine.invoice_id)
    return (
        select(InvoiceLine)
        .join(Invoice, is_of)
        .where(
            InvoiceLine.tenant_id.in_(tenant_ids),
            InvoiceLine.adjusts_invoice_id.in_(invoice_ids),
            Invoice.status != "void",
        )
    )


def list_invoices(
    session: Session,
    *,
    tenant_id: str | None = None,
    period: Period | None = None,
    begins_in: Period | None = None,
    status: str | None = None,
    after: tuple[str, str] | None = None,
    limit: int = 100,
) -> list[Invoice]:
    """Invoices in the order of (tenant, id), so those of one tenant in the order they were made.

    ``period`` keeps those whose own period lies within it, ``begins_in`` those whose period begins in it.
    ``after`` is the (tenant id, invoice id) of the row to continue behind.
    """
    statement = select(Invoice).order_by(Invoice.tenant_id, Invoice.id).limit(limit)
    if tenant_id is not None:
        statement = statement.where(Invoice.tenant_id == tenant_id)
    if period is not None:
        statement = statement.where(Invoice.period_start >= period.start, Invoice.period_end <= period.end)
    if begins_in is not None:
        begins = Invoice.period_start
        statement = statement.where(begins >= begins_in.start, begins < begins_in.end)
    if status is not None:
        statement = statement.where(Invoice.status == status)
    if after is not None:
        statement = statement.where(tuple_(Invoice.tenant_id, Invoice.id) > tuple_(*after))
    return list(session.scalars(statement))


def invoice_lines(
    session: Session, tenant_id: str, invoice_id: str, *, after: int | None = None, limit: int | None = None
) -> list[InvoiceLine]:
    """The lines of an invoice in their order; none for an invoice that the tenant does not have.

    At most ``limit``, those behind the position ``after``.
    """
    lines = select(InvoiceLine).where(
        InvoiceLine.tenant_id == tenant_id, InvoiceLine.invoice_id == invoice_id
    )
    if after is not None:
        lines = lines.where(InvoiceLine.position > after)
    return list(session.scalars(lines.order_by(InvoiceLine.position).limit(limit)))


def list_pending(
    session: Session, tenant_id: str, *, after: str | None = None, limit: int = 100
) -> list[PendingLine]:
    """What waits for a tenant's next invoice, in the order it came to wait, behind the id ``after``."""
    waiting = select(PendingLine).where(PendingLine.tenant_id == tenant_id)
    if after is not None:
        waiting = waiting.where(PendingLine.id > after)
    return list(session.scalars(waiting.order_by(PendingLine.id).limit(limit)))


def export_rows(
    session: Session, *, tenant_id: str | None = None, period: Period | None = None
) -> Iterator[dict[str, Any]]:
    """One row per line, and one without a line for an invoice that has none, keyed by ``EXPORT_COLUMNS``.

    Read page by page, so a large export needs no more memory than a small one. Amounts are minor units,
    quantities canonical decimal text, instants UTC text.
    """
    after: tuple[str, str] | None = None
    while page := list_invoices(session, tenant_id=tenant_id, period=period, after=after, limit=_EXPORT_PAGE):
        after = (page[-1].tenant_id, page[-1].id)
        lines = _lines_between(session, page)
        for invoice in page:
            for line in lines.get(invoice.id) or [None]:
                yield _export_row(invoice, line)
        for read in page:
            session.expunge(read)


def _lines_between(session: Session, page: Sequence[Invoice]) -> dict[str, list[InvoiceLine | None]]:
    """The lines of a page of invoices, by one walk along the key; the page is sorted by (tenant, id)."""
    key = tuple_(InvoiceLine.tenant_id, InvoiceLine.invoice_id)
    first, last = page[0], page[-1]
    between = select(InvoiceLine).where(
        key >= tuple_(first.tenant_id, first.id), key <= tuple_(last.tenant_id, last.id)
    )
    found: dict[str, list[InvoiceLine | None]] = {invoice.id: [] for invoice in page}
    for line in session.scalars(
        between.order_by(InvoiceLine.tenant_id, InvoiceLine.invoice_id, InvoiceLine.position)
    ):
        if line.invoice_id in found:
            found[line.invoice_id].append(line)
        session.expunge(line)
    return found


def _export_row(invoice: Invoice, line: InvoiceLine | None) -> dict[str, Any]:
    return {
        "tenant_id": invoice.tenant_id,
        "invoice_id": invoice.id,
        "series": invoice.series,
        "number": invoice.number,
        "status": invoice.status,
        "currency": invoice.currency,
        "period_start": canonical_instant(invoice.period_start),
        "period_end": canonical_instant(invoice.period_end),
        "total_amount": invoice.total_amount,
        "position": None if line is None else line.position,
        "kind": None if line is None else line.kind,
        "metric": None if line is None else line.metric,
        "description": None if line is None else line.description,
        "quantity": None if line is None else canonical_decimal(line.quantity),
        "amount": None if line is None else line.amount,
    }
