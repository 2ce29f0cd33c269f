"""The proof: every stored invoice held against the one that the oracle works out from the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from svc_infra.billing.models import Invoice, InvoiceLine, UsageAggregate, UsageEvent
from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.simulation.oracle import Oracle
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.models import DeliveryRow

_TENANTS_AT_A_TIME = 500
_DIFFERENCES_KEPT = 20

Line = tuple[str, Fraction, int]
BilledInvoice = tuple[str, tuple[Line, ...], int]
"""Month, lines and total: the form in which both sides are compared."""


@dataclass(frozen=True)
class Counts:
    """How many rows there are of what the demo reports; ``deliveries`` are the delivered ones."""

    tenants: int
    aggregates: int
    invoices: int
    invoice_lines: int
    invoiced_minor: int
    messages: int
    deliveries: int


@dataclass(frozen=True)
class Reconciliation:
    """How many invoices were compared, and the first differences in words."""

    compared: int
    differences: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every invoice is what it must be, and there is no other."""
        return not self.differences


def count_rows(session: Session) -> Counts:
    """Count what is stored."""

    def scalar(statement: Any) -> int:
        return int(session.scalar(statement) or 0)

    return Counts(
        tenants=scalar(select(func.count(UsageEvent.tenant_id.distinct()))),
        aggregates=scalar(select(func.count()).select_from(UsageAggregate)),
        invoices=scalar(select(func.count()).select_from(Invoice)),
        invoice_lines=scalar(select(func.count()).select_from(InvoiceLine)),
        invoiced_minor=scalar(select(func.sum(Invoice.total_amount))),
        messages=scalar(select(func.count()).select_from(OutboxMessageRow)),
        deliveries=scalar(
            select(func.count())
            .select_from(DeliveryRow)
            .where(DeliveryRow.state == DeliveryState.DELIVERED.value)
        ),
    )


def reconcile(session: Session, oracle: Oracle, progress: Callable[[float], None]) -> Reconciliation:
    """Compare every invoice of every tenant with the oracle's, line by line."""
    differences: list[str] = []
    compared = 0
    tenants = sorted(oracle.tenants)
    for start in range(0, len(tenants), _TENANTS_AT_A_TIME):
        chunk = tenants[start : start + _TENANTS_AT_A_TIME]
        stored = _stored_invoices(session, chunk)
        for tenant_id in chunk:
            expected: list[BilledInvoice] = [
                (each.month, tuple(each.lines), each.total_minor)
                for each in oracle.expected_invoices(tenant_id)
            ]
            billed = stored.get(tenant_id, [])
            compared += len(billed)
            if billed != expected and len(differences) < _DIFFERENCES_KEPT:
                differences.append(f"{tenant_id}: billed {billed!r:.300}, expected {expected!r:.300}")
        progress((start + len(chunk)) / len(tenants))
    invoices = int(session.scalar(select(func.count()).select_from(Invoice)) or 0)
    if invoices != compared:
        differences.append(f"{invoices:,} invoices are stored, {compared:,} belong to tenants of the file")
    return Reconciliation(compared, tuple(differences))


def _stored_invoices(session: Session, tenant_ids: Sequence[str]) -> dict[str, list[BilledInvoice]]:
    lines_of = _stored_lines(session, tenant_ids)
    invoices = session.execute(
        select(Invoice.tenant_id, Invoice.id, Invoice.period_start, Invoice.total_amount)
        .where(Invoice.tenant_id.in_(tenant_ids))
        .order_by(Invoice.tenant_id, Invoice.period_start)
    )
    return {
        tenant_id: [
            (f"{start:%Y-%m}", tuple(sorted(lines_of.get(invoice_id, ()))), total)
            for _, invoice_id, start, total in rows
        ]
        for tenant_id, rows in groupby(invoices, key=lambda row: row[0])
    }


def _stored_lines(session: Session, tenant_ids: Sequence[str]) -> dict[str, list[Line]]:
    rows = session.execute(
        select(
            InvoiceLine.invoice_id, InvoiceLine.price_snapshot, InvoiceLine.quantity, InvoiceLine.amount
        ).where(InvoiceLine.tenant_id.in_(tenant_ids))
    )
    lines: dict[str, list[Line]] = {}
    for invoice_id, snapshot, quantity, amount in rows:
        lines.setdefault(invoice_id, []).append((snapshot["key"], Fraction(quantity), amount))
    return lines
