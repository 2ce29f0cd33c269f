"""saq over PostgreSQL for ``bench/jobs.py``."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from _jobs_peer import Arrivals, Peer, main, postgres_url
from saq import Queue, Worker

logging.disable(logging.WARNING)
_CONCURRENCY = 50


class Saq(Peer):
    async def install(self) -> None:
        await self.open()
        await self.close()

    async def open(self) -> None:
        self.queue = Queue.from_url(postgres_url(self.url))
        await self.queue.connect()

    async def close(self) -> None:
        await self.queue.disconnect()

    async def bulk(self, payloads: list[dict[str, Any]]) -> None:
        # There is no statement for many; its own advice is to send them at the same time.
        for start in range(0, len(payloads), 20):
            await asyncio.gather(*(self.one(payload) for payload in payloads[start : start + 20]))

    async def one(self, payload: dict[str, Any]) -> None:
        await self.queue.enqueue("job", payload=payload)

    async def work(self, arrivals: Arrivals, stop: asyncio.Event) -> None:
        async def job(_context: dict[str, Any], *, payload: dict[str, Any]) -> None:
            arrivals.add(payload)

        queue = Queue.from_url(postgres_url(self.url))
        await queue.connect()
        worker = Worker(queue, functions=[job], concurrency=_CONCURRENCY)
        running = asyncio.create_task(worker.start())
        await stop.wait()
        await worker.stop()
        await running
        await queue.disconnect()


if __name__ == "__main__":
    main(Saq)
