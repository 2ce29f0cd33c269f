"""The HTTP API measured: usage one by one, in batches and as a stream, and what ``require_quota`` adds.

    python bench/api.py [--only one,batch,stream,quota] [--json] [--quick] [--runs 5]

The server is ``worker.py api`` (uvicorn, one process) on PostgreSQL, the load comes over loopback from
another process, and every row counts the events that the database has afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _common import WORKER, Bench, Measure, check_equal, note, run_groups
from sqlalchemy import text

from svc_infra.db.session import make_engine

HERE = Path(__file__).parent
PEER = HERE.parent / ".bench-venv" / "bin" / "python"
CONNECTIONS = 32
# As a request records what it has just used.
EVENT = {
    "metric": "tokens",
    "amount": 7,
    "at": datetime.now(UTC).isoformat(),
    "metadata": {"model": "gpt"},
}


def one(bench: Bench) -> list[Measure]:
    """One event per request, 32 connections: ours and the public peer's router."""
    events = 1_000 if bench.is_quick else 4_000
    found: dict[str, list[float]] = {"ours": [], "svc-infra": []}
    for number in range(bench.runs):
        note(f"POST usage one by one, run {number + 1}")
        found["ours"].append(
            _ours(bench, "/_billing/usage", [json.dumps(_event(n)) for n in range(events)], events)
        )
        if PEER.exists():
            found["svc-infra"].append(_peer(bench, events))
    peer = statistics.median(found["svc-infra"]) if found["svc-infra"] else None
    return [
        Measure(
            "api_usage_one_by_one_32_postgresql_to_peer",
            "events/s",
            statistics.median(found["ours"]),
            others={"svc-infra": peer} if peer else {},
            reference="svc-infra",
            target=2,
            target_on="ratio",
            reason="" if peer else "make bench-deps has not installed the peer",
        )
    ]


def batch(bench: Bench) -> list[Measure]:
    """Batches of 100 events."""
    batches = 100 if bench.is_quick else 400
    bodies = [json.dumps([_event(n * 100 + k) for k in range(100)]) for n in range(batches)]
    rate = statistics.median(
        _ours(bench, "/_billing/usage/batch", bodies, batches * 100, status=200, connections=4)
        for _ in range(bench.runs)
    )
    return [Measure("api_usage_batch_100_postgresql", "events/s", rate, target=10_000)]


def stream(bench: Bench) -> list[Measure]:
    """One NDJSON request, and how much the server's memory grows from a short one to a long one."""
    events = 30_000 if bench.is_quick else 150_000
    rates, growths = [], []
    for _ in range(bench.runs):
        url = bench.fresh("postgresql")
        with _worker_api(url) as (port, key, process):
            _send_stream(port, key, 10_000_000, 10_000)
            before = _resident_mb(process.pid)
            rates.append(_send_stream(port, key, 0, events))
            growths.append(_resident_mb(process.pid) - before)
        check_equal("usage events", asyncio.run(_count(url)), events + 10_000)
    return [
        Measure("api_usage_ndjson_postgresql", "events/s", statistics.median(rates), target=20_000),
        Measure(
            "api_usage_ndjson_memory_growth", "MB", statistics.median(growths), better="lower", target=10
        ),
    ]


def quota(bench: Bench) -> list[Measure]:
    """What ``require_quota`` adds to an endpoint at the median, one request at a time, both by turns."""
    requests = 500 if bench.is_quick else 2_000
    added = []
    for _ in range(bench.runs):
        url = bench.fresh("postgresql")
        _migrate(url)
        with _server([sys.executable, str(HERE / "_api_quota.py"), url]) as (port, _process):
            paths = ["/bare", "/held"] * requests
            asked = [{"method": "GET", "path": path, "headers": {}} for path in paths]
            times = _load(port, asked, 200, 1)["milliseconds"][200:]
            added.append(statistics.median(times[1::2]) - statistics.median(times[::2]))
    return [Measure("api_require_quota_added_p50", "ms", statistics.median(added), better="lower", target=2)]


GROUPS: dict[str, Callable[[Bench], list[Measure]]] = {
    "one": one,
    "batch": batch,
    "stream": stream,
    "quota": quota,
}


def _send_stream(port: int, key: str, first: int, count: int) -> float:
    """Send a stream and return the events recorded a second."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"}
    lines = "".join(json.dumps(_event(first + n)) + "\n" for n in range(count))
    request = {"path": "/_billing/usage/stream", "headers": headers, "body": lines}
    return count / float(_load(port, [request], 200, 1)["seconds"])


def _event(number: int) -> dict[str, Any]:
    return {**EVENT, "idempotency_key": f"key-{number:08d}"}


def _ours(
    bench: Bench,
    path: str,
    bodies: list[str],
    events: int,
    *,
    status: int = 202,
    connections: int = CONNECTIONS,
) -> float:
    url = bench.fresh("postgresql")
    with _worker_api(url) as (port, key, _):
        headers = {"Authorization": f"Bearer {key}"}
        warm = [
            {"path": "/_billing/usage", "headers": headers, "body": json.dumps(_event(10**7 + n))}
            for n in range(100)
        ]
        _load(port, warm, 202, connections)
        requests = [{"path": path, "headers": headers, "body": body} for body in bodies]
        seconds = float(_load(port, requests, status, connections)["seconds"])
    check_equal("usage events", asyncio.run(_count(url)), events + 100)
    return events / seconds


def _peer(bench: Bench, events: int) -> float:
    url = bench.fresh("postgresql")
    with _server([str(PEER), str(HERE / "_peer_svc_infra_api.py"), url]) as (port, _):

        def send(first: int, count: int) -> float:
            requests = [
                {
                    "path": "/_billing/usage",
                    "headers": {"X-Tenant-Id": "t", "Idempotency-Key": f"key-{n:08d}"},
                    "body": json.dumps(_event(n)),
                }
                for n in range(first, first + count)
            ]
            return float(_load(port, requests, 202, CONNECTIONS)["seconds"])

        send(10**7, 100)
        seconds = send(0, events)
    check_equal("the peer's usage events", asyncio.run(_count(url, "billing_usage_events")), events + 100)
    return events / seconds


@contextmanager
def _worker_api(url: str) -> Iterator[tuple[int, str, subprocess.Popen[bytes]]]:
    _migrate(url)
    made = _worker(
        url, "keys", "create", "--name", "bench", "--tenant", "t", "--scope", "billing.*", "--json"
    )
    with _server([sys.executable, str(WORKER), "api", "--port"], url) as (port, process):
        yield port, json.loads(made)["key"], process


@contextmanager
def _server(command: list[str], url: str = "") -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a server whose last argument is its port, from its first answer to the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "DATABASE_URL": url, "SVC__LOG__LEVEL": "warning"}
    process = subprocess.Popen([*command, str(port)], env=environment)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{command[1]} ended with {process.returncode}") from None
                time.sleep(0.1)
        yield port, process
    finally:
        process.terminate()
        process.wait()


def _load(port: int, requests: list[dict[str, Any]], expected: int, connections: int) -> dict[str, Any]:
    order = {"port": port, "requests": requests, "expected": expected, "connections": connections}
    done = subprocess.run(
        [sys.executable, str(HERE / "_api_load.py")],
        input=json.dumps(order).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return dict(json.loads(done.stdout))


def _migrate(url: str) -> None:
    _worker(url, "migrate")


def _worker(url: str, *command: str) -> str:
    environment = {**os.environ, "DATABASE_URL": url}
    done = subprocess.run(
        [sys.executable, str(WORKER), *command], env=environment, stdout=subprocess.PIPE, check=True
    )
    return done.stdout.decode()


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the server has no memory")


async def _count(url: str, table: str = "usage_events") -> int:
    engine = make_engine(url)
    try:
        async with engine.connect() as connection:
            return int(await connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)
    finally:
        await engine.dispose()


def main() -> None:
    run_groups(GROUPS, "the HTTP API: usage and quotas", ("postgresql",))


if __name__ == "__main__":
    main()
