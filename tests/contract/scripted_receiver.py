"""A webhook subscriber on loopback that verifies with a foreign library and answers as it is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType

from standardwebhooks.webhooks import Webhook


@dataclass(frozen=True)
class Received:
    path: str
    webhook_id: str
    timestamp: str
    body: bytes


@dataclass
class ScriptedReceiver:
    """Answers 204, or per path what ``answers`` holds in turn; keeps ``hanging`` paths waiting."""

    secret: str
    answers: dict[str, list[int]] = field(default_factory=dict)
    hanging: dict[str, asyncio.Event] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    connection_count: int = 0

    def __post_init__(self) -> None:
        self._webhook = Webhook(self.secret)
        self._arrived = asyncio.Condition()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ScriptedReceiver:
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for release in self.hanging.values():
            release.set()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self._port}{path}"

    def paths(self) -> Counter[str]:
        return Counter(one.path for one in self.received)

    async def wait_for(self, path: str, count: int) -> None:
        async with self._arrived, asyncio.timeout(20):
            await self._arrived.wait_for(lambda: self.paths()[path] >= count)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.connection_count += 1
        try:
            while await self._answer(reader, writer):
                pass
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        request_line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        path = request_line.split(" ")[1]
        self._webhook.verify(body, headers)  # an unverified request ends the connection, and with it the test
        async with self._arrived:
            self.received.append(Received(path, headers["webhook-id"], headers["webhook-timestamp"], body))
            self._arrived.notify_all()
        if path in self.hanging:
            await self.hanging[path].wait()
        script = self.answers.get(path)
        status = script.pop(0) if script else 204
        writer.write(f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n".encode())
        return True
