"""Webhooks through an egress proxy: a stand-in proxy on this machine that connects to what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from svc_infra.testing.webhooks import LOOPBACK_URLS
from svc_infra.webhooks.delivery import Answer, OutgoingRequest, SendFailure
from svc_infra.webhooks.egress import ProxyDialer
from svc_infra.webhooks.pool import ConnectionPool
from svc_infra.webhooks.transport import HttpSender

OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Proxy:
    """Answers each CONNECT with ``answer`` and then plays the endpoint behind the tunnel itself."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.port = 0
        self.asked: list[str] = []
        self.posted: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head.decode().splitlines()[0])
            writer.write(self.answer)
            while self.answer == OPENED:
                self.posted.append((await reader.readuntil(b"\r\n\r\n")).decode())
                await reader.readexactly(2)
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            if not self.answer:
                await reader.read()
        writer.close()


@contextlib.asynccontextmanager
async def proxy_that_answers(answer: bytes) -> AsyncIterator[tuple[Proxy, HttpSender]]:
    proxy = Proxy(answer)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    dialer = ProxyDialer("127.0.0.1", proxy.port, connect_seconds=0.5)
    sender = HttpSender(pool=ConnectionPool(dialer), urls=LOOPBACK_URLS)
    try:
        yield proxy, sender
    finally:
        await sender.aclose()
        server.close()


async def send(sender: HttpSender, url: str) -> Answer | SendFailure:
    return await sender.send(OutgoingRequest(url, {"webhook-id": "msg_1"}, b"{}"))


async def test_requests_go_through_one_tunnel_and_keep_their_host() -> None:
    async with proxy_that_answers(OPENED) as (proxy, sender):
        for _ in range(3):
            answer = await send(sender, "http://hooks.customer.example:8080/hook")
            assert isinstance(answer, Answer), answer
            assert answer.status == 204
        assert proxy.asked == ["CONNECT hooks.customer.example:8080 HTTP/1.1"]
        assert proxy.posted[0].startswith("POST /hook HTTP/1.1\r\nhost: hooks.customer.example:8080\r\n")


async def test_an_address_is_written_as_the_proxy_expects_it() -> None:
    async with proxy_that_answers(OPENED) as (proxy, sender):
        await send(sender, "http://[2606:4700::1111]/")
        assert proxy.asked == ["CONNECT [2606:4700::1111]:80 HTTP/1.1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "[64:ff9b::a9fe:a9fe]"])
async def test_an_internal_address_does_not_even_reach_the_proxy(host: str) -> None:
    async with proxy_that_answers(OPENED) as (proxy, sender):
        failure = await send(sender, f"http://{host}/")
        assert isinstance(failure, SendFailure)
        assert (failure.reason, proxy.asked) == ("refused_address", [])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", "refused_address"),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "refused_address"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "connect_error"),
        (b"HTTP/1.1 302 Found\r\n\r\n", "connect_error"),
        (b"SSH-2.0-x\r\n\r\n", "connect_error"),
        (b"HTTP/1.1 200 OK\r\n", "connect_error"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "connect_error"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000, "connect_error"),
        (b"", "timeout"),
    ],
)
async def test_a_proxy_that_opens_no_tunnel_is_judged_by_its_answer(answer: bytes, reason: str) -> None:
    async with proxy_that_answers(answer) as (proxy, sender):
        failure = await send(sender, "http://hooks.customer.example/")
        assert isinstance(failure, SendFailure)
        assert failure.reason == reason
        assert proxy.posted == []


async def test_a_proxy_that_is_away_is_a_connect_error() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound and not listening: it refuses
        dialer = ProxyDialer("127.0.0.1", bound.getsockname()[1])
        sender = HttpSender(pool=ConnectionPool(dialer), urls=LOOPBACK_URLS)
        failure = await send(sender, "http://hooks.customer.example/")
        assert isinstance(failure, SendFailure)
        assert failure.reason == "connect_error"
        await sender.aclose()
