"""Serving the HTTP API with uvicorn, under the signals of this package; imported only where the extra is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn
from fastapi import FastAPI

log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    """A server that leaves signals alone: its own handling would end the process by the signal."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info("api.listening", host=self.config.host, port=self.config.port)


async def serve_http(
    app: FastAPI, stop: asyncio.Event, *, host: str, port: int, grace_seconds: float
) -> None:
    """Serve until ``stop`` is set; then close the port and let requests that run end in ``grace_seconds``."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=max(1, int(grace_seconds)),
    )
    server = _Server(config)

    async def end() -> None:
        await stop.wait()
        server.should_exit = True

    ending = asyncio.create_task(end())
    try:
        await server.serve()
    finally:
        stop.set()
        await ending
    log.info("api.stopped")
