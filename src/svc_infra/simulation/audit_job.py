"""The nightly audit in the worker: a schedule, its job, a metric, and an operational webhook."""

from __future__ import annotations

from datetime import datetime

import structlog
from prometheus_client import Gauge
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.application import Application
from svc_infra.canonical import canonical_instant
from svc_infra.clock import Clock, SystemClock
from svc_infra.config import SchedulerSettings
from svc_infra.db.outbox import OutboxMessage, SqlOutboxStore
from svc_infra.jobs.cron import CatchUp, CronSchedule
from svc_infra.jobs.job import Job
from svc_infra.jobs.scheduler import Schedule
from svc_infra.simulation.audit import AuditReport, audit
from svc_infra.webhooks.catalogue import TopicCatalogue
from svc_infra.webhooks.message import encode_body, new_message_id

AUDIT = "billing.audit"
AUDIT_DIFFERENCE = "billing.audit.difference"
DIFFERENCES = Gauge("billing_audit_differences", "Differences that the last audit of this process found.")

_TOLD = 20

log = structlog.get_logger(__name__)


class FoundDifference(BaseModel):
    """One difference.

    ``kind`` is total, number, overlap, quantity, amount, day total, unbilled, credit, adjustment or
    credit note.
    """

    tenant_id: str
    kind: str
    invoice_id: str | None
    text: str


class AuditDifference(BaseModel):
    """Of ``billing.audit.difference``: what a nightly audit found, the first 20 in words."""

    audited_at: str
    difference_count: int
    differences: list[FoundDifference]


def add_audit(
    application: Application,
    session_factory: async_sessionmaker[AsyncSession],
    scheduler: SchedulerSettings,
    *,
    clock: Clock | None = None,
) -> None:
    """Add the nightly audit to a worker: its schedule, its handler and its topic."""
    time = clock or SystemClock()

    async def run(job: Job) -> None:
        report = await audit(session_factory)
        DIFFERENCES.set(report.difference_count)
        log.info(
            "billing.audited",
            tenants=report.tenants,
            invoices=report.invoices,
            events=report.events,
            differences=report.difference_count,
        )
        if not report.is_clean:
            async with session_factory.begin() as session:
                await session.run_sync(
                    lambda sync: SqlOutboxStore().add([_message(report, job.id, time.now())], session=sync)
                )

    application.handlers.add_plain(AUDIT, run)
    application.schedules.append(audit_schedule(scheduler))
    application.topics.include(audit_topics())


def audit_schedule(scheduler: SchedulerSettings) -> Schedule:
    """Return the schedule of the nightly audit.

    Raises:
        InvalidSchedule: its rule or its zone cannot be used.
    """
    cron = CronSchedule(scheduler.audit_cron, scheduler.timezone)
    return Schedule(AUDIT, cron, AUDIT, catch_up=CatchUp.LATEST)


def audit_topics() -> TopicCatalogue:
    """Return the topic of the nightly audit: the operator's, so an endpoint of a tenant does not get it."""
    topics = TopicCatalogue()
    topics.add(
        AUDIT_DIFFERENCE,
        AuditDifference,
        description="The nightly audit found invoices or totals that are not what the events come to.",
        example={
            "audited_at": "2025-02-01T03:30:00Z",
            "difference_count": 1,
            "differences": [
                {
                    "tenant_id": "t1",
                    "kind": "total",
                    "invoice_id": "0194b1e0-0000-7000-8000-000000000009",
                    "text": "the total is 1000, its lines add up to 900",
                }
            ],
        },
    )
    return topics


def _message(report: AuditReport, job_id: str, now: datetime) -> OutboxMessage:
    payload = AuditDifference(
        audited_at=canonical_instant(now),
        difference_count=report.difference_count,
        differences=[
            FoundDifference(
                tenant_id=each.tenant_id, kind=each.kind, invoice_id=each.invoice_id, text=each.text
            )
            for each in report.differences[:_TOLD]
        ],
    )
    body = encode_body(AUDIT_DIFFERENCE, now, payload.model_dump())
    # The job may run again; of messages with one idempotency key only the first is published.
    return OutboxMessage(new_message_id(), AUDIT_DIFFERENCE, None, body, now, None, job_id)
