"""Webhooks: how fast, how soon, and how little one endpoint matters to the others.

    python bench/webhooks.py [--only transport,latency] [--runs 5] [--json] [--quick]

A worker (``worker.py run``, pinned to one core) sends to a sink in a process of its own, pinned to the other;
what counts is what the sink received. Figures are medians of ``--runs``. The peers of the transport live in
``.bench-venv`` (``make bench-deps``). The parts: transport, throughput, latency, isolation, fan_out, replay.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from _common import Measure, arguments, check_equal, databases, note, report
from _sink import Sink, percentile
from _webhook_backlog import add_backlog
from _webhook_replay import measure_replay
from _webhook_shop import Shop, received, recorded
from _worker import WorkerProcess

_FOLDER = Path(__file__).parent
_PEERS_PYTHON = _FOLDER.parent / ".bench-venv" / "bin" / "python"
_PEERS = ("httpx", "httpx2", "aiohttp")
_REQUESTS, _SLOWEST_REQUESTS = 4_000, 200
_CONCURRENCIES = (10, 50, 200, 400)
_MESSAGES_PER_SECOND = 200
_ENDPOINTS, _HANGING = 50, 5

Fresh = Callable[[str], str]


def main() -> None:
    parser = arguments("webhooks: transport, throughput, latency, isolation, fan-out, replay")
    parser.add_argument("--only", default=",".join(_PARTS), help="parts to measure, separated by commas")
    options = parser.parse_args()
    runs = options.runs or (1 if options.quick else 5)
    measures: list[Measure] = []
    with databases() as fresh, Sink() as sink:
        for part in options.only.split(","):
            measures += _PARTS[part](sink, fresh, runs, options.quick)
    report(measures, as_json=options.json)


# --- transport --------------------------------------------------------------------------------------------


def _transport(sink: Sink, fresh: Fresh, runs: int, is_quick: bool) -> list[Measure]:
    one_host, many_hosts = [sink.url()], [sink.url(host=number) for number in range(200)]
    clients = ["ours", *_PEERS] if _PEERS_PYTHON.exists() else ["ours", "httpx"]
    missing = "" if _PEERS_PYTHON.exists() else "no peers: make bench-deps"
    measures = []
    for name, urls in (("one_host", one_host), ("200_hosts", many_hosts)):
        rates: dict[str, list[float]] = {client: [] for client in clients}
        for _ in range(runs):
            for client in clients:
                rates[client].append(_rate(sink, client, urls, 200))
        medians = {client: statistics.median(found) for client, found in rates.items()}
        ours = medians.pop("ours")
        measures.append(
            Measure(
                f"transport_{name}_200_in_flight",
                "sends/s/core",
                ours,
                others=medians,
                reference="httpx",
                target=1_500,
                reason=missing,
            )
        )
    by_concurrency = {
        in_flight: statistics.median(_rate(sink, "ours", one_host, in_flight) for _ in range(runs))
        for in_flight in _CONCURRENCIES
    }
    # What collapses with concurrency does so towards the most; with few in flight a client waits for answers.
    flatness = by_concurrency[_CONCURRENCIES[-1]] / max(by_concurrency.values())
    others = {f"{in_flight} in flight, sends/s": rate for in_flight, rate in by_concurrency.items()}
    return [*measures, Measure("transport_400_over_fastest", "ratio", flatness, others=others, target=0.75)]


def _rate(sink: Sink, client: str, urls: Sequence[str], in_flight: int) -> float:
    """Return the sends a second of a client on one core; what it says must be what the sink received."""
    requests = _SLOWEST_REQUESTS if client == "httpx" else _REQUESTS
    python = str(_PEERS_PYTHON) if client in _PEERS[1:] else sys.executable
    command = [python, str(_FOLDER / "_http_client.py"), client]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps({"urls": urls, "in_flight": in_flight, "requests": requests}), file=process.stdin)
        process.stdin.flush()
        check_equal(f"{client} at its start", process.stdout.readline(), "ready\n")
        sink.reset()
        print("go", file=process.stdin, flush=True)
        done = json.loads(process.stdout.readline())
    check_equal(f"answers to {client} and receipts", (done["answered"], sink.receipts()), (requests,) * 2)
    note(f"{client}, {len(urls)} host(s), {in_flight} in flight: {requests / done['seconds']:,.0f}/s")
    return float(requests / done["seconds"])


# --- throughput -------------------------------------------------------------------------------------------


def _throughput(sink: Sink, fresh: Fresh, runs: int, is_quick: bool) -> list[Measure]:
    messages = 2_000 if is_quick else 10_000

    async def run(url: str) -> float:
        shop = Shop(url)
        # One endpoint would measure its own in-flight cap: 8 divided by the time of a round trip.
        await shop.open([sink.url("/hook", host=n) for n in range(_ENDPOINTS)], per_tenant=True)
        with WorkerProcess(url, port=sink.port) as worker:
            sink.reset()
            started, cpu = time.monotonic(), worker.cpu_seconds()
            await shop.publish_many(messages, tenants=_ENDPOINTS)
            await received(sink, messages)
            await recorded(shop, messages)
            seconds, cpu = time.monotonic() - started, worker.cpu_seconds() - cpu
        check_equal("distinct messages received", len(sink.arrivals()), messages)
        await shop.close()
        note(f"{messages / seconds:,.0f} deliveries/s, {cpu / messages * 1e6:,.0f} us of the worker each")
        return messages / seconds

    targets = {"postgresql": 1_000, "sqlite": 800}
    return [
        Measure(
            f"published_to_received_and_recorded_{kind}",
            "deliveries/s",
            statistics.median(asyncio.run(run(fresh(kind))) for _ in range(runs)),
            target=target,
        )
        for kind, target in targets.items()
    ]


# --- latency ----------------------------------------------------------------------------------------------


def _latency(sink: Sink, fresh: Fresh, runs: int, is_quick: bool) -> list[Measure]:
    """From the beginning of the publishing transaction, in this process, to the arrival at the sink."""
    idle, busy = (50, 2.0) if is_quick else (200, 10.0)

    async def run(url: str) -> tuple[float, float, float]:
        shop = Shop(url)
        await shop.open([sink.url("/hook")])
        with WorkerProcess(url, port=sink.port):
            await _published_at_a_rate(shop, sink, 20, 20)
            quiet = await _published_at_a_rate(shop, sink, idle, 15)
            loaded = await _published_at_a_rate(
                shop, sink, int(busy * _MESSAGES_PER_SECOND), _MESSAGES_PER_SECOND
            )
        await shop.close()
        return percentile(quiet, 0.5), percentile(quiet, 0.99), percentile(loaded, 0.95)

    figures = [asyncio.run(run(fresh("postgresql"))) for _ in range(runs)]
    p50, p99, p95 = (statistics.median(column) * 1000 for column in zip(*figures, strict=True))
    return [
        Measure("publish_to_receive_idle_p50", "ms", p50, better="lower", target=15),
        Measure("publish_to_receive_idle_p99", "ms", p99, better="lower", target=50),
        Measure("publish_to_receive_at_200_a_second_p95", "ms", p95, better="lower", target=60),
    ]


async def _published_at_a_rate(
    shop: Shop, sink: Sink, count: int, per_second: float, *, tenants: int = 1, silent: int = 0
) -> list[float]:
    """Publish to so many tenants in turn, never waiting for what came before; return the latencies.

    Of the first ``silent`` tenants no receipts are expected.
    """
    sink.reset()
    begun: dict[str, float] = {}

    async def publish(number: int) -> None:
        message_id, started = await shop.publish(number % tenants)
        if number % tenants >= silent:
            begun[message_id] = started

    started = time.monotonic()
    async with asyncio.TaskGroup() as publishing:
        for number in range(count):
            await asyncio.sleep(max(started + number / per_second - time.monotonic(), 0))
            publishing.create_task(publish(number))
    await received(sink, len(begun))
    arrivals = sink.arrivals()
    check_equal("messages received", set(arrivals), set(begun))
    return [min(arrivals[message_id]) - at for message_id, at in begun.items()]


# --- isolation --------------------------------------------------------------------------------------------


def _isolation(sink: Sink, fresh: Fresh, runs: int, is_quick: bool) -> list[Measure]:
    seconds, timeout = (6, 3.0) if is_quick else (20, 15.0)
    backlog = 20_000 if is_quick else 100_000

    async def p99(url: str, *, hanging: int = 0, backlog: int = 0) -> float:
        """Of the endpoints that are neither among the first, which hang, nor the one with a backlog."""
        shop = Shop(url)
        silent = max(hanging, int(backlog > 0))
        urls = [sink.url("/hang" if n < hanging else "/hook", host=n) for n in range(_ENDPOINTS)]
        if backlog:
            urls[0] = sink.url("/silent", host=0)
        ids = await shop.open(urls, per_tenant=True)
        if backlog:
            await add_backlog(shop, ids[0], backlog)
        with WorkerProcess(url, port=sink.port, timeout_seconds=timeout):
            for count in (4 * _ENDPOINTS, seconds * _MESSAGES_PER_SECOND):
                latencies = await _published_at_a_rate(
                    shop, sink, count, _MESSAGES_PER_SECOND, tenants=_ENDPOINTS, silent=silent
                )
        await shop.close()
        return percentile(latencies, 0.99) * 1000

    quiet, hanging, behind = [], [], []
    for _ in range(runs):
        quiet.append(asyncio.run(p99(fresh("postgresql"))))
        hanging.append(asyncio.run(p99(fresh("postgresql"), hanging=_HANGING)))
        behind.append(asyncio.run(p99(fresh("postgresql"), backlog=backlog)))
        p99s = f"quiet {quiet[-1]:.1f}, hanging {hanging[-1]:.1f}, backlog {behind[-1]:.1f} ms"
        note(f"healthy p99: {p99s}")
    found = {
        f"healthy_p99_beside_{_HANGING}_of_{_ENDPOINTS}_hanging": hanging,
        f"healthy_p99_beside_{backlog}_due_to_one_with_a_rate": behind,
    }
    return [
        Measure(
            name,
            "ms",
            statistics.median(figures),
            better="lower",
            others={"quiet": statistics.median(quiet)},
            reference="quiet",
            target=2,
            target_on="ratio",
        )
        for name, figures in found.items()
    ]


# --- fan-out and replay -----------------------------------------------------------------------------------


def _fan_out(sink: Sink, fresh: Fresh, runs: int, is_quick: bool) -> list[Measure]:
    endpoints = 1_000

    async def run(url: str) -> tuple[float, float]:
        shop = Shop(url)
        await shop.open([sink.url("/hook", host=number) for number in range(endpoints)])
        with WorkerProcess(url, port=sink.port):
            sink.reset()
            _, started = await shop.publish()
            while await shop.execute("SELECT count(*) FROM webhook_deliveries") != endpoints:
                await asyncio.sleep(0.002)
            fanned_out = time.monotonic() - started
            await received(sink, endpoints)
            arrivals = next(iter(sink.arrivals().values()))
        await shop.close()
        return fanned_out, max(arrivals) - started

    figures = [asyncio.run(run(fresh("postgresql"))) for _ in range(runs)]
    fanned_out, all_received = (statistics.median(column) for column in zip(*figures, strict=True))
    return [
        Measure("fan_out_to_1000_endpoints", "s", fanned_out, better="lower", target=1),
        Measure("fan_out_to_1000_endpoints_all_received", "s", all_received, better="lower"),
    ]


def _replay(sink: Sink, fresh: Fresh, runs: int, is_quick: bool) -> list[Measure]:
    if is_quick:
        reason = "left out by --quick: it takes minutes"
        return [Measure("replay_of_100000_growth", "MB", None, better="lower", target=30, reason=reason)]
    return asyncio.run(measure_replay(sink, fresh("postgresql"), 100_000))


_PARTS: dict[str, Callable[[Sink, Fresh, int, bool], list[Measure]]] = {
    "transport": _transport,
    "throughput": _throughput,
    "latency": _latency,
    "isolation": _isolation,
    "fan_out": _fan_out,
    "replay": _replay,
}


if __name__ == "__main__":
    main()
