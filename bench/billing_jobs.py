"""Billing's jobs through their batch handlers, with outbox messages, in one worker process: jobs a second.

    python bench/billing_jobs.py [--jobs 20000] [--json] [--quick]

Every tenant has one subscription with a base fee and a usage price, and one day of usage. All jobs are
enqueued before the worker starts; the time is from its start until all are completed, and the rows that they
have to leave behind are counted in the database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from _common import KINDS, Measure, arguments, check_equal, databases, note, report
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.jobs import AGGREGATE_DAILY, GENERATE_MONTHLY_INVOICE
from svc_infra.billing.models import Invoice, InvoiceLine, UsageAggregate
from svc_infra.billing.schemas import AggregateDaily, GenerateMonthlyInvoice
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.cli.context import collect_garbage_rarely
from svc_infra.config import Settings
from svc_infra.db.migration import migrate, packaged_folder
from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.db.session import make_engine
from svc_infra.jobs.job import JobRequest, JobState
from svc_infra.jobs.models import JobRow
from svc_infra.jobs.sql import insert_jobs
from svc_infra.logs import configure_logging
from svc_infra.runtime import Runtime
from svc_infra.webhooks.transport import HttpSender

_BATCH = 2_000
_MONTH = (datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC))
_DAY = datetime(2025, 1, 15, tzinfo=UTC)
_METRIC = "cds"
_TARGETS = {
    ("aggregate_daily", "postgresql"): 10_000,
    ("generate_monthly_invoice", "postgresql"): 3_000,
}


def main() -> None:
    parser = arguments("billing jobs a second in one worker process")
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs of each kind")
    options = parser.parse_args()
    configure_logging("warning")
    collect_garbage_rarely()  # as the worker does
    jobs = min(options.jobs, 6_000) if options.quick else options.jobs
    measures = []
    with databases() as fresh:
        for kind in KINDS:
            runs = [asyncio.run(_run(fresh(kind), jobs)) for _ in range(options.runs or 1)]
            for name in runs[0]:
                rate = sorted(run[name] for run in runs)[len(runs) // 2]
                measures.append(Measure(f"{name}_{kind}", "jobs/s", rate, target=_TARGETS.get((name, kind))))
    report(measures, as_json=options.json)


async def _run(url: str, jobs: int) -> dict[str, float]:
    engine, sender = make_engine(url), HttpSender()
    try:
        await migrate(engine)
        tenants = [f"tenant_{number:06d}" for number in range(jobs)]
        note(f"{engine.dialect.name}: {jobs:,} tenants with a subscription and usage")
        await _seed(engine, tenants)
        runtime = Runtime(Settings(), engine, sender)
        aggregates = await _measure(runtime, [_aggregate(tenant) for tenant in tenants])
        await _check(engine, {UsageAggregate: jobs, OutboxMessageRow: jobs})
        invoices = await _measure(runtime, [_invoice(tenant) for tenant in tenants])
        await _check(engine, {Invoice: jobs, InvoiceLine: 2 * jobs, OutboxMessageRow: 2 * jobs})
    finally:
        await sender.aclose()
        await engine.dispose()
    return {"aggregate_daily": aggregates, "generate_monthly_invoice": invoices}


async def _seed(engine: AsyncEngine, tenants: Sequence[str]) -> None:
    catalog = parse_catalog((packaged_folder("config") / "catalog.toml").read_text(), "catalog.toml")
    assert catalog.default_plan is not None
    plan = catalog.default_plan.key
    now = datetime.now(UTC)
    await _in_transaction(engine, apply_catalog, catalog, now)
    for start in range(0, len(tenants), _BATCH):
        batch = tenants[start : start + _BATCH]
        subscriptions = [NewSubscription(tenant, plan, _MONTH[0]) for tenant in batch]
        events = [NewUsage(tenant, _METRIC, Decimal(5), _DAY, "1") for tenant in batch]
        await _in_transaction(engine, subscribe_many, subscriptions, now)
        await _in_transaction(engine, record_many, events, now)


async def _measure(runtime: Runtime, requests: Sequence[JobRequest]) -> float:
    """Enqueue, then time one worker from its start until nothing is left, and check that all completed."""
    now = datetime.now(UTC)
    for start in range(0, len(requests), _BATCH):
        batch = requests[start : start + _BATCH]
        await _in_transaction(runtime.engine, insert_jobs, batch, now)
    note(f"{runtime.engine.dialect.name}: {len(requests):,} jobs {requests[0].name}")
    started = time.perf_counter()
    await runtime.worker.drain()
    seconds = time.perf_counter() - started
    async with AsyncSession(runtime.engine) as session:
        completed = await session.scalar(
            select(func.count())
            .select_from(JobRow)
            .where(JobRow.name == requests[0].name, JobRow.state == JobState.COMPLETED.value)
        )
    check_equal("completed jobs", completed, len(requests))
    return len(requests) / seconds


async def _check(engine: AsyncEngine, expected: dict[type[Any], int]) -> None:
    async with AsyncSession(engine) as session:
        for table, count in expected.items():
            found = await session.scalar(select(func.count()).select_from(table))
            check_equal(table.__tablename__, found, count)


async def _in_transaction(
    engine: AsyncEngine, work: Callable[..., object], new: object, now: datetime
) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.run_sync(work, new, now=now)


def _aggregate(tenant_id: str) -> JobRequest:
    payload = AggregateDaily(tenant_id=tenant_id, metric=_METRIC, day_start=_DAY)
    return JobRequest(AGGREGATE_DAILY, payload.to_payload(), tenant_id=tenant_id)


def _invoice(tenant_id: str) -> JobRequest:
    payload = GenerateMonthlyInvoice(
        tenant_id=tenant_id, period_start=_MONTH[0], period_end=_MONTH[1], currency="usd"
    )
    return JobRequest(GENERATE_MONTHLY_INVOICE, payload.to_payload(), tenant_id=tenant_id)


if __name__ == "__main__":
    main()
