"""arq on Redis for ``bench/jobs.py``: results are not kept, which is its quickest setting."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from _jobs_peer import Arrivals, Peer, main
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

logging.disable(logging.WARNING)
_AT_ONCE = 100


class Arq(Peer):
    async def open(self) -> None:
        self.pool = await create_pool(RedisSettings.from_dsn(self.url))

    async def close(self) -> None:
        await self.pool.aclose()

    async def bulk(self, payloads: list[dict[str, Any]]) -> None:
        for start in range(0, len(payloads), _AT_ONCE):
            await asyncio.gather(*(self.one(payload) for payload in payloads[start : start + _AT_ONCE]))

    async def one(self, payload: dict[str, Any]) -> None:
        await self.pool.enqueue_job("job", payload)

    async def work(self, arrivals: Arrivals, stop: asyncio.Event) -> None:
        async def job(_context: dict[str, Any], payload: dict[str, Any]) -> None:
            arrivals.add(payload)

        worker = Worker(
            [func(job, name="job", keep_result=0)],
            redis_settings=RedisSettings.from_dsn(self.url),
            max_jobs=_AT_ONCE,
            poll_delay=0.01,
            keep_result=0,
            handle_signals=False,
        )
        running = asyncio.create_task(worker.async_run())
        await stop.wait()
        running.cancel()
        await asyncio.wait({running})


if __name__ == "__main__":
    main(Arq)
