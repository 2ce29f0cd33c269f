"""What a sender does against servers that behave, misbehave and attack; everything on 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from svc_infra.testing.webhooks import LOOPBACK_ADDRESSES, LOOPBACK_URLS
from svc_infra.webhooks.addresses import AllowEveryAddress, IPAddress, Resolver
from svc_infra.webhooks.delivery import Answer, OutgoingRequest, SendFailure
from svc_infra.webhooks.dialer import Dialer, OpenStream, SocketStream, open_stream
from svc_infra.webhooks.pool import ConnectionPool
from svc_infra.webhooks.transport import HttpSender, PooledTransport

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
LOOPBACK = ip_address("127.0.0.1")


class Peer:
    """A server that does what a script tells it to on each connection."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.port = 0
        self.connections = 0
        self.requests: list[tuple[str, bytes]] = []
        self.request_arrived = asyncio.Event()
        self.connection_ended = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?a=1"

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request, note it, return its body."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = next(line for line in head.split("\r\n") if line.lower().startswith("content-length:"))
        body = await reader.readexactly(int(length.partition(":")[2]))
        self.requests.append((head, body))
        self.request_arrived.set()
        return body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.script(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self.connection_ended.set()


Script = Callable[[Peer, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def peer_that(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    peer = Peer(script)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(peer.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls, backlog=512)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def always_answering(answer: bytes) -> Script:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await peer.read_request(reader)
            writer.write(answer)

    return script


async def hangs(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await peer.read_request(reader)
    await reader.read()


def loopback_pool(**limits: Any) -> ConnectionPool:
    return ConnectionPool(Dialer(LOOPBACK_ADDRESSES), **limits)


@contextlib.asynccontextmanager
async def sending(
    pool: ConnectionPool | None = None, deadline_seconds: float = 5.0
) -> AsyncIterator[tuple[HttpSender, ConnectionPool]]:
    pool = pool or loopback_pool()
    sender = HttpSender(pool=pool, urls=LOOPBACK_URLS, deadline_seconds=deadline_seconds)
    try:
        yield sender, pool
    finally:
        await sender.aclose()


def request_to(url: str, body: bytes = b'{"a":1}', **headers: str) -> OutgoingRequest:
    return OutgoingRequest(url, {"webhook-id": "msg_1", **headers}, body)


async def status_of(sender: HttpSender, url: str) -> int:
    answer = await sender.send(request_to(url))
    assert isinstance(answer, Answer), answer
    return answer.status


async def failure_of(sender: HttpSender, request: OutgoingRequest) -> SendFailure:
    failure = await sender.send(request)
    assert isinstance(failure, SendFailure), failure
    return failure


# --- the request and the answer ---------------------------------------------------------------------------


async def test_the_body_and_headers_arrive_as_given_with_host_and_length() -> None:
    async with peer_that(always_answering(NO_CONTENT)) as peer, sending() as (sender, _):
        answer = await sender.send(request_to(peer.url, b"\x00 bytes \xff"))
        assert isinstance(answer, Answer)
        assert answer.status == 204
        assert answer.retry_after is None
        assert answer.excerpt == b""
        assert 0 <= answer.duration_ms < 5000
        head, body = peer.requests[0]
        lines = head.split("\r\n")
        assert lines[0] == "POST /hook?a=1 HTTP/1.1"
        assert f"host: 127.0.0.1:{peer.port}" in lines
        assert "webhook-id: msg_1" in lines
        assert "content-length: 9" in lines
        assert body == b"\x00 bytes \xff"


async def test_status_retry_after_and_the_beginning_of_the_body_are_kept() -> None:
    answer = b"HTTP/1.1 429 Slow\r\nRetry-After: 120\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3000
    async with peer_that(always_answering(answer)) as peer, sending() as (sender, _):
        got = await sender.send(request_to(peer.url))
        assert isinstance(got, Answer)
        assert (got.status, got.retry_after, got.excerpt) == (429, "120", b"x" * 1024)


async def test_a_redirect_is_an_answer_and_not_followed() -> None:
    async with peer_that(always_answering(NO_CONTENT)) as other:
        location = f"HTTP/1.1 307 Moved\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n".encode()
        async with peer_that(always_answering(location)) as peer, sending() as (sender, _):
            assert await status_of(sender, peer.url) == 307
            assert other.connections == 0


async def test_a_compressed_answer_is_not_unpacked() -> None:
    packed = gzip.compress(b"\0" * 10_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    async with peer_that(always_answering(head + packed)) as peer, sending() as (sender, _):
        answer = await sender.send(request_to(peer.url))
        assert isinstance(answer, Answer)
        assert answer.excerpt == packed[:1024]


async def test_cookies_are_not_returned() -> None:
    answer = b"HTTP/1.1 204 No Content\r\nSet-Cookie: a=b\r\n\r\n"
    async with peer_that(always_answering(answer)) as peer, sending() as (sender, _):
        assert [await status_of(sender, peer.url) for _ in range(2)] == [204, 204]
        assert all("cookie" not in head.lower() for head, _ in peer.requests)


async def test_a_proxy_from_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with peer_that(hangs) as proxy, peer_that(always_answering(NO_CONTENT)) as peer:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
        async with sending() as (sender, _):
            assert await status_of(sender, peer.url) == 204
        assert proxy.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/",
        "gopher://127.0.0.1/",
        "http:///hook",
        "/hook",
        "",
        "http://user:password@127.0.0.1/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:99999/",
        "http://[::1/",
        "http://１２７。0。0.1\x00/",
    ],
)
async def test_a_url_that_cannot_be_sent_to_is_an_invalid_request(url: str) -> None:
    async with sending() as (sender, pool):
        assert (await failure_of(sender, request_to(url))).reason == "invalid_request"
        assert pool.open_count == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"x-name": "é"},
        {"x-name": "a\r\nx-other: b"},
        {"bad name": "a"},
        {"Transfer-Encoding": "chunked"},
        {"Content-Length": "0"},
        {"HOST": "elsewhere"},
    ],
)
async def test_a_header_that_would_break_the_request_is_an_invalid_request(headers: dict[str, str]) -> None:
    async with peer_that(always_answering(NO_CONTENT)) as peer, sending() as (sender, _):
        failure = await failure_of(sender, OutgoingRequest(peer.url, headers, b""))
        assert failure.reason == "invalid_request"
        assert not peer.requests


# --- servers that do not answer properly ------------------------------------------------------------------


async def drips_a_body(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await peer.read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"x")
        await asyncio.sleep(0.02)


async def drips_a_header(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await peer.read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    while not writer.is_closing():
        writer.write(b"x")
        await asyncio.sleep(0.02)


async def sends_early_hints_for_ever(
    peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await peer.read_request(reader)
    while not writer.is_closing():
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\n")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("script", [drips_a_body, drips_a_header, sends_early_hints_for_ever, hangs])
async def test_the_deadline_is_for_the_whole_exchange(script: Script) -> None:
    async with peer_that(script) as peer, sending(deadline_seconds=0.2) as (sender, pool):
        failure = await failure_of(sender, request_to(peer.url))
        assert failure.reason == "timeout"
        assert 150 <= failure.duration_ms < 2000
        await peer.connection_ended.wait()
        assert pool.open_count == 0


async def test_an_endless_body_is_read_up_to_a_limit_and_the_connection_dropped() -> None:
    async def floods(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
            await writer.drain()

    async with peer_that(floods) as peer, sending() as (sender, pool):
        answer = await sender.send(request_to(peer.url))
        assert isinstance(answer, Answer)
        assert (answer.status, len(answer.excerpt)) == (200, 1024)
        await peer.connection_ended.wait()
        assert (pool.open_count, pool.idle_count) == (0, 0)


async def resets(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await peer.read_request(reader)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def closes(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await peer.read_request(reader)


@pytest.mark.parametrize(
    "script",
    [
        resets,
        closes,
        always_answering(b"220 mail.example ESMTP\r\n\r\n"),
        always_answering(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000),
        always_answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n"),
        always_answering(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"),
    ],
    ids=["reset", "close", "not http", "huge header", "bad chunk", "other protocol"],
)
async def test_an_answer_that_breaks_the_protocol_is_a_failure_and_not_repeated(script: Script) -> None:
    async with peer_that(script) as peer, sending() as (sender, pool):
        failure = await failure_of(sender, request_to(peer.url))
        assert failure.reason == "protocol_error"
        assert str(peer.port) not in failure.detail
        await peer.connection_ended.wait()
        assert (peer.connections, len(peer.requests), pool.idle_count) == (1, 1, 0)


async def test_a_refused_connection_is_a_connect_error_that_names_no_address() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound and not listening: it refuses
        async with sending() as (sender, pool):
            failure = await failure_of(sender, request_to(f"http://127.0.0.1:{bound.getsockname()[1]}/"))
            assert failure.reason == "connect_error"
            assert "127.0.0.1" not in failure.detail
            assert pool.open_count == 0


async def test_cancelling_a_send_closes_its_connection() -> None:
    async with peer_that(hangs) as peer, sending() as (sender, pool):
        task = asyncio.create_task(sender.send(request_to(peer.url)))
        await peer.request_arrived.wait()
        assert pool.open_count == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await peer.connection_ended.wait()
        assert (pool.open_count, pool.idle_count) == (0, 0)


async def test_cancelling_a_send_again_while_it_tidies_up_closes_its_connection_too() -> None:
    async with peer_that(hangs) as peer, sending() as (sender, pool):
        task = asyncio.create_task(sender.send(request_to(peer.url)))
        await peer.request_arrived.wait()
        task.cancel()
        # Runs right after the task took the first cancellation, while httpcore awaits its locks.
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(peer.connection_ended.wait(), 5)
        assert pool.open_count == 0


# --- connections ------------------------------------------------------------------------------------------


async def test_requests_one_after_the_other_share_a_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with peer_that(always_answering(answer)) as peer, sending() as (sender, pool):
        assert [await status_of(sender, peer.url) for _ in range(5)] == [200] * 5
        assert (peer.connections, pool.open_count, pool.idle_count) == (1, 1, 1)


async def test_each_origin_has_connections_of_its_own() -> None:
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer_that(always_answering(NO_CONTENT))) for _ in range(20)]
        sender, pool = await stack.enter_async_context(sending())
        for _ in range(3):
            answers = await asyncio.gather(*(status_of(sender, peer.url) for peer in peers))
            assert answers == [204] * 20
        assert [(peer.connections, len(peer.requests)) for peer in peers] == [(1, 3)] * 20
        assert pool.idle_count == 20


async def test_two_hundred_sends_are_in_flight_at_once() -> None:
    all_arrived = asyncio.Barrier(200)

    async def answers_when_all_are_there(
        peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            await peer.read_request(reader)
            await all_arrived.wait()
            writer.write(NO_CONTENT)

    async with peer_that(answers_when_all_are_there) as peer, sending() as (sender, pool):
        for _ in range(2):
            answers = await asyncio.gather(*(status_of(sender, peer.url) for _ in range(200)))
            assert answers == [204] * 200
        assert (peer.connections, pool.open_count, pool.idle_count) == (200, 200, 200)


async def test_what_follows_an_answer_is_not_taken_for_the_next_one() -> None:
    script = always_answering(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 410 Gone\r\n\r\n")
    async with peer_that(script) as peer, sending() as (sender, pool):
        for connections in (1, 2):
            answer = await sender.send(request_to(peer.url))
            assert isinstance(answer, Answer)
            assert (answer.status, peer.connections, pool.idle_count) == (204, connections, 0)


async def test_a_connection_that_dies_on_reuse_is_replaced_at_once() -> None:
    async def answers_once_per_connection(
        peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await peer.read_request(reader)
        writer.write(NO_CONTENT)
        await peer.read_request(reader)  # and close without an answer

    async with peer_that(answers_once_per_connection) as peer, sending() as (sender, _):
        assert await status_of(sender, peer.url) == 204
        assert await status_of(sender, peer.url) == 204
        assert (peer.connections, len(peer.requests)) == (2, 3)
        assert peer.requests[1] == peer.requests[2]


async def test_a_request_is_repeated_only_once() -> None:
    async def answers_only_the_first(
        peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await peer.read_request(reader)
        if len(peer.requests) == 1:
            writer.write(NO_CONTENT)
            await peer.read_request(reader)

    async with peer_that(answers_only_the_first) as peer, sending() as (sender, _):
        assert await status_of(sender, peer.url) == 204
        assert (await failure_of(sender, request_to(peer.url))).reason == "protocol_error"
        assert (peer.connections, len(peer.requests)) == (2, 3)


async def test_a_request_is_not_repeated_once_an_answer_has_begun() -> None:
    async def breaks_off_the_second(
        peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await peer.read_request(reader)
        writer.write(NO_CONTENT)
        await peer.read_request(reader)
        writer.write(b"HTTP/1.1 2")

    async with peer_that(breaks_off_the_second) as peer, sending() as (sender, _):
        assert await status_of(sender, peer.url) == 204
        assert (await failure_of(sender, request_to(peer.url))).reason == "protocol_error"
        assert (peer.connections, len(peer.requests)) == (1, 2)


@pytest.mark.parametrize("limits", [{"max_age_seconds": -1.0}, {"idle_seconds": -1.0}], ids=str)
async def test_an_old_connection_is_not_used_again(limits: dict[str, Any]) -> None:
    async with (
        peer_that(always_answering(NO_CONTENT)) as peer,
        sending(loopback_pool(**limits)) as (sender, _),
    ):
        assert [await status_of(sender, peer.url) for _ in range(3)] == [204] * 3
        assert peer.connections == 3


@pytest.mark.parametrize("limits", [{"max_idle_per_origin": 3}, {"max_idle": 3}], ids=str)
async def test_no_more_connections_are_kept_than_the_limit(limits: dict[str, Any]) -> None:
    async with (
        peer_that(always_answering(NO_CONTENT)) as peer,
        sending(loopback_pool(**limits)) as (sender, pool),
    ):
        answers = await asyncio.gather(*(status_of(sender, peer.url) for _ in range(10)))
        assert answers == [204] * 10
        assert pool.idle_count == 3


# --- addresses --------------------------------------------------------------------------------------------


class NameServer:
    """Answers each look-up with the next list of addresses, the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def look_up(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class OnlyPublic:
    def allow_address(self, address: IPAddress) -> bool:
        return str(address).startswith("203.0.113.")


class StubbedDialing:
    """Notes the address that would be dialled and connects to 127.0.0.1 instead."""

    def __init__(self, unreachable: str = "") -> None:
        self.unreachable = unreachable
        self.dialled: list[str] = []

    async def __call__(self, address: IPAddress, port: int) -> SocketStream:
        self.dialled.append(str(address))
        if str(address) == self.unreachable:
            raise ConnectionRefusedError(111, "refused")
        return await open_stream(LOOPBACK, port)


def guarded_pool(names: NameServer, dialing: OpenStream, **options: float) -> ConnectionPool:
    dialer = Dialer(OnlyPublic(), resolver=Resolver(look_up=names.look_up), open_stream=dialing)
    return ConnectionPool(dialer, max_age_seconds=options.get("max_age_seconds", 300.0))


async def test_the_address_that_was_vetted_is_the_one_dialled_and_the_host_header_keeps_the_name() -> None:
    names, dialing = NameServer(["203.0.113.7"]), StubbedDialing()
    async with peer_that(always_answering(NO_CONTENT)) as peer:
        async with sending(guarded_pool(names, dialing)) as (sender, _):
            url = f"http://hooks.customer.example:{peer.port}/"
            assert [await status_of(sender, url) for _ in range(3)] == [204] * 3
        assert names.asked == ["hooks.customer.example"]
        assert dialing.dialled == ["203.0.113.7"]
        assert f"host: hooks.customer.example:{peer.port}\r\n" in peer.requests[0][0]


@pytest.mark.parametrize("answers", [["10.0.0.5"], ["203.0.113.7", "10.0.0.5"], ["203.0.113.7", "::1"]])
async def test_one_forbidden_answer_refuses_the_host_without_dialling(answers: list[str]) -> None:
    dialing = StubbedDialing()
    async with sending(guarded_pool(NameServer(answers), dialing)) as (sender, _):
        failure = await failure_of(sender, request_to("http://hooks.customer.example/"))
        assert failure.reason == "refused_address"
        assert dialing.dialled == []
        assert not any(answer in failure.detail for answer in answers)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_a_literal_address_is_vetted_too_and_not_looked_up(host: str) -> None:
    names, dialing = NameServer(["203.0.113.7"]), StubbedDialing()
    async with sending(guarded_pool(names, dialing)) as (sender, _):
        assert (await failure_of(sender, request_to(f"http://{host}/"))).reason == "refused_address"
        assert (names.asked, dialing.dialled) == ([], [])


async def test_a_name_that_changes_its_answer_is_refused_when_it_is_connected_anew() -> None:
    names, dialing = NameServer(["203.0.113.7"], ["127.0.0.1"]), StubbedDialing()
    async with (
        peer_that(always_answering(NO_CONTENT)) as peer,
        sending(guarded_pool(names, dialing, max_age_seconds=-1.0)) as (sender, _),
    ):
        url = f"http://hooks.customer.example:{peer.port}/"
        assert await status_of(sender, url) == 204
        assert (await failure_of(sender, request_to(url))).reason == "refused_address"
        assert dialing.dialled == ["203.0.113.7"]


async def test_the_next_vetted_address_is_tried_when_one_cannot_be_reached() -> None:
    names = NameServer(["203.0.113.7", "203.0.113.7", "203.0.113.8"])
    dialing = StubbedDialing(unreachable="203.0.113.7")
    async with (
        peer_that(always_answering(NO_CONTENT)) as peer,
        sending(guarded_pool(names, dialing)) as (sender, _),
    ):
        assert await status_of(sender, f"http://hooks.customer.example:{peer.port}/") == 204
        assert dialing.dialled == ["203.0.113.7", "203.0.113.8"]


async def test_a_name_that_does_not_resolve_is_a_connect_error() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    async with sending(ConnectionPool(Dialer(AllowEveryAddress(), resolver=Resolver(look_up=unknown)))) as (
        sender,
        _,
    ):
        assert (await failure_of(sender, request_to("http://nowhere.example/"))).reason == "connect_error"


async def test_a_name_server_that_hangs_holds_up_one_thread_and_no_other_name() -> None:
    released = threading.Event()
    asked: list[str] = []

    def look_up(host: str, port: int) -> list[str]:
        asked.append(host)
        if host == "black.hole.example":
            released.wait()
        return ["127.0.0.1"]

    pool = ConnectionPool(Dialer(AllowEveryAddress(), resolver=Resolver(max_threads=2, look_up=look_up)))
    try:
        async with (
            peer_that(always_answering(NO_CONTENT)) as peer,
            sending(pool, deadline_seconds=0.2) as (sender, _),
        ):
            held_up = [
                asyncio.create_task(failure_of(sender, request_to("http://black.hole.example/")))
                for _ in range(20)
            ]
            assert await status_of(sender, f"http://hooks.customer.example:{peer.port}/") == 204
            assert {(await task).reason for task in held_up} == {"timeout"}
            assert sorted(asked) == ["black.hole.example", "hooks.customer.example"]
    finally:
        released.set()


async def test_names_known_to_be_slow_leave_the_threads_to_the_others() -> None:
    released = threading.Event()
    hangs = False

    def look_up(host: str, port: int) -> list[str]:
        if hangs and host.startswith("slow"):
            released.wait()
        return ["127.0.0.1"]

    # Every look-up counts as slow at first, and is remembered as such.
    resolver = Resolver(max_threads=1, look_up=look_up, slow_seconds=0.0)
    slow = [f"slow{number}.example" for number in range(3)]
    try:
        for host in slow:
            await resolver.resolve(host, 443)
        hangs = True
        held_up = [asyncio.create_task(resolver.resolve(host, 443)) for host in slow]
        await asyncio.sleep(0)
        assert [str(address) for address in await resolver.resolve("quick.example", 443)] == ["127.0.0.1"]
    finally:
        released.set()
    await asyncio.gather(*held_up)
    resolver.close()


# --- TLS --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for hooks.customer.example and a client's that trusts its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.customer.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    file: Path = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(
        pem
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cadata=pem.decode())


def tls_pool(context: ssl.SSLContext) -> ConnectionPool:
    names = NameServer(["203.0.113.7"])
    dialer = Dialer(
        AllowEveryAddress(), resolver=Resolver(look_up=names.look_up), open_stream=StubbedDialing()
    )
    return ConnectionPool(dialer, ssl_context=context)


async def test_the_certificate_is_checked_against_the_name_and_the_connection_is_kept(
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    server, client = tls
    async with (
        peer_that(always_answering(NO_CONTENT), server) as peer,
        sending(tls_pool(client)) as (sender, pool),
    ):
        url = f"https://hooks.customer.example:{peer.port}/"
        assert [await status_of(sender, url) for _ in range(3)] == [204] * 3
        assert (peer.connections, pool.open_count) == (1, 1)


async def test_a_certificate_for_another_name_is_a_tls_error(
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    server, client = tls
    async with (
        peer_that(always_answering(NO_CONTENT), server) as peer,
        sending(tls_pool(client)) as (sender, pool),
    ):
        failure = await failure_of(sender, request_to(f"https://other.example:{peer.port}/"))
        assert failure.reason == "tls_error"
        assert (peer.requests, pool.open_count) == ([], 0)


async def test_a_server_that_speaks_no_tls_is_a_tls_error(
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async def greets(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with peer_that(greets) as peer, sending(tls_pool(tls[1])) as (sender, pool):
        failure = await failure_of(sender, request_to(f"https://hooks.customer.example:{peer.port}/"))
        assert failure.reason == "tls_error"
        await peer.connection_ended.wait()
        assert pool.open_count == 0


async def test_a_tls_handshake_that_hangs_hits_the_deadline(
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async def says_nothing(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with (
        peer_that(says_nothing) as peer,
        sending(tls_pool(tls[1]), deadline_seconds=0.2) as (sender, pool),
    ):
        failure = await failure_of(sender, request_to(f"https://hooks.customer.example:{peer.port}/"))
        assert failure.reason == "timeout"
        await peer.connection_ended.wait()
        assert pool.open_count == 0


# --- the httpx transport ----------------------------------------------------------------------------------


async def test_an_httpx_client_works_over_the_pool() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
    async with peer_that(always_answering(answer)) as peer:
        async with httpx.AsyncClient(transport=PooledTransport(loopback_pool()), trust_env=False) as client:
            for _ in range(3):
                response = await client.post(peer.url, content=b"body")
                assert (response.status_code, response.text) == (200, "hello")
        assert (peer.connections, len(peer.requests)) == (1, 3)


@pytest.mark.parametrize(
    ("script", "expected"), [(hangs, httpx.ReadTimeout), (closes, httpx.RemoteProtocolError)]
)
async def test_an_httpx_client_gets_the_exceptions_of_httpx(
    script: Script, expected: type[httpx.TransportError]
) -> None:
    async with (
        peer_that(script) as peer,
        httpx.AsyncClient(transport=PooledTransport(loopback_pool()), timeout=0.2, trust_env=False) as client,
    ):
        with pytest.raises(expected):
            await client.post(peer.url, content=b"body")


async def test_an_httpx_request_whose_body_is_an_iterator_is_never_repeated() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"once"

    async def answers_once(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.read_request(reader)
        writer.write(NO_CONTENT)
        await peer.read_request(reader)

    async with (
        peer_that(answers_once) as peer,
        httpx.AsyncClient(transport=PooledTransport(loopback_pool()), trust_env=False) as client,
    ):
        headers = {"content-length": "4"}
        await client.post(peer.url, content=body(), headers=headers)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(peer.url, content=body(), headers=headers)
        assert (peer.connections, len(peer.requests)) == (1, 2)


async def test_nothing_is_sent_after_the_sender_is_closed() -> None:
    async with peer_that(always_answering(NO_CONTENT)) as peer:
        async with sending() as (sender, pool):
            assert await status_of(sender, peer.url) == 204
        assert (pool.open_count, pool.idle_count) == (0, 0)
        assert (await failure_of(sender, request_to(peer.url))).reason == "connect_error"
        assert len(peer.requests) == 1


async def test_an_httpx_client_is_told_of_a_refused_address() -> None:
    pool = guarded_pool(NameServer(["10.0.0.5"]), StubbedDialing())
    async with httpx.AsyncClient(transport=PooledTransport(pool), trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://hooks.customer.example/")
