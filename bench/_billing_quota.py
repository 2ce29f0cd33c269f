"""Reserving quotas: how long one reservation takes at 500 a second, and whether a limit holds.

python bench/billing.py --only quota
"""

from __future__ import annotations

import asyncio
import statistics
from datetime import UTC, datetime
from time import perf_counter

from _common import KINDS, Bench, Measure, check_equal, note
from sqlalchemy import func, select

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.entitlements import reserve
from svc_infra.billing.quota_models import QuotaReservation
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.db.schema import create_schema
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.exceptions import QuotaExceeded

PER_SECOND = 500
TENANTS = 100
NOW = datetime(2025, 1, 15, tzinfo=UTC)
CATALOG = """
[[plans]]
key = "pro"
default = true
entitlements = [
    { key = "calls", limit = 1000000000, window = "day", alerts = [80, 100] },
    { key = "few", limit = 100, window = "day" },
]
"""


def quota(bench: Bench) -> list[Measure]:
    """Reservations at 500 a second, and 200 at once for the last 100."""
    seconds = 4 if bench.is_quick else 10
    measures = []
    for kind in KINDS:
        note(f"{kind}: reservations, {PER_SECOND} a second for {seconds} s")
        runs = [asyncio.run(_measure(bench.fresh(kind), seconds)) for _ in range(bench.runs)]
        p50, p99 = (statistics.median(run[at] for run in runs) for at in (0, 1))
        target = 5.0 if kind == "postgresql" else None
        measures += [
            Measure(f"quota_reserve_{kind}_p50", "ms", p50, better="lower"),
            Measure(f"quota_reserve_{kind}_p99", "ms", p99, better="lower", target=target),
        ]
        check_equal("passed of 200 at a limit of 100", {passed for _, _, passed in runs}, {100})
    return measures


async def _measure(url: str, seconds: float) -> tuple[float, float, int]:
    """(p50, p99) in milliseconds of reservations that begin 500 times a second, and how many of 200 passed.

    Latency is counted from the instant at which a reservation was due, so that a queue that builds up shows.
    """
    engine = make_engine(url, pool_size=16)
    try:
        await create_schema(engine)
        sessions = make_session_factory(engine)
        january = datetime(2025, 1, 1, tzinfo=UTC)
        async with sessions.begin() as session:
            await session.run_sync(apply_catalog, parse_catalog(CATALOG), now=NOW)
            wanted = [NewSubscription(f"t{i}", "pro", january) for i in range(TENANTS)]
            await session.run_sync(subscribe_many, wanted, now=NOW)

        async def one(tenant: int, key: str) -> bool:
            try:
                async with sessions.begin() as session:
                    await session.run_sync(reserve, f"t{tenant}", key, now=NOW)
            except QuotaExceeded:
                return False
            return True

        for tenant in range(TENANTS):  # warm: statements compiled and prepared, connections open
            await one(tenant, "calls")
        latencies: list[float] = []

        async def timed(number: int, due: float) -> None:
            assert await one(number % TENANTS, "calls")
            latencies.append((perf_counter() - due) * 1000)

        count = int(PER_SECOND * seconds)
        started = perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                due = started + number / PER_SECOND
                if (wait := due - perf_counter()) > 0:
                    await asyncio.sleep(wait)
                tasks.create_task(timed(number, due))
        passed = sum(await asyncio.gather(*(one(0, "few") for _ in range(200))))
        async with sessions() as session:
            rows = await session.scalar(select(func.count()).select_from(QuotaReservation))
        assert rows == TENANTS + count + passed, rows
    finally:
        await engine.dispose()
    latencies.sort()
    return latencies[count // 2], latencies[count * 99 // 100], passed
