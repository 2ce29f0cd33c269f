"""One HTTP client at work: ``python bench/_http_client.py CLIENT`` with the order as JSON on standard input.

A process of its own, so that each client has the same cold start and the same core, and so that the peers can
live in an environment of their own (``make bench-deps``). It sends the same signed-looking POST over and over
with so many in flight, and prints the seconds, the processor seconds and the answers that it got.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from _sink import SENDER_CORE, pin

BODY = (b'{"type":"billing.invoice.created","timestamp":"2025-01-01T00:00:00Z","data":' + b"x" * 300)[:400]
HEADERS = {
    "content-type": "application/json",
    "user-agent": "bench",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
Send = Callable[[str], Awaitable[int]]


async def ours(run: Callable[[Send], Awaitable[None]]) -> None:
    from svc_infra.testing.webhooks import loopback_sender
    from svc_infra.webhooks.delivery import Answer, OutgoingRequest

    sender = loopback_sender()

    async def send(url: str) -> int:
        result = await sender.send(OutgoingRequest(url, HEADERS, BODY))
        return result.status if isinstance(result, Answer) else 0

    await run(send)
    await sender.aclose()


async def ours_httpx(run: Callable[[Send], Awaitable[None]]) -> None:
    import httpx

    from svc_infra.testing.webhooks import LOOPBACK_ADDRESSES
    from svc_infra.webhooks.dialer import Dialer
    from svc_infra.webhooks.pool import ConnectionPool
    from svc_infra.webhooks.transport import PooledTransport

    transport = PooledTransport(ConnectionPool(Dialer(LOOPBACK_ADDRESSES)))
    async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=15) as client:
        await run(_httpx_send(client))


async def stock_httpx(run: Callable[[Send], Awaitable[None]]) -> None:
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60)
    async with httpx.AsyncClient(trust_env=False, timeout=15, limits=limits) as client:
        await run(_httpx_send(client))


async def httpx2(run: Callable[[Send], Awaitable[None]]) -> None:
    import httpx2

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60)
    async with httpx2.AsyncClient(trust_env=False, timeout=15, limits=limits) as client:
        await run(_httpx_send(client))


async def aiohttp(run: Callable[[Send], Awaitable[None]]) -> None:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=15)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def send(url: str) -> int:
            async with session.post(url, data=BODY, headers=HEADERS, allow_redirects=False) as response:
                await response.read()
                return response.status

        await run(send)


def _httpx_send(client: Any) -> Send:
    async def send(url: str) -> int:
        return (await client.post(url, content=BODY, headers=HEADERS)).status_code

    return send


CLIENTS = {
    "ours": ours,
    "ours_under_httpx": ours_httpx,
    "httpx": stock_httpx,
    "httpx2": httpx2,
    "aiohttp": aiohttp,
}


async def _main(client: str, order: dict[str, Any]) -> None:
    urls, in_flight, requests = order["urls"], order["in_flight"], order["requests"]
    answered = 0
    started = cpu_started = 0.0

    async def run(send: Send) -> None:
        nonlocal answered, started, cpu_started
        await asyncio.gather(*(send(urls[n % len(urls)]) for n in range(in_flight)))  # opens connections
        print("ready", flush=True)
        sys.stdin.readline()
        numbers = iter(range(requests))
        started, cpu_started = time.perf_counter(), time.process_time()

        async def send_some() -> None:
            nonlocal answered
            for number in numbers:
                status = await send(urls[number % len(urls)])
                answered += status == 204  # apart: others count while this one waits

        await asyncio.gather(*(send_some() for _ in range(in_flight)))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        print(json.dumps({"answered": answered, "seconds": seconds, "cpu_seconds": cpu}), flush=True)

    await CLIENTS[client](run)


if __name__ == "__main__":
    pin(SENDER_CORE)
    asyncio.run(_main(sys.argv[1], json.loads(sys.stdin.readline())))
