"""A process that records usage from several tasks, rolls some of it back, and counts the rest."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.db.session import make_engine, make_session_factory

START, DAYS = datetime(2025, 1, 1, tzinfo=UTC), 90


async def main(url: str, name: str, tasks: int, rounds: int) -> None:
    engine = make_engine(url, pool_size=tasks)
    accepted = {"a": 0, "b": 0}

    async def ingest(number: int) -> None:
        chance = random.Random(f"{name} {number}")
        for turn in range(rounds):
            tenant = chance.choice(["a", "b"])
            amounts = [chance.randint(1, 9) for _ in range(3)]
            at = START + timedelta(hours=chance.randrange(24 * DAYS))
            events = [
                NewUsage(tenant, "calls", Decimal(amount), at, f"{name} {number} {turn} {index}")
                for index, amount in enumerate(amounts)
            ]
            async with make_session_factory(engine)() as session:
                await session.run_sync(record_many, events, now=datetime.now(UTC))
                await asyncio.sleep(chance.random() / 50)  # so that commits overtake each other
                if chance.random() < 0.15:
                    await session.rollback()
                    continue
                await session.commit()
            accepted[tenant] += sum(amounts)

    await asyncio.gather(*(ingest(number) for number in range(tasks)))
    await engine.dispose()
    sys.stdout.write(json.dumps(accepted))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
