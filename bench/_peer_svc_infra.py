"""The public peer's record_usage, one per transaction: run by ``billing.py`` in the peers' environment.

python _peer_svc_infra.py URL EVENTS WRITERS      (prints events a second)
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from svc_infra.billing import AsyncBillingService, UsageEvent
from svc_infra.db.sql.base import ModelBase

AT = datetime(2025, 1, 1, tzinfo=UTC)


async def main(url: str, events: int, writers: int) -> float:
    engine = create_async_engine(url, pool_size=writers, max_overflow=0)
    tables = [table for name, table in ModelBase.metadata.tables.items() if name.startswith("billing_")]
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: ModelBase.metadata.create_all(sync, tables=tables))
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    numbers = iter(range(events))

    async def one(number: int) -> None:
        async with sessions() as session:
            service = AsyncBillingService(session, f"t{number % 100}")
            await service.record_usage(
                metric="tokens",
                amount=number % 50,
                at=AT,
                idempotency_key=f"key-{number:08d}",
                metadata={"model": "gpt"},
            )
            await session.commit()

    async def writer() -> None:
        for number in numbers:
            await one(number)

    for number in range(events, events + 100):
        await one(number)
    started = time.perf_counter()
    await asyncio.gather(*(writer() for _ in range(writers)))
    seconds = time.perf_counter() - started
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(UsageEvent)) == events + 100
    await engine.dispose()
    return events / seconds


if __name__ == "__main__":
    print(asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
