"""Webhooks through an egress proxy: a stand-in proxy on this machine that connects to what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from svc_infra.config import WebhookSettings
from svc_infra.exceptions import InvalidSettings
from svc_infra.runtime import guarded_sender
from svc_infra.testing.webhooks import LOOPBACK_URLS
from svc_infra.webhooks.delivery import Answer, EndpointTarget, OutgoingRequest, SendFailure, prepare
from svc_infra.webhooks.egress import EgressProxy, ProxyDialer
from svc_infra.webhooks.message import Message
from svc_infra.webhooks.pool import ConnectionPool
from svc_infra.webhooks.signature import new_secret
from svc_infra.webhooks.transport import HttpSender
from tests.contract.scripted_receiver import ScriptedReceiver

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
    dialer = ProxyDialer(EgressProxy("127.0.0.1", proxy.port), connect_seconds=0.5)
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


INTERNAL = ["127.0.0.1", "[::1]", "169.254.169.254", "[64:ff9b::a9fe:a9fe]", "localhost", "a.LOCALHOST"]


@pytest.mark.parametrize("host", INTERNAL)
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
        dialer = ProxyDialer(EgressProxy("127.0.0.1", bound.getsockname()[1]))
        sender = HttpSender(pool=ConnectionPool(dialer), urls=LOOPBACK_URLS)
        failure = await send(sender, "http://hooks.customer.example/")
        assert isinstance(failure, SendFailure)
        assert failure.reason == "connect_error"
        await sender.aclose()


class TunnellingProxy:
    """A small CONNECT proxy that really connects: to one port of this machine, whatever host is asked for."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.heads: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(OPENED)
        for source, sink in ((reader, target_writer), (target_reader, writer)):
            task = asyncio.create_task(self._copy(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await source.read(65_536):
                sink.write(piece)
                await sink.drain()
        sink.close()


async def test_the_setting_sends_every_webhook_through_the_proxy_and_past_no_guard() -> None:
    secret = new_secret()
    async with ScriptedReceiver(secret) as receiver:
        proxy = TunnellingProxy(urlsplit(receiver.url()).port or 0)
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = WebhookSettings(
            egress_proxy=SecretStr(f"http://ann:s3cret@127.0.0.1:{port}"),
            allow_http=True,
            allow_ports=(80, 443),
            timeout_seconds=5,
        )
        sender = guarded_sender(settings)
        message = Message("msg_1", "a.b", None, b"{}", datetime.now(UTC))
        for host in ("hooks.customer.example", *INTERNAL, "hooks.customer.example:22"):
            target = EndpointTarget(f"http://{host}/hook", (secret,))
            await sender.send(prepare(message, target, now=datetime.now(UTC), user_agent="test"))
        await sender.aclose()
        server.close()
        assert receiver.paths() == {"/hook": 1}
    (head,) = proxy.heads
    assert head.split(b"\r\n")[0] == b"CONNECT hooks.customer.example:80 HTTP/1.1"
    assert b"Proxy-Authorization: Basic YW5uOnMzY3JldA==" in head
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in repr(EgressProxy.parse(settings.egress_proxy.get_secret_value()))


@pytest.mark.parametrize(
    "text",
    [
        "proxy:3128",
        "https://proxy:3128",
        "http://proxy",
        "http://proxy:0",
        "http://s3cret@proxy:1",
        "socks5://p:1",
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidSettings, match="egress_proxy") as refused:
        EgressProxy.parse(text)
    assert "s3cret" not in str(refused.value)
