"""The demo: a fresh database, a real history, every amount proved, in simulated time."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from svc_infra.billing.catalog import Catalog, parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.models import Invoice, UsageEvent
from svc_infra.billing.periods import month_bounds, zone
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.billing.usage_file import read_usage
from svc_infra.billing.usage_import import ImportCounts, UsageImport
from svc_infra.clock import FixedClock, SystemClock
from svc_infra.config import Settings, WebhookSettings
from svc_infra.db.migration import migrate
from svc_infra.db.schema import metadata
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.exceptions import InvalidCatalog, SvcInfraError
from svc_infra.jobs.cron import CronSchedule
from svc_infra.runtime import Runtime
from svc_infra.simulation.oracle import Oracle, check_catalog
from svc_infra.simulation.receiver import ReceiverProcess
from svc_infra.simulation.reconciliation import Counts, Reconciliation, count_rows, reconcile
from svc_infra.testing.simulated_time import SimulatedTime
from svc_infra.testing.webhooks import loopback_sender
from svc_infra.webhooks.endpoints import add_endpoint
from svc_infra.webhooks.signature import as_standard, new_secret

USAGE_FILE = Path(__file__).with_name("cdnow_first_quarter.csv.gz")
_SUBSCRIBE_BATCH = 2_000
_IN_FLIGHT_AT_THE_RECEIVER = 64

Progress = Callable[[str, float], None]
"""Told the name of the stage and the share of it that is done, from 0 to 1."""


@dataclass(frozen=True)
class DemoReport:
    """What was billed, delivered and proved; ``as_json`` has the documented keys only."""

    database: str
    usage_events: int
    duplicates: int
    counts: Counts
    currency: str
    jobs_completed: int
    jobs_discarded: int
    deliveries_verified: int
    seconds: float
    reconciliation: Reconciliation
    unpriced_metrics: tuple[str, ...] = ()
    top_invoices: tuple[tuple[str, datetime, int], ...] = ()
    faults: tuple[str, ...] = field(default=())

    @property
    def is_proved(self) -> bool:
        """Whether everything is billed, delivered once, verified, and equal to the recomputation."""
        return not self.faults and self.reconciliation.is_equal

    def as_json(self) -> dict[str, Any]:
        counts = self.counts
        return {
            "database": self.database,
            "usage_events": self.usage_events,
            "duplicates": self.duplicates,
            "tenants": counts.tenants,
            "aggregates": counts.aggregates,
            "invoices": counts.invoices,
            "invoice_lines": counts.invoice_lines,
            "invoiced_minor": counts.invoiced_minor,
            "currency": self.currency,
            "jobs_completed": self.jobs_completed,
            "jobs_discarded": self.jobs_discarded,
            "messages": counts.messages,
            "deliveries": counts.deliveries,
            "deliveries_verified": self.deliveries_verified,
            "reconciled": self.is_proved,
            "seconds": round(self.seconds, 3),
        }


class Demo:
    """One run of the demo on an empty database.

    Raises from ``run``:
        InvalidCatalog: prices in more than one currency, no default plan, or an error in the file.
        InvalidUsage: a bad line in the usage file.
        SvcInfraError: the database has rows already.
    """

    def __init__(
        self, usage_file: Path, catalog_file: Path, database_url: str, *, progress: Progress | None = None
    ) -> None:
        self._usage_file = usage_file
        self._catalog_file = catalog_file
        self._database_url = database_url
        self._progress: Progress = progress or (lambda _stage, _share: None)

    async def run(self) -> DemoReport:
        """Bill the history and return what came of it."""
        started = perf_counter()
        catalog, currency = self._read_catalog()
        async with AsyncExitStack() as opened:
            engine = make_engine(self._database_url)
            opened.push_async_callback(engine.dispose)
            await self._prepare(engine, catalog)
            imported = await self._import(engine)
            secret, path = new_secret(), "/" + secrets.token_hex(8)
            receiver = opened.enter_context(ReceiverProcess({path: as_standard(secret)}))
            sender = loopback_sender()
            opened.push_async_callback(sender.aclose)
            runtime = await self._simulate(engine, sender, receiver.url(path), secret, catalog)
            stats = receiver.stats()
            report = await self._prove(engine, imported, currency, runtime, stats.verified)
        faults = report.faults + tuple(_receiver_faults(stats, report.counts.messages))
        return replace(report, faults=faults, seconds=perf_counter() - started)

    def _read_catalog(self) -> tuple[Catalog, str]:
        name = str(self._catalog_file)
        try:
            text = self._catalog_file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise InvalidCatalog(f"{name}:{line}: not valid UTF-8; save the file as UTF-8") from None
        catalog = parse_catalog(text, name)
        if catalog.default_plan is None:
            raise InvalidCatalog(f"{name}: no plan has default = true; the demo subscribes tenants to it")
        currencies = {price.terms.currency for price in catalog.prices}
        if len(currencies) > 1:
            raise InvalidCatalog(
                f"{name}: prices in {', '.join(sorted(currencies))}; the demo bills in one currency"
            )
        try:
            check_catalog(self._catalog_file)
        except ValueError as error:
            raise InvalidCatalog(str(error)) from None
        return catalog, next(iter(currencies), Settings().billing.currency)

    async def _prepare(self, engine: AsyncEngine, catalog: Catalog) -> None:
        self._progress("Preparing", 0)
        await migrate(engine)
        async with AsyncSession(engine) as session, session.begin():
            await session.run_sync(_refuse_data)
            await session.run_sync(lambda sync: apply_catalog(sync, catalog, now=SystemClock().now()))

    async def _import(self, engine: AsyncEngine) -> ImportCounts:
        size = self._usage_file.stat().st_size or 1
        with self._usage_file.open("rb") as stream:

            def on_chunk(_counts: ImportCounts) -> None:
                self._progress("Importing usage", stream.tell() / size)

            usage_import = UsageImport(
                make_session_factory(engine),
                read_usage(stream, str(self._usage_file)),
                name=str(self._usage_file),
                on_chunk=on_chunk,
            )
            return await usage_import.run()

    async def _simulate(
        self, engine: AsyncEngine, sender: Any, url: str, secret: str, catalog: Catalog
    ) -> Runtime:
        """Subscribe everybody, then move the clock until the last month is billed."""
        settings = Settings(webhooks=WebhookSettings(in_flight_per_endpoint=_IN_FLIGHT_AT_THE_RECEIVER))
        async with AsyncSession(engine) as session, session.begin():
            first_events = await session.run_sync(_first_events)
            last_at = await session.scalar(select(func.max(UsageEvent.at_ts)))
            await session.run_sync(
                lambda sync: add_endpoint(sync, url=url, topics=["*"], secret=secret, description="demo")
            )
        started_at = min((_month_start(at) for at in first_events.values()), default=SystemClock().now())
        clock = FixedClock(started_at)
        runtime = Runtime(settings, engine, sender, clock=clock, schedules_start_at=started_at)
        if last_at is None:
            return runtime
        assert catalog.default_plan is not None
        await _subscribe(engine, first_events, catalog.default_plan.key)
        until = _billed_at(last_at, settings)

        def on_fire(at: datetime) -> None:
            self._progress("Billing day by day", (at - started_at) / (until - started_at))

        await SimulatedTime(runtime, clock, on_fire=on_fire).advance_to(until)
        return runtime

    async def _prove(
        self, engine: AsyncEngine, imported: ImportCounts, currency: str, runtime: Runtime, verified: int
    ) -> DemoReport:
        self._progress("Proving every invoice", 0)
        oracle = Oracle(self._usage_file, self._catalog_file)
        async with AsyncSession(engine) as session:
            counts = await session.run_sync(count_rows)
            reconciliation = await session.run_sync(
                reconcile, oracle, lambda share: self._progress("Proving every invoice", share)
            )
            top = await session.execute(
                select(Invoice.tenant_id, Invoice.period_start, Invoice.total_amount)
                .order_by(Invoice.total_amount.desc(), Invoice.tenant_id, Invoice.period_start)
                .limit(5)
            )
            return DemoReport(
                database=engine.dialect.name,
                usage_events=imported.inserted,
                duplicates=imported.duplicate,
                counts=counts,
                currency=currency,
                jobs_completed=runtime.worker.stats.completed,
                jobs_discarded=runtime.worker.stats.discarded,
                deliveries_verified=verified,
                seconds=0.0,
                reconciliation=reconciliation,
                unpriced_metrics=tuple(oracle.unpriced_metrics),
                top_invoices=tuple((row[0], row[1], row[2]) for row in top),
                faults=tuple(_count_faults(counts, imported, oracle, runtime)),
            )


def _refuse_data(session: Session) -> None:
    for table in metadata().sorted_tables:
        if session.execute(select(table).limit(1)).first() is not None:
            raise SvcInfraError(
                f"the database has rows in {table.name} already; the demo needs an empty one of its own"
            )


def _first_events(session: Session) -> dict[str, datetime]:
    rows = session.execute(
        select(UsageEvent.tenant_id, func.min(UsageEvent.at_ts)).group_by(UsageEvent.tenant_id)
    )
    return {tenant_id: at for tenant_id, at in rows}


def _month_start(at: datetime) -> datetime:
    return month_bounds(at.year, at.month, zone("UTC")).start


def _billed_at(last_at: datetime, settings: Settings) -> datetime:
    """The fire that invoices the month of the last event."""
    month_end = month_bounds(last_at.year, last_at.month, zone("UTC")).end
    scheduler = settings.scheduler
    return CronSchedule(scheduler.monthly_cron, scheduler.timezone).next_fire(
        month_end - timedelta(seconds=1)
    )


async def _subscribe(engine: AsyncEngine, first_events: dict[str, datetime], plan_key: str) -> None:
    wanted = [
        NewSubscription(tenant_id, plan_key, _month_start(at)) for tenant_id, at in first_events.items()
    ]
    for start in range(0, len(wanted), _SUBSCRIBE_BATCH):
        batch = wanted[start : start + _SUBSCRIBE_BATCH]
        async with AsyncSession(engine) as session, session.begin():
            await session.run_sync(subscribe_many, batch, now=SystemClock().now())


def _receiver_faults(stats: Any, messages: int) -> list[str]:
    expected = {
        "verified": messages,
        "failed": 0,
        "distinct_ids": messages,
        "duplicates": 0,
        "changed_bodies": 0,
    }
    return [
        f"the receiver counted {getattr(stats, name):,} {name.replace('_', ' ')}, expected {count:,}"
        for name, count in expected.items()
        if getattr(stats, name) != count
    ]


def _count_faults(counts: Counts, imported: ImportCounts, oracle: Oracle, runtime: Runtime) -> list[str]:
    pairs = [
        ("usage events", imported.inserted, oracle.usage_events),
        ("duplicates", imported.duplicate, oracle.duplicates),
        ("tenants", counts.tenants, len(oracle.tenants)),
        ("aggregates", counts.aggregates, oracle.aggregates),
        ("messages", counts.messages, counts.aggregates + counts.invoices),
        ("deliveries", counts.deliveries, counts.messages),
        ("discarded jobs", runtime.worker.stats.discarded, 0),
    ]
    return [
        f"{found:,} {name}, expected {expected:,}" for name, found, expected in pairs if found != expected
    ]


__all__ = ["USAGE_FILE", "Demo", "DemoReport"]
