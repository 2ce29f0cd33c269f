"""Mirroring invoices to a payment provider: a durable job per invoice, run with no transaction open.

The job runs at least once, so a provider is given the invoice's id as its idempotency key. A failure is
retried and never touches the invoice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from inspect import isawaitable, iscoroutinefunction
from typing import TypeAlias

from sqlalchemy import update
from sqlalchemy.orm import Session

from svc_infra.billing.invoices import get_invoice, invoice_lines
from svc_infra.billing.models import Invoice, InvoiceLine
from svc_infra.exceptions import NotFound, ProviderRefused
from svc_infra.jobs.handlers import Handlers, SessionFactory
from svc_infra.jobs.job import Job, JobRequest
from svc_infra.jobs.outcome import Discard, Outcome
from svc_infra.jobs.sql import insert_jobs

SYNC_INVOICE = "billing.sync_invoice"

ProviderSync: TypeAlias = Callable[[Invoice, list[InvoiceLine]], Awaitable[str | None] | str | None]
"""Given an invoice and its lines, mirror them; return the provider's id of the invoice, or None.

Called at least once for each finalized invoice, so it has to recognise one that it has mirrored. It raises
ProviderRefused for what trying again would not help; after any other error it is called again later.
"""


def enqueue_sync(session: Session, invoices: Iterable[tuple[str, str]], *, now: datetime) -> list[str]:
    """Enqueue the sync of these (tenant id, invoice id) in the session's transaction; return the job ids."""
    requests = [
        JobRequest(SYNC_INVOICE, {"tenant_id": tenant_id, "invoice_id": invoice_id}, tenant_id=tenant_id)
        for tenant_id, invoice_id in invoices
    ]
    return insert_jobs(session, requests, now=now)


def register_provider_sync(
    handlers: Handlers, session_factory: SessionFactory, provider_sync: ProviderSync
) -> None:
    """Add the handler that calls ``provider_sync``.

    A coroutine function is awaited, any other function runs in a thread. An
    invoice that has a ``provider_invoice_id`` is not sent again.
    """

    async def sync_invoice(job: Job) -> Outcome | None:
        tenant_id, invoice_id = job.payload.get("tenant_id"), job.payload.get("invoice_id")
        if not isinstance(tenant_id, str) or not isinstance(invoice_id, str):
            return Discard(f"job {SYNC_INVOICE!r} needs a tenant_id and an invoice_id in its payload")
        try:
            async with session_factory() as session:
                invoice, lines = await session.run_sync(_read, tenant_id, invoice_id)
        except NotFound as error:
            return Discard(str(error))
        if invoice.provider_invoice_id is not None:
            return None
        try:
            provider_invoice_id = await _call(provider_sync, invoice, lines)
        except ProviderRefused as error:
            return Discard(str(error))
        if provider_invoice_id is not None:
            async with session_factory() as session, session.begin():
                await session.run_sync(_store, tenant_id, invoice_id, provider_invoice_id)
        return None

    handlers.add_plain(SYNC_INVOICE, sync_invoice)


async def _call(provider_sync: ProviderSync, invoice: Invoice, lines: list[InvoiceLine]) -> str | None:
    def call() -> Awaitable[str | None] | str | None:
        return provider_sync(invoice, lines)

    # A plain function may block for as long as the provider takes; the worker's other jobs go on.
    answer = call() if iscoroutinefunction(provider_sync) else await asyncio.to_thread(call)
    return await answer if isawaitable(answer) else answer


def _read(session: Session, tenant_id: str, invoice_id: str) -> tuple[Invoice, list[InvoiceLine]]:
    """The invoice and its lines as objects of no session, which any thread may read."""
    invoice, lines = (
        get_invoice(session, tenant_id, invoice_id),
        invoice_lines(session, tenant_id, invoice_id),
    )
    session.expunge_all()
    return invoice, lines


def _store(session: Session, tenant_id: str, invoice_id: str, provider_invoice_id: str) -> None:
    mirrored = update(Invoice).where(Invoice.tenant_id == tenant_id, Invoice.id == invoice_id)
    session.execute(mirrored.values(provider_invoice_id=provider_invoice_id))
