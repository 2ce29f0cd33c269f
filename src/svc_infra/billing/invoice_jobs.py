"""The jobs that finalize drafts and bill what waits where no next invoice is due, whole batches at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra.billing.invoice_bounds import NO_BOUND, RunBound
from svc_infra.billing.invoice_closing import generate_closing_invoices
from svc_infra.billing.invoice_models import Invoice
from svc_infra.billing.invoicing import finalize_invoices
from svc_infra.billing.job_outcomes import INVOICE_CREATED, Publisher, parsed, refusal
from svc_infra.billing.metrics import INVOICES_GENERATED
from svc_infra.billing.provider import enqueue_sync
from svc_infra.billing.schemas import BillLateUsage, FinalizeInvoice, InvoiceCreated
from svc_infra.clock import Clock, SystemClock
from svc_infra.db.after_commit import call_after_commit
from svc_infra.jobs.handlers import Handlers
from svc_infra.jobs.job import Job, JobRequest
from svc_infra.jobs.outcome import Outcome
from svc_infra.webhooks.service import Publication

FINALIZE_INVOICE = "billing.finalize_invoice"
BILL_LATE_USAGE = "billing.bill_late_usage"
_BATCH_SIZE = 200


def register(
    handlers: Handlers,
    webhooks: Publisher,
    *,
    clock: Clock | None = None,
    has_provider: bool = False,
    bound: RunBound = NO_BOUND,
) -> None:
    """Add the handlers of both jobs, which publish through ``webhooks``, and mirror what they issue."""
    time = clock or SystemClock()

    async def finalize(jobs: Sequence[Job], session: AsyncSession) -> Mapping[str, Outcome]:
        return await session.run_sync(_finalize, jobs, time.now(), has_provider, bound)

    async def bill_late_usage(jobs: Sequence[Job], session: AsyncSession) -> Mapping[str, Outcome]:
        return await session.run_sync(_bill_late_usage, jobs, webhooks, time.now(), has_provider)

    handlers.add_batch(FINALIZE_INVOICE, finalize, batch_size=_BATCH_SIZE)
    handlers.add_batch(BILL_LATE_USAGE, bill_late_usage, batch_size=_BATCH_SIZE)


def finalize_request(tenant_id: str, invoice_id: str, queue: str) -> JobRequest:
    """The job that finalizes a draft."""
    payload = FinalizeInvoice(tenant_id=tenant_id, invoice_id=invoice_id).to_payload()
    return JobRequest(FINALIZE_INVOICE, payload, queue=queue, tenant_id=tenant_id)


def late_usage_request(tenant_id: str, queue: str) -> JobRequest:
    """The job that bills what waits for a tenant without a next invoice."""
    payload = BillLateUsage(tenant_id=tenant_id).to_payload()
    return JobRequest(BILL_LATE_USAGE, payload, queue=queue, tenant_id=tenant_id)


def _finalize(
    session: Session, jobs: Sequence[Job], now: datetime, has_provider: bool, bound: RunBound
) -> dict[str, Outcome]:
    payloads, outcomes = parsed(jobs, FinalizeInvoice)
    wanted = [(payload.tenant_id, payload.invoice_id) for payload in payloads.values()]
    results = finalize_invoices(session, wanted, now=now, bound=bound)
    for job_id, result in zip(payloads, results, strict=True):
        if result.error is not None:
            outcomes[job_id] = refusal(result.error)
    if has_provider:
        issued = [key for key, result in zip(wanted, results, strict=True) if result.is_issued]
        enqueue_sync(session, issued, now=now)
    return outcomes


def _bill_late_usage(
    session: Session, jobs: Sequence[Job], webhooks: Publisher, now: datetime, has_provider: bool
) -> dict[str, Outcome]:
    payloads, outcomes = parsed(jobs, BillLateUsage)
    made = generate_closing_invoices(session, {each.tenant_id for each in payloads.values()}, now=now)
    webhooks.publish_many(session, list(_publications(made, now)))
    if has_provider:
        enqueue_sync(session, [(invoice.tenant_id, invoice.id) for invoice in made], now=now)
    if made:
        call_after_commit(session, lambda: INVOICES_GENERATED.inc(len(made)))
    return outcomes


def _publications(made: Iterable[Invoice], now: datetime) -> Iterable[Publication]:
    for invoice in made:
        payload = InvoiceCreated(
            tenant_id=invoice.tenant_id,
            invoice_id=invoice.id,
            period_start=invoice.period_start,
            period_end=invoice.period_end,
            currency=invoice.currency,
        )
        yield Publication(INVOICE_CREATED, payload.to_payload(), invoice.tenant_id, now)
