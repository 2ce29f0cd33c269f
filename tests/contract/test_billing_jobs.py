"""Billing's two jobs: their payloads, their messages, and what a batch does with a bad job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from svc_infra.billing.jobs import (
    AGGREGATE_DAILY,
    GENERATE_MONTHLY_INVOICE,
    enqueue_aggregate_daily,
    enqueue_generate_monthly_invoice,
    make_billing_job_handler,
)
from svc_infra.billing.models import Invoice, UsageAggregate
from svc_infra.billing.tenants import change_settings
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.clock import FixedClock
from svc_infra.db.outbox import InMemoryOutboxStore, OutboxMessageRow, SqlOutboxStore
from svc_infra.exceptions import InvalidPayload
from svc_infra.jobs.job import Job
from svc_infra.jobs.memory import InMemoryJobQueue
from svc_infra.jobs.outcome import Discard, Outcome
from svc_infra.webhooks.endpoints import SqlWebhookEndpoints
from svc_infra.webhooks.service import InMemoryWebhookSubscriptions, WebhookService

Factory = async_sessionmaker[AsyncSession]
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
JANUARY, FEBRUARY = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC)
clock = FixedClock(datetime(2025, 2, 1, 1, tzinfo=UTC))


def job(name: str, number: int, **payload: Any) -> Job:
    return Job(id=f"job-{number}", name=name, payload=payload, run_at=NOON, created_at=NOON)


def aggregate(number: int = 0, tenant: str = "t1", day_start: str = "2025-01-01T12:00:00Z") -> Job:
    return job(AGGREGATE_DAILY, number, tenant_id=tenant, metric="tokens", day_start=day_start)


def invoice(
    number: int = 0, tenant: str = "t1", end: str = "2025-02-01T00:00:00Z", currency: str = "usd"
) -> Job:
    return job(
        GENERATE_MONTHLY_INVOICE,
        number,
        tenant_id=tenant,
        period_start="2025-01-01T00:00:00Z",
        period_end=end,
        currency=currency,
    )


async def handle(factory: Factory, *jobs: Job) -> Mapping[str, Outcome | None]:
    """Run the jobs as one batch, as a worker does, in one transaction."""
    webhooks = WebhookService(outbox=SqlOutboxStore(), subs=SqlWebhookEndpoints(factory), clock=clock)
    handlers = make_billing_job_handler(session_factory=factory, webhooks=webhooks, clock=clock)
    async with factory() as session, session.begin():
        return await handlers[jobs[0].name].run_in(session, jobs)


async def record(factory: Factory, *events: NewUsage) -> None:
    async with factory() as session, session.begin():
        await session.run_sync(record_many, events, now=NOON)


def usage(key: str, amount: str, tenant: str = "t1") -> NewUsage:
    return NewUsage(tenant, "tokens", Decimal(amount), NOON, key)


async def messages(factory: Factory) -> list[tuple[str | None, dict[str, Any]]]:
    async with factory() as session:
        rows = (await session.scalars(select(OutboxMessageRow).order_by(OutboxMessageRow.id))).all()
    return [(row.tenant_id, json.loads(row.body)) for row in rows]


async def test_a_day_is_recomputed_and_announced_with_the_promised_payload(session_factory: Factory) -> None:
    await record(session_factory, usage("a", "0.10"), usage("b", "1000000"))
    assert await handle(session_factory, aggregate()) == {}
    [(tenant, body)] = await messages(session_factory)
    assert (tenant, body["type"], body["timestamp"]) == (
        "t1",
        "billing.usage_aggregated",
        "2025-02-01T01:00:00Z",
    )
    assert body["data"] == {
        "tenant_id": "t1",
        "metric": "tokens",
        "day_start": "2025-01-01T00:00:00Z",
        "total": "1000000.1",
    }


async def test_an_unchanged_total_is_announced_once(session_factory: Factory) -> None:
    await record(session_factory, usage("a", "1"))
    await handle(session_factory, aggregate(1), aggregate(2))
    await handle(session_factory, aggregate(3))
    assert len(await messages(session_factory)) == 1
    await record(session_factory, usage("b", "1"))
    await handle(session_factory, aggregate(4))
    assert [body["data"]["total"] for _, body in await messages(session_factory)] == ["1", "2"]


async def test_the_first_total_of_a_day_is_announced_even_if_it_is_0(session_factory: Factory) -> None:
    await handle(session_factory, aggregate())
    await handle(session_factory, aggregate())
    assert [body["data"]["total"] for _, body in await messages(session_factory)] == ["0"]


async def test_the_day_is_the_tenants_local_one(session_factory: Factory) -> None:
    async with session_factory() as session, session.begin():
        await session.run_sync(change_settings, "t1", timezone="Asia/Tokyo", now=NOON)
    await handle(session_factory, aggregate(day_start="2025-01-01T20:00:00+00:00"))
    [(_, body)] = await messages(session_factory)
    assert body["data"]["day_start"] == "2025-01-01T15:00:00Z"


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"tenant_id": None, "metric": "tokens", "day_start": "2025-01-01T00:00:00Z"},
        {"tenant_id": "", "metric": "tokens", "day_start": "2025-01-01T00:00:00Z"},
        {"tenant_id": "t1", "metric": 5, "day_start": "2025-01-01T00:00:00Z"},
        {"tenant_id": "t1", "metric": "tokens", "day_start": "2025-01-01T00:00:00"},
        {"tenant_id": "t1", "metric": "tokens", "day_start": 1735689600},
        {"tenant_id": "t1", "metric": "tokens", "day_start": "9999-12-31T12:00:00Z"},
    ],
)
async def test_a_job_that_can_never_run_is_discarded_alone(
    session_factory: Factory, payload: dict[str, Any]
) -> None:
    outcomes = await handle(
        session_factory, aggregate(1), job(AGGREGATE_DAILY, 2, **payload), aggregate(3, "t2")
    )
    assert list(outcomes) == ["job-2"]
    assert isinstance(outcomes["job-2"], Discard)
    assert [tenant for tenant, _ in await messages(session_factory)] == ["t1", "t2"]


async def test_keys_of_a_newer_writer_are_ignored(session_factory: Factory) -> None:
    newer = aggregate()
    newer.payload["fire_at"] = "2025-01-02T00:00:00Z"
    assert await handle(session_factory, newer) == {}


async def test_an_invoice_is_made_and_announced_once(session_factory: Factory) -> None:
    await record(session_factory, usage("a", "1"))
    assert await handle(session_factory, invoice(1), invoice(2)) == {}
    assert await handle(session_factory, invoice(3, currency="USD")) == {}
    async with session_factory() as session:
        made = (await session.scalars(select(Invoice))).one()
    [(tenant, body)] = await messages(session_factory)
    assert (tenant, body["type"]) == ("t1", "billing.invoice.created")
    assert body["data"] == {
        "tenant_id": "t1",
        "invoice_id": made.id,
        "period_start": "2025-01-01T00:00:00Z",
        "period_end": "2025-02-01T00:00:00Z",
        "currency": "usd",
    }


async def test_an_invoice_that_is_refused_discards_its_job_alone(session_factory: Factory) -> None:
    await handle(session_factory, invoice(0, "t2"))
    outcomes = await handle(
        session_factory,
        invoice(1),
        invoice(2, "t2", end="2025-01-20T00:00:00Z"),
        invoice(3, currency="notacur"),
        invoice(4, end="2025-01-01T00:00:00Z"),
        invoice(5, "t3"),
    )
    reasons = {job_id: outcome.reason for job_id, outcome in outcomes.items() if isinstance(outcome, Discard)}
    assert sorted(reasons) == sorted(outcomes) == ["job-2", "job-3", "job-4"]
    assert [reasons[job_id].split(":")[0] for job_id in sorted(reasons)] == [
        "PeriodOverlap",
        "InvalidCurrency",
        "InvalidPeriod",
    ]
    assert sorted(str(tenant) for tenant, _ in await messages(session_factory)) == ["t1", "t2", "t3"]


async def test_nothing_of_a_failed_batch_is_kept(session_factory: Factory) -> None:
    class Broken:
        def publish_many(self, session: object, publications: Sequence[object]) -> list[str]:
            raise ConnectionError("no outbox")

    handlers = make_billing_job_handler(session_factory=session_factory, webhooks=Broken(), clock=clock)
    with pytest.raises(ConnectionError):
        async with session_factory() as session, session.begin():
            await handlers[AGGREGATE_DAILY].run_in(session, [aggregate()])
    async with session_factory() as session:
        assert (await session.execute(select(func.count()).select_from(UsageAggregate))).scalar_one() == 0


def test_enqueueing_writes_the_promised_payloads_and_the_delay() -> None:
    queue = InMemoryJobQueue(clock=clock)
    east = datetime(2025, 1, 1, 1, tzinfo=UTC).astimezone()
    day = enqueue_aggregate_daily(queue, tenant_id="t1", metric="tokens", day_start=east, delay_seconds=90)
    month = enqueue_generate_monthly_invoice(
        queue, tenant_id="t1", period_start=JANUARY, period_end=FEBRUARY, currency="usd"
    )
    assert (day.name, day.tenant_id, day.run_at) == (
        "billing.aggregate_daily",
        "t1",
        clock.now() + timedelta(seconds=90),
    )
    assert day.payload == {"tenant_id": "t1", "metric": "tokens", "day_start": "2025-01-01T01:00:00Z"}
    assert (month.name, month.tenant_id) == ("billing.generate_monthly_invoice", "t1")
    assert month.payload == {
        "tenant_id": "t1",
        "period_start": "2025-01-01T00:00:00Z",
        "period_end": "2025-02-01T00:00:00Z",
        "currency": "usd",
    }


def test_a_missing_tenant_is_refused_when_enqueued() -> None:
    with pytest.raises(InvalidPayload, match="tenant_id"):
        enqueue_aggregate_daily(
            InMemoryJobQueue(),
            tenant_id=None,  # type: ignore[arg-type]  # that is the test
            metric="tokens",
            day_start=NOON,
        )


async def test_the_handler_needs_no_tables_in_memory_and_no_durable_queue() -> None:
    engine = create_async_engine("sqlite+aiosqlite:///:memory:")
    outbox = InMemoryOutboxStore()
    webhooks = WebhookService(outbox=outbox, subs=InMemoryWebhookSubscriptions())
    handler = make_billing_job_handler(
        session_factory=async_sessionmaker(engine, expire_on_commit=False), webhooks=webhooks
    )
    assert {AGGREGATE_DAILY, GENERATE_MONTHLY_INVOICE} <= handler.names
    await handler(aggregate())
    await handler(invoice())
    assert len(outbox.take_pending(10)) == 2
    await engine.dispose()
