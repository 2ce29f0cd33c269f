"""The invoicing rows of ``bench/billing.py``: invoices from daily aggregates, and the rating function alone.

    python bench/billing.py --only invoices,rating

Every tenant has one subscription with three usage prices and a total for each day of a month and metric, as
the daily aggregation leaves them. All jobs are enqueued before the worker starts; the time is from its start
until every invoice is numbered and stored with its lines, its outbox message and the completion of its job.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from _common import KINDS, Bench, Measure, check_equal, median_of, note
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.jobs import GENERATE_MONTHLY_INVOICE
from svc_infra.billing.models import Invoice, InvoiceLine, UsageAggregate
from svc_infra.billing.rating import PriceModel, PriceTerms, Tier, rate
from svc_infra.billing.schemas import GenerateMonthlyInvoice
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.config import Settings
from svc_infra.db.migration import migrate
from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.db.session import make_engine
from svc_infra.jobs.job import JobRequest, JobState
from svc_infra.jobs.models import JobRow
from svc_infra.jobs.sql import insert_jobs
from svc_infra.runtime import Runtime
from svc_infra.webhooks.transport import HttpSender

METRICS = ("calls", "bytes", "seats")
DAYS = 31
START, END = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC)
TARGET_INVOICES, TARGET_LINES = 5_000, 100_000
_BATCH = 2_000
CATALOG = """
[[plans]]
key = "standard"
default = true
[[prices]]
key = "calls"
plan = "standard"
currency = "usd"
metric = "calls"
model = "graduated"
tiers = [
  { up_to = "100", unit_amount = "0" },
  { up_to = "1000", unit_amount = "1.25" },
  { unit_amount = "0.9" },
]
[[prices]]
key = "bytes"
plan = "standard"
currency = "usd"
metric = "bytes"
unit_amount = "0.0005"
[[prices]]
key = "seats"
plan = "standard"
currency = "usd"
metric = "seats"
model = "package"
package_size = "10"
unit_amount = "900"
"""
# As the daily aggregation leaves them: totals that are announced, and a note of the month.
_DAYS = {
    "postgresql": """
        INSERT INTO usage_aggregates (id, tenant_id, metric, period_start, period_end, granularity, total,
                                      is_published, updated_at)
        SELECT t || m || d, 'tenant_' || lpad(t::text, 6, '0'), m,
               timestamptz '2025-01-01 00:00Z' + d * interval '1 day',
               timestamptz '2025-01-02 00:00Z' + d * interval '1 day', 'day', 7.25, true, now()
        FROM generate_series(0, :last) t, unnest(array['calls', 'bytes', 'seats']) m, generate_series(0, 30) d
    """,
    "sqlite": """
        WITH RECURSIVE t(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM t WHERE n < :last),
                       d(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM d WHERE n < 30),
                       m(k) AS (VALUES ('calls'), ('bytes'), ('seats'))
        INSERT INTO usage_aggregates (id, tenant_id, metric, period_start, period_end, granularity, total,
                                      is_published, updated_at)
        SELECT t.n || k || d.n, 'tenant_' || printf('%06d', t.n), k,
               strftime('%Y-%m-%d 00:00:00.000000', '2025-01-01', d.n || ' days'),
               strftime('%Y-%m-%d 00:00:00.000000', '2025-01-02', d.n || ' days'), 'day', '7.25', 1,
               '2025-02-01 00:00:00.000000'
        FROM t, m, d
    """,
}
_NOTES = (
    "INSERT INTO usage_changes (tenant_id, metric, month, changes) "
    "SELECT DISTINCT tenant_id, metric, {month}, 31 FROM usage_aggregates"
)
_MONTH = {"postgresql": "date '2025-01-01'", "sqlite": "'2025-01-01'"}


def invoices(bench: Bench) -> list[Measure]:
    """Invoices a second in one process, and the most memory that was held."""
    tenants = 3_000 if bench.is_quick else 10_000
    found = []
    for kind in KINDS:
        rate_ = statistics.median(
            asyncio.run(_invoices(bench.fresh(kind), tenants)) for _ in range(bench.runs)
        )
        target = TARGET_INVOICES if kind == "postgresql" else None
        found.append(Measure(f"invoices_{kind}", "invoices/s", rate_, target=target))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found.append(Measure("invoices_peak_memory", "MB", peak, better="lower"))
    return found


def rating(bench: Bench) -> list[Measure]:
    """``rate`` alone, over prices of three models and quantities that differ."""
    tiers = (Tier(Decimal(100), Decimal(0)), Tier(Decimal(1000), Decimal("1.25")), Tier(None, Decimal("0.9")))
    prices = [
        PriceTerms("g", "usd", PriceModel.GRADUATED, tiers=tiers, metric="m"),
        PriceTerms("u", "usd", PriceModel.PER_UNIT, unit_amount=Decimal("0.0005"), metric="m"),
        PriceTerms("v", "usd", PriceModel.VOLUME, tiers=tiers, metric="m"),
    ]
    quantities = [Decimal(number) / 4 for number in range(1, 10_001)]

    def once() -> float:
        started = time.perf_counter()
        total = 0
        for terms in prices:
            for quantity in quantities:
                total += rate(terms, quantity).amount
        seconds = time.perf_counter() - started
        assert total > 0
        return len(prices) * len(quantities) / seconds

    return [Measure("rating_function", "lines/s", median_of(bench.runs, once), target=TARGET_LINES)]


async def _invoices(url: str, count: int) -> float:
    engine, sender = make_engine(url, statement_timeout_seconds=300), HttpSender()
    try:
        await migrate(engine)
        tenants = [f"tenant_{number:06d}" for number in range(count)]
        note(f"{engine.dialect.name}: {count:,} tenants, {count * len(METRICS) * DAYS:,} daily totals")
        await _seed(engine, tenants)
        runtime = Runtime(Settings(), engine, sender)
        started = time.perf_counter()
        await runtime.worker.drain()
        seconds = time.perf_counter() - started
        await _check(engine, count)
        return count / seconds
    finally:
        await sender.aclose()
        await engine.dispose()


async def _seed(engine: AsyncEngine, tenants: Sequence[str]) -> None:
    now = datetime.now(UTC)
    dialect = engine.dialect.name
    async with AsyncSession(engine) as session, session.begin():
        await session.run_sync(apply_catalog, parse_catalog(CATALOG), now=now)
    for start in range(0, len(tenants), _BATCH):
        batch = tenants[start : start + _BATCH]
        async with AsyncSession(engine) as session, session.begin():
            wanted = [NewSubscription(tenant, "standard", START) for tenant in batch]
            await session.run_sync(subscribe_many, wanted, now=now)
            jobs = [_job(tenant) for tenant in batch]
            await session.run_sync(insert_jobs, jobs, now=now)
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(text(_DAYS[dialect]), {"last": len(tenants) - 1})
        await session.execute(text(_NOTES.format(month=_MONTH[dialect])))
    async with engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        # What autovacuum and the checkpointer would have done long before the month is billed.
        filled = "VACUUM ANALYZE usage_aggregates, usage_changes, subscriptions, jobs"
        for statement in (filled, "CHECKPOINT") if dialect == "postgresql" else ("ANALYZE",):
            await autocommit.execute(text(statement))


def _job(tenant_id: str) -> JobRequest:
    payload = GenerateMonthlyInvoice(tenant_id=tenant_id, period_start=START, period_end=END, currency="usd")
    return JobRequest(GENERATE_MONTHLY_INVOICE, payload.to_payload(), tenant_id=tenant_id)


async def _check(engine: AsyncEngine, count: int) -> None:
    async with AsyncSession(engine) as session:

        async def rows(table: type, *conditions: object) -> int:
            query = select(func.count()).select_from(table).where(*conditions)  # type: ignore[arg-type]
            return int(await session.scalar(query) or 0)

        check_equal("daily totals", await rows(UsageAggregate), count * len(METRICS) * DAYS)
        check_equal("numbered invoices", await rows(Invoice, Invoice.number == 1), count)
        check_equal("lines", await rows(InvoiceLine), count * len(METRICS))
        check_equal("messages", await rows(OutboxMessageRow), count)
        done = JobRow.state == JobState.COMPLETED.value
        check_equal("completed jobs", await rows(JobRow, done), count)
        # 224.75 of each: 124.75 x 1.25, a tenth of a cent, 23 packages of 9 dollars.
        check_equal("total", await session.scalar(select(func.sum(Invoice.total_amount))), count * 20_856)
