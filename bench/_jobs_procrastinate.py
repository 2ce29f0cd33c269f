"""procrastinate for ``bench/jobs.py``."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from _jobs_peer import Arrivals, Peer, main, postgres_url
from procrastinate import App, PsycopgConnector

logging.disable(logging.WARNING)
_CONCURRENCY = 20


class Procrastinate(Peer):
    def _app(self) -> App:
        connector = PsycopgConnector(conninfo=postgres_url(self.url), min_size=4, max_size=_CONCURRENCY + 4)
        return App(connector=connector)

    async def install(self) -> None:
        app = self._app()
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    async def open(self) -> None:
        self.app = self._app()
        await self.app.open_async()
        self.deferrer = self.app.configure_task("job", allow_unknown=True)

    async def close(self) -> None:
        await self.app.close_async()

    async def bulk(self, payloads: list[dict[str, Any]]) -> None:
        await self.deferrer.batch_defer_async(*({"payload": payload} for payload in payloads))

    async def one(self, payload: dict[str, Any]) -> None:
        await self.deferrer.defer_async(payload=payload)

    async def work(self, arrivals: Arrivals, stop: asyncio.Event) -> None:
        app = self._app()

        @app.task(name="job")
        async def handle(payload: dict[str, Any]) -> None:
            arrivals.add(payload)

        async with app.open_async():
            running = asyncio.create_task(
                app.run_worker_async(concurrency=_CONCURRENCY, install_signal_handlers=False)
            )
            await stop.wait()
            running.cancel()
            await asyncio.wait({running})


if __name__ == "__main__":
    main(Procrastinate)
