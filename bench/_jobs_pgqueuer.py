"""pgqueuer for ``bench/jobs.py``: a large batch, as its documentation advises for throughput."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import timedelta
from typing import Any

import asyncpg
from _jobs_peer import Arrivals, Peer, main, postgres_url
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

logging.disable(logging.WARNING)
_BATCH = 500


class Pgqueuer(Peer):
    async def install(self) -> None:
        await self.open()
        await self.queries.install()
        await self.connection.execute("CREATE TABLE ledger (job_id text PRIMARY KEY, amount int)")
        await self.close()

    async def open(self) -> None:
        self.connection = await asyncpg.connect(postgres_url(self.url))
        self.queries = Queries(AsyncpgDriver(self.connection))

    async def close(self) -> None:
        await self.connection.close()

    async def bulk(self, payloads: list[dict[str, Any]]) -> None:
        count = len(payloads)
        await self.queries.enqueue(
            ["job"] * count, [json.dumps(payload).encode() for payload in payloads], [0] * count
        )

    async def one(self, payload: dict[str, Any]) -> None:
        await self.queries.enqueue("job", json.dumps(payload).encode())

    async def work(self, arrivals: Arrivals, stop: asyncio.Event) -> None:
        connection = await asyncpg.connect(postgres_url(self.url))
        worker = PgQueuer(AsyncpgDriver(connection))

        @worker.entrypoint("job")
        async def handle(job: Job) -> None:
            arrivals.add(json.loads(job.payload or b"{}"))

        running = asyncio.create_task(worker.run(batch_size=_BATCH, dequeue_timeout=timedelta(seconds=30)))
        await stop.wait()
        worker.shutdown.set()
        running.cancel()


if __name__ == "__main__":
    main(Pgqueuer)
