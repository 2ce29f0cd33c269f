"""dramatiq on Redis for ``bench/jobs.py``: one process with eight threads, its default."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import dramatiq
from _jobs_peer import Arrivals, Peer, main
from dramatiq.brokers.redis import RedisBroker
from dramatiq.worker import Worker

logging.disable(logging.WARNING)


class Dramatiq(Peer):
    async def open(self) -> None:
        self.broker = RedisBroker(url=self.url)
        self.broker.declare_queue("default")

    async def close(self) -> None:
        self.broker.close()

    async def bulk(self, payloads: list[dict[str, Any]]) -> None:
        for payload in payloads:
            await self.one(payload)

    async def one(self, payload: dict[str, Any]) -> None:
        message: Any = dramatiq.Message("default", "job", (payload,), {}, {})
        self.broker.enqueue(message)

    async def work(self, arrivals: Arrivals, stop: asyncio.Event) -> None:
        broker = RedisBroker(url=self.url)

        @dramatiq.actor(actor_name="job", broker=broker, queue_name="default")
        def job(payload: dict[str, Any]) -> None:
            arrivals.add(payload)

        worker = Worker(broker, worker_threads=8)
        worker.start()
        await stop.wait()
        await asyncio.to_thread(worker.stop)


if __name__ == "__main__":
    main(Dramatiq)
