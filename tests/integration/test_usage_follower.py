"""A running worker adds up new usage within seconds, without a schedule or a job."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.billing.models import UsageAggregate
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.config import Settings
from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.runtime import Runtime
from svc_infra.webhooks.transport import HttpSender

NOON = datetime(2025, 1, 10, 12, tzinfo=UTC)
SETTINGS = Settings.model_validate(
    {"billing": {"aggregate_seconds": 0.05}, "scheduler": {"is_enabled": False}}
)


async def test_a_running_worker_follows_usage_and_announces_no_open_day(
    engine: AsyncEngine, session_factory: async_sessionmaker[AsyncSession]
) -> None:
    sender, stop = HttpSender(), asyncio.Event()
    running = asyncio.create_task(Runtime(SETTINGS, engine, sender).run(stop))
    try:
        async with session_factory.begin() as session:
            new = NewUsage("t1", "tokens", Decimal(5), NOON, "k")
            await session.run_sync(record_many, [new], now=NOON)
        async with asyncio.timeout(60):
            totals: list[Decimal] = []
            while not totals:
                async with session_factory() as session:
                    totals = list(await session.scalars(select(UsageAggregate.total)))
        async with session_factory() as session:
            messages = list(await session.scalars(select(OutboxMessageRow.id)))
    finally:
        stop.set()
        await running
        await sender.aclose()
    assert (totals, messages) == ([Decimal(5)], [])
