"""A receiver that does as little as possible, in a process of its own on a core of its own.

It reads requests, answers 204, counts, and notes when each arrived by the monotonic clock, which all
processes of a machine share. ``/hang`` is never answered, ``/silent`` is not counted. It listens on every
address of 127.0.0.0/8, so that one of them can stand for hundreds of hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, cast

SENDER_CORE, SINK_CORE = 0, 1
"""The client is pinned to the first, the sink to the second; the database server goes where there is room."""

_ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
_MARK = b"webhook-id: "


def pin(core: int) -> None:
    """Keep this process on one core, where the machine has several."""
    if hasattr(os, "sched_setaffinity") and core in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {core})


class Sink:
    """The parent's side of the receiver. Use it as a context manager."""

    def __enter__(self) -> Sink:
        self._child = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = self._ask("port")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(BrokenPipeError), self._child:
            assert self._child.stdin is not None
            self._child.stdin.close()

    def url(self, path: str = "/", host: int = 0) -> str:
        """Return a URL of it; ``host`` numbers the loopback addresses that all lead to it."""
        return f"http://127.0.{host // 250}.{host % 250 + 1}:{self.port}{path}"

    def receipts(self) -> int:
        """Return how many requests have been received and answered."""
        return int(self._ask("receipts"))

    def arrivals(self) -> dict[str, list[float]]:
        """Return when each webhook-id arrived, by the monotonic clock, in seconds."""
        return cast(dict[str, list[float]], self._ask("arrivals"))

    def reset(self) -> None:
        """Forget all receipts."""
        self._ask("reset")

    def _ask(self, question: str) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(question + "\n")
        self._child.stdin.flush()
        return json.loads(self._child.stdout.readline())


class _Ledger:
    def __init__(self) -> None:
        self.receipts = 0
        self.arrivals: dict[str, list[float]] = {}

    def answer(self, question: str, port: int) -> object:
        if question == "reset":
            self.__init__()  # type: ignore[misc]
        return {"port": port, "receipts": self.receipts, "arrivals": self.arrivals, "reset": None}[question]


class _Requests(asyncio.Protocol):
    def __init__(self, ledger: _Ledger) -> None:
        self._ledger = ledger
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        assert self._transport is not None
        while (head_end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:head_end].lower()
            length_at = head.find(b"content-length: ") + 16
            end_at = head.find(b"\r\n", length_at)
            end = head_end + 4 + int(head[length_at : end_at if end_at > 0 else head_end])
            if len(data) < end:
                break
            data = data[end:]
            if head.startswith(b"post /hang"):
                continue
            if head.startswith(b"post /silent"):
                self._transport.write(_ANSWER)
                continue
            self._ledger.receipts += 1
            if (mark := head.find(_MARK)) > 0:
                webhook_id = head[mark + len(_MARK) : head.find(b"\r\n", mark)].decode()
                self._ledger.arrivals.setdefault(webhook_id, []).append(time.monotonic())
            self._transport.write(_ANSWER)
        self._buffer = data


async def _serve() -> None:
    loop, ledger = asyncio.get_running_loop(), _Ledger()
    questions = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    server = await loop.create_server(lambda: _Requests(ledger), "0.0.0.0", 0, backlog=2048)
    port = server.sockets[0].getsockname()[1]
    while line := await questions.readline():
        print(json.dumps(ledger.answer(line.decode().strip(), port)), flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of them are."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


if __name__ == "__main__":
    pin(SINK_CORE)
    asyncio.run(_serve())
