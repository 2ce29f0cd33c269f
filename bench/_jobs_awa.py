"""awa for ``bench/jobs.py``: 200 workers, direct COPY for many."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import awa
from _jobs_peer import Arrivals, Peer, main, postgres_url

_WORKERS = 200


@dataclass
class BenchJob:
    n: int = -1
    at: int = -1


class Awa(Peer):
    async def install(self) -> None:
        await self.open()
        await self.client.migrate()
        # The storage that COPY needs, and the quicker one.
        await self.client.install_queue_storage()
        await self.close()

    async def open(self) -> None:
        self.client = awa.AsyncClient(postgres_url(self.url), 20)

    async def close(self) -> None:
        await self.client.close()

    async def bulk(self, payloads: list[dict[str, Any]]) -> None:
        await self.client.enqueue_many_copy([BenchJob(**payload) for payload in payloads])

    async def one(self, payload: dict[str, Any]) -> None:
        await self.client.insert(BenchJob(**payload))

    async def work(self, arrivals: Arrivals, stop: asyncio.Event) -> None:
        client = awa.AsyncClient(postgres_url(self.url), 20)

        @client.task(BenchJob, queue="default")
        async def handle(job: Any) -> None:
            arrivals.add({"at": job.args.at} if job.args.at > 0 else {})

        await client.start([("default", _WORKERS)])
        await stop.wait()
        await client.shutdown()
        await client.close()


if __name__ == "__main__":
    main(Awa)
