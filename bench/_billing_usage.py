"""The rows of ``billing.py`` on usage: recording, importing, aggregating."""

from __future__ import annotations

import asyncio
import csv
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
from _common import KINDS, Bench, Measure, check_equal, note, run_worker
from sqlalchemy import func, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.billing import BillingService
from svc_infra.billing.aggregation import DayKey, consume_marks_of, recompute
from svc_infra.billing.models import UsageAggregate, UsageEvent
from svc_infra.billing.periods import Period, day_bounds
from svc_infra.billing.usage import NewUsage, record_alone, record_many
from svc_infra.billing.usage_days import marked_days
from svc_infra.billing.usage_insert import INSERT_AND_MARK
from svc_infra.db.base import new_id
from svc_infra.db.migration import migrate
from svc_infra.db.rowset import json_column
from svc_infra.db.session import make_engine, make_session_factory

START = datetime(2025, 1, 1, tzinfo=UTC)
DAY = day_bounds(START, UTC)
CONCURRENCY = 16
IN_SESSION = "ours in a session"
PEER = Path(__file__).parent.parent / ".bench-venv" / "bin" / "python"
PEER_SCRIPT = Path(__file__).parent / "_peer_svc_infra.py"


def record(bench: Bench) -> list[Measure]:
    """One event per transaction, 16 at once on PostgreSQL: ours, the bare statement, the public peer.

    Ours is in a transaction of its own, and beside it in one of the application's.
    """
    events = 2_000 if bench.is_quick else 8_000
    found: dict[str, list[float]] = {"ours": [], IN_SESSION: [], "bare asyncpg": [], "svc-infra": []}
    for number in range(bench.runs):
        note(f"record_usage, one per transaction, run {number + 1}")
        found["ours"].append(asyncio.run(_migrated(bench, "postgresql", _record_alone, events)))
        found[IN_SESSION].append(asyncio.run(_migrated(bench, "postgresql", _record_in_session, events)))
        found["bare asyncpg"].append(asyncio.run(_migrated(bench, "postgresql", _record_bare, events)))
        if PEER.exists():
            found["svc-infra"].append(_peer(bench.fresh("postgresql"), events))
    ours, bare = statistics.median(found["ours"]), statistics.median(found["bare asyncpg"])
    in_session = statistics.median(found[IN_SESSION])
    peer = statistics.median(found["svc-infra"]) if found["svc-infra"] else None
    return [
        Measure(
            "record_one_16_postgresql_to_peer",
            "events/s",
            ours if peer else None,
            others={"svc-infra": peer, IN_SESSION: in_session} if peer else {},
            reference="svc-infra",
            target=1.5,
            target_on="ratio",
            reason="" if peer else "make bench-deps has not installed the peer",
        ),
        Measure(
            "record_one_16_postgresql_to_bare",
            "events/s",
            ours,
            others={"bare asyncpg": bare, IN_SESSION: in_session},
            reference="bare asyncpg",
            target=0.45,
            target_on="ratio",
        ),
    ]


def batch(bench: Bench) -> list[Measure]:
    """Batches of 1,000 on PostgreSQL, one connection: with deduplication and marks, and the bare insert."""
    batches = 20 if bench.is_quick else 100
    ours, bare = [], []
    for number in range(bench.runs):
        note(f"record_many in batches of 1,000, run {number + 1}")
        ours.append(asyncio.run(_migrated(bench, "postgresql", _batch_ours, batches)))
        bare.append(asyncio.run(_migrated(bench, "postgresql", _batch_bare, batches)))
    return [
        Measure(
            "record_batch_1000_postgresql",
            "events/s",
            statistics.median(ours),
            others={"bare INSERT unnest": statistics.median(bare)},
            reference="bare INSERT unnest",
            target=0.6,
            target_on="ratio",
        )
    ]


def aggregate(bench: Bench) -> list[Measure]:
    """A day of one tenant and metric: 1,000,000 events into its total."""
    events = 100_000 if bench.is_quick else 1_000_000
    measures = []
    for kind in KINDS:
        ours, bare, memory = asyncio.run(_migrated(bench, kind, _aggregate, events, bench.runs))
        measure = Measure(f"aggregate_day_{kind}", "s", ours, better="lower", others={"bare SQL": bare})
        if kind == "postgresql":
            measure.reference, measure.target, measure.target_on = "bare SQL", 2.0, "ratio"
        else:
            measure.target = 1.5 * events / 1_000_000
        memory_measure = Measure(
            f"aggregate_day_{kind}_memory_growth", "MB", memory, better="lower", target=20
        )
        measures += [measure, memory_measure]
    return measures


def incremental(bench: Bench) -> list[Measure]:
    """1,000 new events of 100 tenants and 2 days among 10,000,000: recorded, then aggregated."""
    events = 200_000 if bench.is_quick else 10_000_000
    seconds = asyncio.run(_migrated(bench, "postgresql", _incremental, events, bench.runs))
    return [Measure("aggregate_1000_new_of_10m", "s", seconds, better="lower", target=0.5)]


def imports(bench: Bench) -> list[Measure]:
    """``usage import`` into an empty and into a full table, keys in the order of time and random."""
    events, before = (50_000, 200_000) if bench.is_quick else (1_000_000, 10_000_000)
    measures, rates = [], {}
    with TemporaryDirectory(prefix="bench") as folder:
        for keys in ("time", "random"):
            file = Path(folder) / f"{keys}.csv"
            _write_csv(file, events, is_random=keys == "random")
            for state in ("empty", "full"):
                url = bench.fresh("postgresql")
                run_worker(["migrate", "--database-url", url])
                if state == "full":
                    asyncio.run(_fill(make_engine(url), before, is_random=keys == "random"))
                note(f"usage import, {events:,} events, keys {keys}, table {state}")
                run = run_worker(["usage", "import", str(file), "--json", "--database-url", url])
                counts = json.loads(run.stdout.splitlines()[-1])
                check_equal("inserted", counts["inserted"], events)
                rates[keys, state] = events / run.seconds
                measure = Measure(f"import_{keys}_{state}_postgresql", "events/s", rates[keys, state])
                if keys == "time":
                    measure.target = 40_000 if state == "empty" else rates["time", "empty"] / 1.5
                measures += [
                    measure,
                    Measure(f"import_{keys}_{state}_peak", "MB", run.peak_mb, better="lower"),
                ]
    return measures


async def _migrated(bench: Bench, kind: str, work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    engine = make_engine(bench.fresh(kind), pool_size=CONCURRENCY)
    try:
        await migrate(engine)
        return await work(engine, *arguments)
    finally:
        await engine.dispose()


async def _record_alone(engine: AsyncEngine, events: int) -> float:
    sessions, at = make_session_factory(engine), datetime.now(UTC)

    async def one(number: int) -> None:
        amount, key = Decimal(number % 50), f"key-{number:08d}"
        usage = NewUsage(f"t{number % 100}", "tokens", amount, at, key, {"model": "gpt"})
        await record_alone(sessions, [usage], now=at)

    return await _at_once(engine, events, one)


async def _record_in_session(engine: AsyncEngine, events: int) -> float:
    sessions, at = make_session_factory(engine), datetime.now(UTC)  # as it happens, not late

    def act(session: Any, number: int) -> None:
        service = BillingService(session, f"t{number % 100}")
        service.record_usage("tokens", number % 50, at, f"key-{number:08d}", {"model": "gpt"})

    async def one(number: int) -> None:
        async with sessions.begin() as session:
            await session.run_sync(act, number)

    return await _at_once(engine, events, one)


async def _record_bare(engine: AsyncEngine, events: int) -> float:
    at = datetime.now(UTC)
    pool = await asyncpg.create_pool(_dsn(engine), min_size=CONCURRENCY, max_size=CONCURRENCY)

    async def one(number: int) -> None:
        async with pool.acquire() as connection:
            *columns, created_at, tenants = _values([number], at)
            columns[5] = [at.isoformat()]
            await connection.fetch(INSERT_AND_MARK, *map(json_column, columns), created_at, tenants, True)

    try:
        return await _at_once(engine, events, one)
    finally:
        await pool.close()


async def _at_once(engine: AsyncEngine, events: int, one: Callable[[int], Awaitable[None]]) -> float:
    """Events a second of 16 writers; the first hundred only warm up."""
    numbers = iter(range(events))

    async def writer() -> None:
        for number in numbers:
            await one(number)

    for number in range(events, events + 100):
        await one(number)
    started = time.perf_counter()
    await asyncio.gather(*(writer() for _ in range(CONCURRENCY)))
    seconds = time.perf_counter() - started
    check_equal("events", await _count(engine, UsageEvent), events + 100)
    return events / seconds


def _peer(url: str, events: int) -> float:
    done = subprocess.run(
        [str(PEER), str(PEER_SCRIPT), url, str(events), str(CONCURRENCY)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"the peer failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def _values(numbers: list[int], at: datetime = START) -> tuple[object, ...]:
    tenants = [f"t{number % 100}" for number in numbers]
    return (
        tenants,
        ["tokens"] * len(numbers),
        [f"key-{number:08d}" for number in numbers],
        [new_id() for _ in numbers],
        [str(number % 50) for number in numbers],
        [at] * len(numbers),
        ['{"model":"gpt"}'] * len(numbers),
        at,
        sorted(set(tenants)),
    )


async def _batch_ours(engine: AsyncEngine, batches: int) -> float:
    sessions = make_session_factory(engine)
    started = time.perf_counter()
    for number in range(batches):
        events = [
            NewUsage(f"t{n % 100}", "tokens", Decimal(n % 50), START, f"key-{n:08d}", {"model": "gpt"})
            for n in range(number * 1_000, (number + 1) * 1_000)
        ]
        async with sessions.begin() as session:
            await session.run_sync(record_many, events, now=START)
    seconds = time.perf_counter() - started
    check_equal("events", await _count(engine, UsageEvent), batches * 1_000)
    return batches * 1_000 / seconds


_BARE_INSERT = """
INSERT INTO usage_events (tenant_id, metric, idempotency_key, id, amount, at_ts, metadata_json, created_at)
SELECT n.*, $8::timestamptz FROM unnest($1::varchar[], $2::varchar[], $3::varchar[], $4::varchar[],
  $5::numeric[], $6::timestamptz[], $7::text[]) AS n
ON CONFLICT DO NOTHING
"""


async def _batch_bare(engine: AsyncEngine, batches: int) -> float:
    connection = await asyncpg.connect(_dsn(engine))
    started = time.perf_counter()
    for number in range(batches):
        values = list(_values(list(range(number * 1_000, (number + 1) * 1_000)))[:8])
        values[4] = [Decimal(str(amount)) for amount in values[4]]  # type: ignore[attr-defined]
        await connection.execute(_BARE_INSERT, *values)
    seconds = time.perf_counter() - started
    await connection.close()
    check_equal("events", await _count(engine, UsageEvent), batches * 1_000)
    return batches * 1_000 / seconds


async def _aggregate(engine: AsyncEngine, events: int, runs: int) -> tuple[float, float, float]:
    note(f"{engine.dialect.name}: a day of {events:,} events")
    await _fill(engine, events, tenants=1, days=1, is_disposed=False)
    sessions = make_session_factory(engine)
    key = DayKey("t0", "tokens", DAY)
    bare = text(
        "SELECT sum(amount) FROM usage_events WHERE tenant_id = 't0' AND metric = 'tokens' "
        "AND at_ts >= :start AND at_ts < :end"
    ).bindparams(start=DAY.start, end=DAY.end)
    if engine.dialect.name == "sqlite":
        bare = text("SELECT sum(amount) FROM usage_events WHERE tenant_id = 't0' AND metric = 'tokens'")
    ours_found, bare_found = [], []
    before = _memory_mb()
    for _ in range(runs):
        started = time.perf_counter()
        async with sessions.begin() as session:
            [day] = await session.run_sync(recompute, [key], now=START)
        ours_found.append(time.perf_counter() - started)
        started = time.perf_counter()
        async with sessions.begin() as session:
            total = (await session.execute(bare)).scalar_one()
        bare_found.append(time.perf_counter() - started)
        check_equal("total", int(day.total), int(total))
    return statistics.median(ours_found), statistics.median(bare_found), _memory_mb() - before


async def _incremental(engine: AsyncEngine, before: int, runs: int) -> float:
    note(f"postgresql: {before:,} events, then 1,000 new ones at a time")
    await _fill(engine, before, is_disposed=False)
    sessions = make_session_factory(engine)
    async with sessions.begin() as session:  # what was filled in is aggregated already, in bulk
        await session.execute(text("DELETE FROM usage_dirty_days"))
    found = []
    for run in range(runs + 1):
        events = [
            NewUsage(f"t{n % 100}", "tokens", Decimal(1), START + timedelta(days=n // 500), f"new-{run}-{n}")
            for n in range(1_000)
        ]
        started = time.perf_counter()
        async with sessions.begin() as session:
            await session.run_sync(record_many, events, now=START)
        async with sessions.begin() as session:
            keys = await session.run_sync(marked_days, limit=500)
            totals = await session.run_sync(recompute, keys, now=START)
        found.append(time.perf_counter() - started)
        check_equal("days", len(totals), 200)
    async with sessions.begin() as session:
        january = Period(START, START + timedelta(days=31))
        check_equal("marks", await session.run_sync(consume_marks_of, ["t0"], january, now=START), [])
        aggregates = await session.scalar(select(func.count()).select_from(UsageAggregate))
    check_equal("aggregates", aggregates, 200)
    return statistics.median(found[1:])


async def _fill(
    engine: AsyncEngine,
    events: int,
    *,
    tenants: int = 1_000,
    days: int = 30,
    is_random: bool = False,
    is_disposed: bool = True,
) -> None:
    """Put events into the table by the server's own means, in the order of time."""
    share = f"(n::bigint * {days * 86_400_000} / {events})"
    key = (
        "gen_random_uuid()::text"
        if is_random
        else f"lpad(to_hex({share}), 12, '0') || lpad(n::text, 12, '0')"
    )
    postgresql = f"""
        INSERT INTO usage_events
          (tenant_id, metric, idempotency_key, id, amount, at_ts, metadata_json, created_at)
        SELECT 't' || (n % {tenants}), 'tokens', {key}, lpad(n::text, 36, '0'), n % 5000,
          timestamptz '2025-01-01 00:00:00+00' + {share} * interval '1 millisecond', NULL, now()
        FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS n"""
    sqlite = f"""
        WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)
        INSERT INTO usage_events
          (tenant_id, metric, idempotency_key, id, amount, at_ts, metadata_json, created_at)
        SELECT 't' || (n % {tenants}), 'tokens', printf('%012d', n), printf('%036d', n),
          CAST(n % 5000 AS TEXT), '2025-01-01 ' || printf('%02d:%02d:00.000000', n % 24, n % 60), NULL,
          '2025-01-01 00:00:00.000000' FROM numbers"""
    step = 500_000
    for first in range(0, events, step):
        async with engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            if engine.dialect.name == "postgresql":
                await connection.execute(text("SET LOCAL statement_timeout = 0"))
            statement = text(postgresql if engine.dialect.name == "postgresql" else sqlite)
            await connection.execute(statement, {"first": first, "last": min(first + step, events) - 1})
    if engine.dialect.name == "postgresql":
        async with engine.connect() as connection:
            autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await autocommit.execute(text("SET statement_timeout = 0"))
            await autocommit.execute(text("VACUUM ANALYZE usage_events"))
            await autocommit.execute(text("CHECKPOINT"))
    check_equal("filled in", await _count(engine, UsageEvent), events)
    if is_disposed:
        await engine.dispose()


def _write_csv(file: Path, events: int, *, is_random: bool) -> None:
    rng = Random(7)
    start = START + timedelta(days=30)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["tenant_id", "metric", "amount", "at", "idempotency_key"])
        for number in range(events):
            at = start + timedelta(days=3) * number / events
            milliseconds = int(at.timestamp() * 1000) if not is_random else rng.getrandbits(48)
            key = f"{milliseconds:012x}7{rng.getrandbits(76):019x}"
            writer.writerow(
                [f"t{rng.randrange(1000)}", "tokens", rng.randrange(1, 5_000), at.isoformat(), key]
            )


async def _count(engine: AsyncEngine, table: Any) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(select(func.count()).select_from(table)) or 0)


def _dsn(engine: AsyncEngine) -> str:
    return make_url(engine.url).set(drivername="postgresql").render_as_string(hide_password=False)


def _memory_mb() -> float:
    scale = 1024 if sys.platform != "darwin" else 1024 * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
