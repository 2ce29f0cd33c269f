"""Load on an HTTP API from a process of its own: ``python bench/_api_load.py``, the order as JSON on stdin.

The order is ``{"port", "connections", "requests": [{"path", "headers", "body"}], "expected"}``. A connection
takes the next request when its last answer has come. Printed is
``{"seconds", "milliseconds": [one for each request]}``; an answer of another status ends it with that answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any


def encoded(request: dict[str, Any]) -> bytes:
    """One request as it goes over the wire."""
    body = request.get("body", "").encode()
    headers = {
        "Host": "127.0.0.1",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **request["headers"],
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{request.get('method', 'POST')} {request['path']} HTTP/1.1\r\n{head}\r\n".encode() + body


async def run(order: dict[str, Any]) -> dict[str, Any]:
    """Send the requests and wait for all answers."""
    requests = iter([encoded(request) for request in order["requests"]])
    milliseconds: list[float] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", order["port"])
        for request in requests:
            started = time.perf_counter()
            writer.write(request)
            status, body = await _answer(reader)
            milliseconds.append((time.perf_counter() - started) * 1000)
            if status != order["expected"]:
                raise SystemExit(f"answered {status}: {body[:500]!r}")
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(order["connections"])))
    return {"seconds": time.perf_counter() - started, "milliseconds": milliseconds}


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, found, rest = head.partition(b"content-length:")
    body = await reader.readexactly(int(rest.partition(b"\r\n")[0])) if found else b""
    return int(head.split(b" ", 2)[1]), body


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))
