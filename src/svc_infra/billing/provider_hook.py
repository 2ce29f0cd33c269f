"""Calling a ``provider_sync`` hook after the commit of its invoice, so that it can never lose the invoice."""

from __future__ import annotations

import asyncio
from inspect import isawaitable

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.billing.models import Invoice, InvoiceLine
from svc_infra.billing.provider import ProviderSync
from svc_infra.db.after_commit import call_after_commit

log = structlog.get_logger(__name__)

# A loop holds its tasks weakly; this is what keeps them until they are done.
_running: set[asyncio.Task[None]] = set()


def sync_after_commit(session: Session, tenant_id: str, invoice_id: str, hook: ProviderSync) -> None:
    """Call ``hook`` with the invoice and its lines once the session's transaction has committed.

    In a running event loop the call is a task of it (``provider_syncs`` waits for those), otherwise it is
    done when ``commit`` returns.
    """
    session.flush()
    invoice, lines = _copies(session, tenant_id, invoice_id)
    call_after_commit(session, lambda: _start(hook, invoice, lines))


async def provider_syncs() -> None:
    """Wait until every hook that was started in this event loop has ended, well or not."""
    loop = asyncio.get_running_loop()
    while mine := [task for task in _running if task.get_loop() is loop]:
        await asyncio.wait(mine)


def _copies(session: Session, tenant_id: str, invoice_id: str) -> tuple[Invoice, list[InvoiceLine]]:
    """The invoice and its lines as objects of no session, which may be read at any time, in any thread."""
    invoices, lines = Invoice.__table__, InvoiceLine.__table__
    invoice = session.execute(
        select(invoices).where(invoices.c.tenant_id == tenant_id, invoices.c.id == invoice_id)
    ).one()
    rows = session.execute(
        select(lines)
        .where(lines.c.tenant_id == tenant_id, lines.c.invoice_id == invoice_id)
        .order_by(lines.c.position)
    )
    return Invoice(**invoice._mapping), [InvoiceLine(**row._mapping) for row in rows]


def _start(hook: ProviderSync, invoice: Invoice, lines: list[InvoiceLine]) -> None:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_logged(hook, invoice, lines))
        return
    task = loop.create_task(_logged(hook, invoice, lines))
    _running.add(task)
    task.add_done_callback(_running.discard)


async def _logged(hook: ProviderSync, invoice: Invoice, lines: list[InvoiceLine]) -> None:
    [outcome] = await asyncio.gather(_call(hook, invoice, lines), return_exceptions=True)
    if isinstance(outcome, BaseException):
        # The invoice is committed: there is nobody left to raise to.
        log.error(
            "billing.provider_sync_failed",
            tenant_id=invoice.tenant_id,
            invoice_id=invoice.id,
            exc_info=outcome,
        )


async def _call(hook: ProviderSync, invoice: Invoice, lines: list[InvoiceLine]) -> None:
    result = hook(invoice, lines)
    if isawaitable(result):
        await result
