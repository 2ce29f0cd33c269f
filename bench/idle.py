"""What a worker costs that has nothing to do: processor time, memory, and statements at the server.

    python bench/idle.py [--json] [--quick]

``worker.py run`` with its default settings and the schedules that come with it, on SQLite and on PostgreSQL,
is left alone for a minute (15 s with ``--quick``) after its start. Statements are counted by the server
(pg_stat_statements); SQLite counts none.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import asyncpg
from _common import Measure, arguments, note, report
from _jobs_peer import postgres_url
from _worker import WorkerProcess

from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine
from svc_infra.testing.postgres import PostgresServer

_SETTLING_SECONDS = 10.0
_UNUSED_PORT = 9


async def _prepare(url: str) -> None:
    engine = make_engine(url)
    await migrate(engine)
    await engine.dispose()


async def _statements(url: str) -> tuple[float, list[tuple[int, str]]]:
    """How many statements have been executed in the database, and the most frequent ones."""
    connection = await asyncpg.connect(postgres_url(url))
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        rows = await connection.fetch(
            "SELECT calls, query FROM pg_stat_statements JOIN pg_database ON dbid = oid "
            "WHERE datname = current_database() ORDER BY calls DESC"
        )
    finally:
        await connection.close()
    return sum(row["calls"] for row in rows), [(row["calls"], row["query"]) for row in rows[:20]]


def _measure(name: str, url: str, seconds: float) -> list[Measure]:
    with WorkerProcess(url, port=_UNUSED_PORT) as worker:
        time.sleep(_SETTLING_SECONDS)
        is_postgres = url.startswith("postgresql")
        before = asyncio.run(_statements(url))[0] if is_postgres else 0.0
        began, used = time.monotonic(), worker.cpu_seconds()
        time.sleep(seconds)
        used, took = worker.cpu_seconds() - used, time.monotonic() - began
        memory = worker.memory_mb()
        found, frequent = asyncio.run(_statements(url)) if is_postgres else (0.0, [])
    measures = [
        Measure(f"idle_cpu_{name}", "% of core", 100 * used / took, better="lower", target=1.0),
        Measure(f"idle_memory_{name}", "MB", memory, better="lower", target=120.0),
    ]
    if is_postgres:
        rate = (found - before) / took
        measures.append(Measure(f"idle_statements_{name}", "per s", rate, better="lower", target=10.0))
        for calls, query in frequent:
            note(f"  {calls} x {' '.join(query.split())[:120]}")
    return measures


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    seconds = 15.0 if options.quick else 60.0
    server = PostgresServer().start(fsync=True, settings={"shared_preload_libraries": "pg_stat_statements"})
    with tempfile.TemporaryDirectory(prefix="bench") as folder, server:
        server.create_database("idle")
        measures = []
        for name, url in (
            ("postgresql", server.url("idle")),
            ("sqlite", f"sqlite+aiosqlite:///{Path(folder) / 'idle.sqlite'}"),
        ):
            asyncio.run(_prepare(url))
            measures += _measure(name, url, seconds)
    report(measures, as_json=options.json)


if __name__ == "__main__":
    main()
