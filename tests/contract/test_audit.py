"""The audit finds every kind of difference that is planted, and none where there is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.application import Application
from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.invoicing import InvoiceRequest, generate_invoices
from svc_infra.billing.models import Tenant
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.clock import FixedClock
from svc_infra.config import Settings
from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.jobs.job import JobRequest
from svc_infra.jobs.sql import insert_jobs
from svc_infra.runtime import Runtime
from svc_infra.simulation.audit import AuditReport, audit
from svc_infra.simulation.audit_job import AUDIT, add_audit
from svc_infra.testing.webhooks import loopback_sender

Sessions = async_sessionmaker[AsyncSession]

START = datetime(2025, 1, 1, 5, tzinfo=UTC)  # midnight in New York
END = datetime(2025, 2, 1, 5, tzinfo=UTC)
NOW = END + timedelta(hours=1)
CATALOG = """
[[plans]]
key = "pro"
default = true
[[prices]]
key = "base"
plan = "pro"
currency = "usd"
unit_amount = "500"
recurring_interval = "month"
[[prices]]
key = "calls"
plan = "pro"
currency = "usd"
metric = "calls"
model = "graduated"
minimum_amount = "50"
tiers = [{ up_to = "10", unit_amount = "0" }, { unit_amount = "2.5", flat_amount = "7" }]
[[prices]]
key = "bytes"
plan = "pro"
currency = "usd"
metric = "bytes"
unit_amount = "0.1"
"""


@pytest.fixture(autouse=True)
async def _billed(session_factory: Sessions) -> None:
    """Two tenants with a month of usage in New York, invoiced."""

    def bill(session: Any) -> None:
        apply_catalog(session, parse_catalog(CATALOG), now=START)
        for tenant_id in ("t1", "t2"):
            session.add(Tenant(tenant_id=tenant_id, timezone="America/New_York", created_at=START))
        session.flush()
        plans = [NewSubscription(f"t{n}", "pro", START + timedelta(days=n - 1)) for n in (1, 2)]
        subscribe_many(session, plans, now=START)
        events = [
            NewUsage(tenant_id, metric, Decimal(amount), at, f"{metric}{at}")
            for tenant_id in ("t1", "t2")
            for metric, amount in (("calls", "7.5"), ("bytes", "1001"))
            for at in (START + timedelta(days=2), START + timedelta(days=9), END - timedelta(seconds=1))
        ]
        record_many(session, events, now=START)
        requests = [InvoiceRequest(tenant_id, START, END, "usd") for tenant_id in ("t1", "t2")]
        for result in generate_invoices(session, requests, now=NOW):
            assert result.error is None

    async with session_factory.begin() as session:
        await session.run_sync(bill)


async def run(sessions: Sessions, **options: Any) -> AuditReport:
    return await audit(sessions, **options)


async def test_what_billing_wrote_is_clean(session_factory: Sessions) -> None:
    report = await run(session_factory)
    assert report.differences == []
    assert (report.tenants, report.invoices, report.events) == (2, 2, 12)
    assert (report.recomputed, report.unknown, report.waiting) == (6, 0, 0)


OF_T1 = "WHERE tenant_id = 't1'"
PLANTED = {
    "total": f"UPDATE invoices SET total_amount = total_amount + 1 {OF_T1}",
    "number": f"UPDATE invoices SET number = 3 {OF_T1}",
    "amount": f"UPDATE invoice_lines SET amount = amount + 1 {OF_T1} AND metric = 'calls'",
    "amount of a fixed price": f"UPDATE invoice_lines SET amount = 501 {OF_T1} AND metric IS NULL",
    "quantity": f"DELETE FROM usage_events {OF_T1} AND metric = 'calls' AND at_ts > '2025-01-30'",
    "day total": f"UPDATE usage_aggregates SET total = '8' {OF_T1} AND metric = 'calls'",
    "unbilled": f"DELETE FROM invoice_lines {OF_T1} AND metric = 'bytes'",
}


@pytest.mark.parametrize("kind", PLANTED)
async def test_a_planted_difference_is_found(
    session_factory: Sessions, engine: AsyncEngine, kind: str
) -> None:
    async with engine.begin() as connection:
        await without_guards(connection)
        await connection.execute(text(PLANTED[kind]))
    report = await run(session_factory)
    assert kind.split(" of a ")[0] in {each.kind for each in report.differences}
    assert {each.tenant_id for each in report.differences} == {"t1"}
    assert (await run(session_factory, tenant_id="t2")).is_clean


async def without_guards(connection: Any) -> None:
    """Take away the triggers that keep an issued invoice as it is: a fault may be older than they."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SET session_replication_role = replica"))
        return
    triggers = await connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'"))
    for name in triggers.all():
        await connection.execute(text(f'DROP TRIGGER "{name}"'))


async def test_usage_that_is_still_to_be_counted_is_no_difference(
    session_factory: Sessions,
) -> None:
    async with session_factory.begin() as session:
        late = [NewUsage("t1", "calls", Decimal(100), START + timedelta(days=3), "late")]
        await session.run_sync(record_many, late, now=NOW)
    report = await run(session_factory)
    assert (report.difference_count, report.waiting) == (0, 1)


async def test_late_usage_that_was_settled_is_clean(session_factory: Sessions) -> None:
    async with session_factory.begin() as session:
        late = [NewUsage("t1", "calls", Decimal(100), START + timedelta(days=3), "late")]
        await session.run_sync(record_many, late, now=NOW)
    february = InvoiceRequest("t1", END, datetime(2025, 3, 1, 5, tzinfo=UTC), "usd")
    async with session_factory.begin() as session:
        await session.run_sync(generate_invoices, [february], now=datetime(2025, 3, 1, 6, tzinfo=UTC))
    report = await run(session_factory)
    assert (report.differences, report.waiting, report.invoices) == ([], 0, 3)


async def test_the_nightly_job_tells_the_operator(session_factory: Sessions, engine: AsyncEngine) -> None:
    application, settings, sender = Application(), Settings(), loopback_sender()
    clock = FixedClock(NOW)
    add_audit(application, session_factory, settings.scheduler, clock=clock)
    runtime = Runtime(settings, engine, sender, clock=clock, application=application)
    for planted in (None, PLANTED["total"]):
        async with engine.begin() as connection:
            if planted:
                await without_guards(connection)
                await connection.execute(text(planted))
        async with session_factory.begin() as session:
            await session.run_sync(insert_jobs, [JobRequest(AUDIT, {})], now=NOW)
        await runtime.worker.drain()
    await sender.aclose()
    async with session_factory() as session:
        found = select(OutboxMessageRow).where(OutboxMessageRow.topic == "billing.audit.difference")
        message = (await session.scalars(found)).one()
    data = json.loads(message.body)["data"]
    assert message.tenant_id is None
    assert (data["difference_count"], data["differences"][0]["kind"]) == (1, "total")
