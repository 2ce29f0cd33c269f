"""``worker.py usage import`` as a process of its own: events a second, new ones and repeated ones.

    python bench/usage_import.py [--events 200000] [--json] [--quick]

The file is generated: 1,000 tenants, 2 metrics, 30 days in the order of time, keys like UUIDv7. The time is
that of the whole process, its start included, and the rows are counted in the database.
"""

from __future__ import annotations

import asyncio
import csv
import json
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from _common import KINDS, Measure, arguments, check_equal, databases, note, report, run_worker
from sqlalchemy import func, select

from svc_infra.billing.models import UsageEvent
from svc_infra.db.session import make_engine

_TENANTS = 1_000
_DAYS = 30
_START = datetime(2025, 1, 1, tzinfo=UTC)
_TARGET = 20_000


def main() -> None:
    parser = arguments("events a second through worker.py usage import")
    parser.add_argument("--events", type=int, default=200_000, help="events in the generated file")
    options = parser.parse_args()
    events = min(options.events, 60_000) if options.quick else options.events
    measures = []
    with TemporaryDirectory(prefix="bench") as folder, databases() as fresh:
        file = Path(folder) / "usage.csv"
        write_usage(file, events)
        for kind in KINDS:
            measures += _measure(kind, fresh, file, events, options)
    report(measures, as_json=options.json)


def write_usage(file: Path, events: int) -> None:
    """Write a CSV of ``events`` events."""
    rng = Random(7)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["tenant_id", "metric", "amount", "at", "idempotency_key"])
        for number in range(events):
            at = _START + timedelta(days=_DAYS) * number / events
            tenant = f"tenant_{rng.randrange(_TENANTS):04d}"
            metric = "tokens" if rng.random() < 0.7 else "requests"
            writer.writerow([tenant, metric, rng.randrange(1, 5_000), at.isoformat(), _uuid7(at, rng)])


def _uuid7(at: datetime, rng: Random) -> str:
    digits = (
        f"{int(at.timestamp() * 1000):012x}7{rng.getrandbits(12):03x}{8 << 60 | rng.getrandbits(60):016x}"
    )
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _measure(
    kind: str, fresh: Callable[[str], str], file: Path, events: int, options: Namespace
) -> list[Measure]:
    rates: dict[str, list[float]] = {"inserted": [], "duplicate": []}
    peak_mb = 0.0
    for _ in range(options.runs or 1):
        url = fresh(kind)
        run_worker(["migrate", "--database-url", url])
        for outcome, found in rates.items():
            note(f"usage import, {kind}, {events:,} events, {outcome}")
            run = run_worker(["usage", "import", str(file), "--json", "--database-url", url])
            counts = json.loads(run.stdout.splitlines()[-1])
            check_equal(f"{outcome} by the import", counts[outcome], events)
            check_equal("events in the database", asyncio.run(_events_in(url)), events)
            found.append(events / run.seconds)
            peak_mb = max(peak_mb, run.peak_mb)
    measures = [
        Measure(f"usage_import_{outcome}_{kind}", "events/s", sorted(found)[len(found) // 2])
        for outcome, found in rates.items()
    ]
    measures[0].target = _TARGET
    return [*measures, Measure(f"usage_import_peak_{kind}", "MB", peak_mb, better="lower")]


async def _events_in(url: str) -> int:
    engine = make_engine(url)
    async with engine.connect() as connection:
        count = await connection.scalar(select(func.count()).select_from(UsageEvent))
    await engine.dispose()
    return int(count or 0)


if __name__ == "__main__":
    main()
