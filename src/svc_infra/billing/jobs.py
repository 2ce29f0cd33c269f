"""Billing's two jobs: enqueueing them, and handling whole batches of them in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from time import perf_counter

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra import failpoints
from svc_infra.billing import invoice_jobs
from svc_infra.billing.aggregation import DayKey, DayTotal, recompute
from svc_infra.billing.first_use import ready
from svc_infra.billing.invoice_bounds import NO_BOUND, RunBound
from svc_infra.billing.invoicing import InvoiceRequest, generate_invoices
from svc_infra.billing.job_outcomes import INVOICE_CREATED as INVOICE_CREATED
from svc_infra.billing.job_outcomes import Publisher, parsed, refusal
from svc_infra.billing.metrics import AGGREGATE_MILLISECONDS, INVOICES_GENERATED
from svc_infra.billing.money import normalize_currency
from svc_infra.billing.periods import day_bounds
from svc_infra.billing.provider import enqueue_sync
from svc_infra.billing.quota_watch import announce_recorded
from svc_infra.billing.schemas import (
    AggregateDaily,
    GenerateMonthlyInvoice,
)
from svc_infra.billing.tenants import zones_of
from svc_infra.canonical import canonical_decimal, canonical_instant
from svc_infra.clock import Clock, SystemClock
from svc_infra.db.after_commit import call_after_commit
from svc_infra.exceptions import InvalidPeriod
from svc_infra.jobs.handlers import Handlers, SessionFactory
from svc_infra.jobs.job import Job
from svc_infra.jobs.outcome import Discard, Outcome
from svc_infra.jobs.queue import Enqueuer
from svc_infra.webhooks.service import Publication

AGGREGATE_DAILY = "billing.aggregate_daily"
GENERATE_MONTHLY_INVOICE = "billing.generate_monthly_invoice"
USAGE_AGGREGATED = "billing.usage_aggregated"
BATCH_SIZE = 500


def enqueue_aggregate_daily(
    queue: Enqueuer, *, tenant_id: str, metric: str, day_start: datetime, delay_seconds: float = 0
) -> Job:
    """Enqueue the aggregation of the tenant's local day that ``day_start``, any instant of it, falls on.

    Not awaited. A durable queue is bound to the session first: ``queue.bind(session)``.

    Raises:
        InvalidPayload: an argument is missing or of another kind.
        NotInTransaction: the queue is durable and not bound.
    """
    values = {"tenant_id": tenant_id, "metric": metric, "day_start": day_start}
    payload = AggregateDaily.parse(values).to_payload()
    return queue.enqueue(AGGREGATE_DAILY, payload, tenant_id=tenant_id, delay_seconds=delay_seconds)


def enqueue_generate_monthly_invoice(
    queue: Enqueuer,
    *,
    tenant_id: str,
    period_start: datetime,
    period_end: datetime,
    currency: str,
    delay_seconds: float = 0,
) -> Job:
    """Enqueue the invoice of a half-open period bounded by midnights of the tenant's zone. Not awaited.

    Raises:
        InvalidPayload: an argument is missing or of another kind.
        NotInTransaction: the queue is durable and not bound.
    """
    values = {
        "tenant_id": tenant_id,
        "period_start": period_start,
        "period_end": period_end,
        "currency": currency,
    }
    payload = GenerateMonthlyInvoice.parse(values).to_payload()
    return queue.enqueue(GENERATE_MONTHLY_INVOICE, payload, tenant_id=tenant_id, delay_seconds=delay_seconds)


def make_billing_job_handler(
    *, session_factory: SessionFactory, webhooks: Publisher, clock: Clock | None = None
) -> Handlers:
    """Return the handler of billing's jobs for ``process_one(queue, handler)``, or to include in others.

    Its rows, messages and the completion of a durable job of the same database commit together.
    """
    handlers = Handlers(session_factory, clock=clock)
    register(handlers, webhooks, clock=clock)
    return handlers


def register(
    handlers: Handlers,
    webhooks: Publisher,
    *,
    clock: Clock | None = None,
    has_provider: bool = False,
    bound: RunBound = NO_BOUND,
) -> None:
    """Add the handlers of billing's jobs, which publish through ``webhooks``.

    With ``has_provider`` each issued invoice gets its ``billing.sync_invoice`` in the same transaction. A
    tenant that would exceed ``bound`` is parked, and its jobs wait until it is unparked.
    """
    time = clock or SystemClock()
    invoice_jobs.register(handlers, webhooks, clock=time, has_provider=has_provider, bound=bound)

    async def aggregate_daily(jobs: Sequence[Job], session: AsyncSession) -> Mapping[str, Outcome]:
        return await session.run_sync(_aggregate_daily, jobs, webhooks, time.now())

    async def generate_monthly_invoice(jobs: Sequence[Job], session: AsyncSession) -> Mapping[str, Outcome]:
        return await session.run_sync(
            _generate_monthly_invoice, jobs, webhooks, time.now(), has_provider, bound
        )

    handlers.add_batch(AGGREGATE_DAILY, aggregate_daily, batch_size=BATCH_SIZE)
    handlers.add_batch(GENERATE_MONTHLY_INVOICE, generate_monthly_invoice, batch_size=BATCH_SIZE)


def _aggregate_daily(
    session: Session, jobs: Sequence[Job], webhooks: Publisher, now: datetime
) -> dict[str, Outcome]:
    """Recompute the days of the jobs and publish each total that was not published before."""
    started = perf_counter()
    ready(session)
    payloads, refused = parsed(jobs, AggregateDaily)
    zones = zones_of(session, {payload.tenant_id for payload in payloads.values()})
    keys: set[DayKey] = set()
    for job_id, payload in payloads.items():
        try:
            keys.add(_day_of(payload, zones[payload.tenant_id]))
        except InvalidPeriod as error:
            refused[job_id] = Discard(str(error))
    failpoints.reached("handler_before_writes")
    totals = recompute(session, keys, now=now, will_publish=True)
    webhooks.publish_many(session, [_aggregated(day, now) for day in totals if not day.is_published])
    changed = [(*day.key[:2], day.key.day.start) for day in totals if not day.is_published]
    announce_recorded(session, changed, now=now, webhooks=webhooks)
    failpoints.reached("handler_after_writes")
    AGGREGATE_MILLISECONDS.observe((perf_counter() - started) * 1000)
    return refused


def _generate_monthly_invoice(
    session: Session,
    jobs: Sequence[Job],
    webhooks: Publisher,
    now: datetime,
    has_provider: bool,
    bound: RunBound,
) -> dict[str, Outcome]:
    """Make the invoices of the jobs, publish those that did not exist before, and have them mirrored."""
    ready(session)
    payloads, outcomes = parsed(jobs, GenerateMonthlyInvoice)
    requests = [
        InvoiceRequest(p.tenant_id, p.period_start, p.period_end, p.currency, p.cycle)
        for p in payloads.values()
    ]
    failpoints.reached("handler_before_writes")
    created = []
    issued: list[tuple[str, str]] = []
    results = generate_invoices(session, requests, now=now, bound=bound)
    for job_id, request, result in zip(payloads, requests, results, strict=True):
        if result.error is not None:
            outcomes[job_id] = refusal(result.error)
        elif result.is_new and result.invoice_id is not None:
            created.append(_created(request, result.invoice_id, now))
            # A draft is mirrored when it is finalized.
            issued += [(request.tenant_id, result.invoice_id)] if result.is_issued else []
    webhooks.publish_many(session, created)
    if has_provider:
        enqueue_sync(session, issued, now=now)
    failpoints.reached("handler_after_writes")
    if created:
        call_after_commit(session, lambda: INVOICES_GENERATED.inc(len(created)))
    return outcomes


def _day_of(payload: AggregateDaily, zone: tzinfo) -> DayKey:
    return DayKey(payload.tenant_id, payload.metric, day_bounds(payload.day_start, zone))


def _aggregated(day: DayTotal, now: datetime) -> Publication:
    tenant_id, metric, period = day.key
    # What ``UsageAggregated`` writes; the catalogue of topics reads it with that model when it is published.
    payload = {
        "tenant_id": tenant_id,
        "metric": metric,
        "day_start": canonical_instant(period.start),
        "total": canonical_decimal(day.total),
    }
    return Publication(USAGE_AGGREGATED, payload, tenant_id, now)


def _created(request: InvoiceRequest, invoice_id: str, now: datetime) -> Publication:
    # What ``InvoiceCreated`` writes; the catalogue of topics reads it with that model when it is published.
    payload = {
        "tenant_id": request.tenant_id,
        "invoice_id": invoice_id,
        "period_start": canonical_instant(request.period_start),
        "period_end": canonical_instant(request.period_end),
        "currency": normalize_currency(request.currency),
    }
    return Publication(INVOICE_CREATED, payload, request.tenant_id, now)
