"""The scheduled runs: they enqueue what has ended and is not done, once, in every zone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.billing import runs
from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.jobs import AGGREGATE_DAILY, GENERATE_MONTHLY_INVOICE
from svc_infra.billing.jobs import register as register_billing
from svc_infra.billing.models import Invoice, Tenant, UsageAggregate
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.billing.tenants import change_settings
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidCurrency
from svc_infra.jobs.handlers import Handlers
from svc_infra.jobs.models import JobRow
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.jobs.worker import Worker
from svc_infra.webhooks.service import Publication

Sessions = async_sessionmaker[AsyncSession]

JANUARY, FEBRUARY, MARCH = (datetime(2025, month, 1, tzinfo=UTC) for month in (1, 2, 3))
AT_NIGHT, AT_NOON = "2025-02-01T00:15:00Z", "2025-02-01T12:15:00Z"
CATALOG = """
[[plans]]
key = "standard"
default = true
[[plans]]
key = "free"
[[plans]]
key = "storage"
[[prices]]
key = "base"
plan = "standard"
currency = "usd"
unit_amount = "500"
recurring_interval = "month"
[[prices]]
key = "base"
plan = "standard"
currency = "eur"
unit_amount = "400"
recurring_interval = "month"
[[prices]]
key = "bytes"
plan = "storage"
currency = "usd"
metric = "bytes"
unit_amount = "1"
"""
PLANLESS = '[[prices]]\nkey = "calls"\ncurrency = "chf"\nmetric = "calls"\nunit_amount = "1"\n'


class Publisher:
    """Keeps the topics it is given."""

    def __init__(self) -> None:
        self.topics: list[str] = []

    def publish_many(self, session: Session, publications: Sequence[Publication]) -> list[str]:
        self.topics += [publication.topic for publication in publications]
        return [publication.topic for publication in publications]


class Bench:
    """A worker with billing's handlers over one database, its clock standing in March."""

    def __init__(self, session_factory: Sessions) -> None:
        self.session_factory = session_factory
        self.clock = FixedClock(MARCH)
        self.queue = SqlJobQueue(session_factory, clock=self.clock)
        self.publisher = Publisher()

    async def call(self, function: Any, *args: Any, **more: Any) -> Any:
        async with self.session_factory() as session, session.begin():
            return await session.run_sync(function, *args, **more)

    async def subscribe(self, *subscriptions: NewSubscription) -> None:
        await self.call(subscribe_many, subscriptions, now=MARCH)

    async def use(self, tenant_id: str, metric: str, at: datetime) -> None:
        event = NewUsage(tenant_id, metric, Decimal(1), at, f"{metric} {at}")
        await self.call(record_many, [event], now=MARCH)

    async def fire(self, job_name: str, fire_at: str | None) -> None:
        """Run the scheduled job alone."""
        handlers = Handlers(clock=self.clock)
        runs.register(handlers, clock=self.clock, default_currency="jpy")
        async with self.session_factory() as session, session.begin():
            payload = {} if fire_at is None else {"fire_at": fire_at}
            self.queue.bind(session).enqueue(job_name, payload, queue="nightly")
        await Worker(self.queue, handlers, clock=self.clock).drain()

    async def work(self) -> None:
        """Run what was enqueued."""
        handlers = Handlers(clock=self.clock)
        register_billing(handlers, self.publisher, clock=self.clock)
        await Worker(self.queue, handlers, clock=self.clock).drain()

    async def waiting(self, name: str) -> list[tuple[Any, ...]]:
        """The payloads of the jobs of a name that are not finished, sorted."""
        async with self.session_factory() as session:
            jobs = await session.scalars(
                select(JobRow).where(
                    JobRow.name == name, JobRow.state == "available", JobRow.queue == "nightly"
                )
            )
            return sorted(tuple(job.payload.values()) for job in jobs)


@pytest.fixture
async def bench(session_factory: Sessions) -> Bench:
    bench = Bench(session_factory)
    await bench.call(apply_catalog, parse_catalog(CATALOG), now=JANUARY)
    return bench


async def test_the_daily_run_enqueues_each_day_that_ended_and_is_not_announced(bench: Bench) -> None:
    await bench.use("t1", "calls", datetime(2025, 1, 31, 23, tzinfo=UTC))
    await bench.use("t1", "bytes", datetime(2025, 1, 30, 12, tzinfo=UTC))
    await bench.use("t1", "calls", datetime(2025, 2, 1, 0, 1, tzinfo=UTC))
    await bench.fire(runs.RUN_DAILY_AGGREGATION, "2025-02-01T00:05:00Z")
    assert await bench.waiting(AGGREGATE_DAILY) == [
        ("t1", "bytes", "2025-01-30T00:00:00Z"),
        ("t1", "calls", "2025-01-31T00:00:00Z"),
    ]
    await bench.work()
    await bench.fire(runs.RUN_DAILY_AGGREGATION, "2025-02-01T00:05:00Z")
    assert await bench.waiting(AGGREGATE_DAILY) == []
    assert bench.publisher.topics == ["billing.usage_aggregated"] * 2


async def test_a_day_that_invoicing_counted_first_is_announced_by_the_next_daily_run(bench: Bench) -> None:
    await bench.subscribe(NewSubscription("t1", "standard", JANUARY))
    await bench.use("t1", "calls", JANUARY)
    await bench.fire(runs.RUN_MONTHLY_INVOICING, AT_NIGHT)
    await bench.work()
    bench.publisher.topics.clear()
    await bench.fire(runs.RUN_DAILY_AGGREGATION, AT_NIGHT)
    await bench.work()
    assert bench.publisher.topics == ["billing.usage_aggregated"]


async def test_more_days_than_one_page_are_all_enqueued(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_PAGE", 3)
    for number in range(10):
        await bench.use(f"t{number}", "calls", JANUARY)
    await bench.fire(runs.RUN_DAILY_AGGREGATION, AT_NIGHT)
    assert len(await bench.waiting(AGGREGATE_DAILY)) == 10


async def test_the_monthly_run_asks_for_one_invoice_per_currency_of_a_tenants_prices(bench: Bench) -> None:
    await bench.subscribe(
        NewSubscription("both", "standard", JANUARY),
        NewSubscription("both", "storage", JANUARY),
        NewSubscription("ended", "standard", JANUARY, datetime(2025, 1, 2, tzinfo=UTC)),
        NewSubscription("future", "standard", FEBRUARY),
        NewSubscription("past", "standard", datetime(2024, 12, 1, tzinfo=UTC), JANUARY),
        NewSubscription("unpriced", "free", JANUARY),
    )
    await bench.use("nobody", "calls", JANUARY)
    await bench.fire(runs.RUN_MONTHLY_INVOICING, AT_NIGHT)
    bounds = ("2025-01-01T00:00:00Z", "2025-02-01T00:00:00Z")
    assert await bench.waiting(GENERATE_MONTHLY_INVOICE) == [
        ("both", *bounds, "eur"),
        ("both", *bounds, "usd"),
        ("ended", *bounds, "eur"),
        ("ended", *bounds, "usd"),
        ("unpriced", *bounds, "jpy"),
    ]


async def test_usage_alone_is_invoiced_where_a_price_applies_to_every_tenant(bench: Bench) -> None:
    await bench.call(apply_catalog, parse_catalog(CATALOG + PLANLESS), now=JANUARY)
    await bench.use("marked", "calls", JANUARY)
    await bench.use("later", "calls", FEBRUARY)
    await bench.use("counted", "calls", JANUARY)
    async with bench.session_factory() as session, session.begin():
        # A day that was aggregated long ago has no mark left.
        session.add(
            UsageAggregate(
                id="a", tenant_id="old", metric="calls", period_start=JANUARY,
                period_end=datetime(2025, 1, 2, tzinfo=UTC), total=Decimal(1), updated_at=MARCH,
            )
        )  # fmt: skip
    await bench.fire(runs.RUN_MONTHLY_INVOICING, AT_NIGHT)
    asked = await bench.waiting(GENERATE_MONTHLY_INVOICE)
    assert [(job[0], job[3]) for job in asked] == [("counted", "chf"), ("marked", "chf"), ("old", "chf")]


async def test_a_repeated_monthly_run_skips_what_is_invoiced(bench: Bench) -> None:
    await bench.subscribe(*(NewSubscription(f"t{number}", "standard", JANUARY) for number in range(3)))
    await bench.fire(runs.RUN_MONTHLY_INVOICING, AT_NIGHT)
    await bench.work()
    await bench.subscribe(NewSubscription("late", "storage", JANUARY))
    await bench.fire(runs.RUN_MONTHLY_INVOICING, AT_NOON)
    assert [job[0] for job in await bench.waiting(GENERATE_MONTHLY_INVOICE)] == ["late"]
    async with bench.session_factory() as session:
        assert len((await session.scalars(select(Invoice))).all()) == 6


async def test_each_zones_month_is_invoiced_by_the_first_run_after_it_ended(bench: Bench) -> None:
    async with bench.session_factory() as session, session.begin():
        for name in ("Pacific/Auckland", "America/New_York"):
            session.add(Tenant(tenant_id=name, timezone=name, created_at=JANUARY))
    await bench.subscribe(
        NewSubscription("America/New_York", "storage", datetime(2025, 1, 1, 5, tzinfo=UTC)),
        NewSubscription("Pacific/Auckland", "storage", datetime(2024, 12, 31, 11, tzinfo=UTC)),
    )
    await bench.fire(runs.RUN_MONTHLY_INVOICING, AT_NIGHT)
    assert [job[:3] for job in await bench.waiting(GENERATE_MONTHLY_INVOICE)] == [
        ("Pacific/Auckland", "2024-12-31T11:00:00Z", "2025-01-31T11:00:00Z")
    ]
    await bench.work()
    await bench.fire(runs.RUN_MONTHLY_INVOICING, AT_NOON)
    assert [job[:3] for job in await bench.waiting(GENERATE_MONTHLY_INVOICE)] == [
        ("America/New_York", "2025-01-01T05:00:00Z", "2025-02-01T05:00:00Z")
    ]


async def test_an_anniversary_is_invoiced_when_its_month_has_passed(bench: Bench) -> None:
    on_the_20th = NewSubscription(
        "t1", "standard", datetime(2025, 1, 20, tzinfo=UTC), anchor_on=date(2025, 1, 20)
    )
    await bench.subscribe(on_the_20th)
    await bench.fire(runs.RUN_DAILY_AGGREGATION, "2025-02-19T00:05:00Z")
    assert await bench.waiting(GENERATE_MONTHLY_INVOICE) == []
    for fire_at in ("2025-02-20T00:05:00Z", "2025-02-21T00:05:00Z"):  # the second finds them made
        await bench.fire(runs.RUN_DAILY_AGGREGATION, fire_at)
        await bench.work()
    async with bench.session_factory() as session:
        stored = (await session.scalars(select(Invoice).order_by(Invoice.currency))).all()
    assert [(row.cycle, row.currency, row.period_end.day, row.total_amount) for row in stored] == [
        ("month:20", "eur", 20, 400),
        ("month:20", "usd", 20, 500),
    ]
    await bench.fire(runs.RUN_MONTHLY_INVOICING, AT_NIGHT)
    assert await bench.waiting(GENERATE_MONTHLY_INVOICE) == []


async def test_drafts_are_finalized_and_late_usage_is_closed_by_the_daily_run(bench: Bench) -> None:
    await bench.call(change_settings, "t1", grace_seconds=86400, now=JANUARY)
    await bench.subscribe(NewSubscription("t1", "storage", JANUARY, FEBRUARY))
    await bench.use("t1", "bytes", JANUARY)
    bench.clock.set(FEBRUARY)
    await bench.fire(runs.RUN_MONTHLY_INVOICING, AT_NIGHT)
    await bench.work()
    bench.clock.set(datetime(2025, 2, 2, 1, tzinfo=UTC))
    await bench.fire(runs.RUN_DAILY_AGGREGATION, "2025-02-02T00:05:00Z")
    await bench.work()
    await bench.use("t1", "bytes", datetime(2025, 1, 9, tzinfo=UTC))
    for fire_at in ("2025-02-03T00:05:00Z", "2025-02-04T00:05:00Z"):  # aggregated by the first
        bench.clock.set(datetime.fromisoformat(fire_at))
        await bench.fire(runs.RUN_DAILY_AGGREGATION, fire_at)
        await bench.work()
    async with bench.session_factory() as session:
        stored = (await session.scalars(select(Invoice).order_by(Invoice.number))).all()
    assert [(row.kind, row.status, row.total_amount) for row in stored] == [
        ("period", "finalized", 1),
        ("adjustment", "finalized", 1),
    ]
    assert bench.publisher.topics.count("billing.invoice.created") == 2


async def test_pages_of_tenants_lose_and_repeat_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_PAGE", 4)
    tenants = [f"t{number}" for number in range(9)]
    plans = ("standard", "storage", "free")
    await bench.subscribe(*(NewSubscription(tenant, plan, JANUARY) for tenant in tenants for plan in plans))
    await bench.fire(runs.RUN_MONTHLY_INVOICING, AT_NIGHT)
    asked = [(job[0], job[3]) for job in await bench.waiting(GENERATE_MONTHLY_INVOICE)]
    assert asked == [(tenant, currency) for tenant in tenants for currency in ("eur", "usd")]


@pytest.mark.parametrize("fire_at", [None, "yesterday", "2025-02-01T00:00:00"])
async def test_a_run_without_a_readable_fire_is_discarded(bench: Bench, fire_at: str | None) -> None:
    await bench.fire(runs.RUN_MONTHLY_INVOICING, fire_at)
    async with bench.session_factory() as session:
        job = (await session.scalars(select(JobRow))).one()
    assert job.state == "discarded"
    assert "fire_at" in (job.last_error or "")


def test_the_default_schedules_have_two_monthly_runs_for_all_zones() -> None:
    daily, monthly = runs.default_schedules()
    assert (daily.name, daily.job_name) == ("billing.daily", runs.RUN_DAILY_AGGREGATION)
    fires = list(monthly.cron.fires_between(JANUARY, MARCH))
    assert [fire.isoformat(timespec="minutes") for fire in fires] == [
        "2025-01-01T00:15+00:00",
        "2025-01-01T12:15+00:00",
        "2025-02-01T00:15+00:00",
        "2025-02-01T12:15+00:00",
    ]


def test_an_unknown_default_currency_is_refused_at_the_start() -> None:
    with pytest.raises(InvalidCurrency):
        runs.register(Handlers(), default_currency="zzz")
