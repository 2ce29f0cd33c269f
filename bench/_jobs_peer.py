"""One process of one queue, as ``bench/jobs.py`` starts it in that queue's own environment.

    python _jobs_NAME.py install|bulk|singly|work URL [--jobs N] [--gap SECONDS] [--counts FILE --slot I]

``work`` says "ready", waits for a line on standard input, works until a second one, and prints the latencies
of the jobs that carried their instant. ``bulk`` and ``singly`` print the seconds that the enqueuing took,
without those of importing and connecting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOT_BYTES = 8
BULK_SIZE = 1_000


class Arrivals:
    """Counts the jobs that were started, in memory that the benchmark reads, and keeps their latencies."""

    def __init__(self, counts: Path | None, slot: int) -> None:
        self.samples_ms: list[float] = []
        self._count = 0
        self._lock = threading.Lock()  # dramatiq runs its jobs in threads
        self._offset = slot * SLOT_BYTES
        if counts is not None:
            with counts.open("r+b") as file:
                self._memory: Any = mmap.mmap(file.fileno(), 0)

    def add(self, payload: dict[str, Any]) -> None:
        """Note one job that starts now."""
        if "at" in payload:
            self.samples_ms.append((time.monotonic_ns() - payload["at"]) / 1e6)
        self.add_many(1)

    def add_many(self, jobs: int) -> None:
        """Note jobs that start now and carry no instant."""
        with self._lock:
            self._count += jobs
            struct.pack_into("q", self._memory, self._offset, self._count)


class Peer:
    """What a queue has to be able to do to be measured; every queue implements all of it."""

    def __init__(self, url: str, options: argparse.Namespace) -> None:
        self.url = url
        self.options = options

    async def install(self) -> None:
        """Make the tables."""

    async def open(self) -> None:
        """Connect for enqueuing."""

    async def close(self) -> None:
        """Disconnect after enqueuing."""

    async def bulk(self, payloads: list[dict[str, Any]]) -> None:
        """Enqueue all of them the quickest way that is documented, one commit for each call."""
        raise NotImplementedError

    async def one(self, payload: dict[str, Any]) -> None:
        """Enqueue one job in a commit of its own."""
        raise NotImplementedError

    async def work(self, arrivals: Arrivals, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set."""
        raise NotImplementedError


def postgres_url(url: str) -> str:
    """The address as libpq writes it, from the one with SQLAlchemy's driver in it."""
    return url.replace("postgresql+asyncpg", "postgresql")


def main(make: Callable[[str, argparse.Namespace], Peer]) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("install", "bulk", "singly", "work"))
    parser.add_argument("url")
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--gap", type=float, default=0.0)
    parser.add_argument("--counts", type=Path)
    parser.add_argument("--slot", type=int, default=0)
    parser.add_argument("--handler", default="batch")
    parser.add_argument("--has-ledger", action="store_true")
    options = parser.parse_args()
    peer = make(options.url, options)
    _run(_acting(peer, options))


async def _acting(peer: Peer, options: argparse.Namespace) -> None:
    if options.action == "install":
        await peer.install()
    elif options.action == "work":
        await _work(peer, options)
    else:
        await peer.open()
        seconds = await (_bulk if options.action == "bulk" else _singly)(peer, options)
        await peer.close()
        print(json.dumps({"seconds": seconds}), flush=True)


async def _bulk(peer: Peer, options: argparse.Namespace) -> float:
    payloads = [{"n": number} for number in range(options.jobs)]
    started = time.perf_counter()
    for start in range(0, len(payloads), BULK_SIZE):
        await peer.bulk(payloads[start : start + BULK_SIZE])
    return time.perf_counter() - started


async def _singly(peer: Peer, options: argparse.Namespace) -> float:
    started = time.perf_counter()
    for number in range(options.jobs):
        if options.gap:
            await asyncio.sleep(options.gap)
        await peer.one({"at": time.monotonic_ns()} if options.gap else {"n": number})
    return time.perf_counter() - started


async def _work(peer: Peer, options: argparse.Namespace) -> None:
    arrivals, stop = Arrivals(options.counts, options.slot), asyncio.Event()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    working = asyncio.create_task(peer.work(arrivals, stop))
    told = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    await asyncio.wait({working, told}, return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    print(json.dumps({"samples_ms": arrivals.samples_ms}), flush=True)
    await working


def _run(work: Any) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
