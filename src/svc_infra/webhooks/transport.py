"""Sending webhooks over HTTP: one request, one bounded answer, never an exception.

``HttpSender`` uses the connection pool directly: an ``httpx.AsyncClient`` adds cookies, redirects, proxies
from the environment and decompression, none of which a webhook may have, and doubles the processor time.
``PooledTransport`` offers the same pool to an ordinary httpx client.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import cast

import h11
import httpcore
import httpx

from svc_infra.exceptions import AddressRefused, InvalidEndpoint, InvalidSettings
from svc_infra.webhooks.addresses import AddressPolicy
from svc_infra.webhooks.delivery import Answer, OutgoingRequest, SendFailure
from svc_infra.webhooks.dialer import Dialer
from svc_infra.webhooks.guard import UrlPolicy
from svc_infra.webhooks.pool import ConnectionPool, Exchange

MAX_BODY_BYTES = 16 * 1024
"""So much of an answer is read, undecompressed, before the connection is dropped."""

MAX_EXCERPT_BYTES = 1024
"""So much of an answer is kept."""

_MAX_PIECES = 512
_MAX_TEXT = 200
_HTTPCORE_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
)
_HEADERS_OF_THE_CONNECTION = frozenset(
    "connection content-length expect host keep-alive proxy-authorization proxy-connection te trailer"
    " transfer-encoding upgrade".split()
)


class HttpSender:
    """Posts webhook requests and tells what became of them.

    Everything from the look-up of the host to the last byte of the answer takes place within
    ``deadline_seconds``: a time-out per read would let a server that drips bytes hold a delivery for ever.
    Redirects are answers like any other. Close it with ``aclose``.

    It sends to https URLs on public addresses only; ``policy`` and ``urls`` say otherwise where that is
    meant, as on loopback in tests (``svc_infra.testing.webhooks.loopback_sender``). A ``pool`` comes with the
    policy of its dialer.

    Raises:
        InvalidSettings: both a pool and an address policy are given, of which one would be ignored.
    """

    def __init__(
        self,
        *,
        policy: AddressPolicy | None = None,
        urls: UrlPolicy | None = None,
        deadline_seconds: float = 15.0,
        pool: ConnectionPool | None = None,
    ) -> None:
        if pool is not None and policy is not None:
            raise InvalidSettings("give the address policy to the dialer of the pool, or leave the pool out")
        self._pool = ConnectionPool(Dialer(policy)) if pool is None else pool
        self._urls = UrlPolicy() if urls is None else urls
        self._deadline_seconds = deadline_seconds

    async def send(self, request: OutgoingRequest) -> Answer | SendFailure:
        """Post ``request`` and return the answer, or why there is none; raises nothing but cancellation."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                exchange = await self._pool.send(_encode(request, self._urls))
                try:
                    excerpt = await _read_excerpt(exchange)
                finally:
                    exchange.close()
        except Exception as error:  # the delivery send boundary: whatever a peer does, the loop goes on
            reason, detail = _classify(error)
            return SendFailure(reason, detail[:_MAX_TEXT], _milliseconds_since(started))
        head = exchange.head
        return Answer(head.status_code, _retry_after(head), excerpt, _milliseconds_since(started))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


@lru_cache(maxsize=4096)
def _target(url: str, urls: UrlPolicy) -> tuple[httpcore.URL, bytes]:
    """Parse ``url`` into httpcore's URL and the Host header; cached, since endpoints are few and sends many.

    Checked again here, because the policy may be stricter today than when the endpoint was made.

    Raises:
        InvalidEndpoint: it is one that no webhook is sent to.
        httpx.InvalidURL: httpx cannot read what the policy let pass.
    """
    parsed = httpx.URL(urls.check(url))
    target = httpcore.URL(
        scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path
    )
    return target, parsed.netloc


def _encode(request: OutgoingRequest, urls: UrlPolicy) -> httpcore.Request:
    """Build the request as it goes on the wire.

    A header that frames the message is ours to set: a second one from elsewhere would let an endpoint's
    settings smuggle requests past a proxy.

    Raises:
        InvalidEndpoint: the URL or a header may not be sent.
        UnicodeEncodeError: a header is not ASCII.
    """
    url, host = _target(request.url, urls)
    headers = [(b"host", host)]
    for name, value in request.headers.items():
        if name.lower() in _HEADERS_OF_THE_CONNECTION:
            raise InvalidEndpoint(f"the header {name!r} is set by the sender; remove it from the endpoint")
        headers.append((name.encode("ascii"), value.encode("ascii")))
    headers.append((b"content-length", b"%d" % len(request.body)))
    return httpcore.Request(b"POST", url, headers=headers, content=request.body)


async def _read_excerpt(exchange: Exchange) -> bytes:
    """Read the body up to the limit and return its beginning, as it came over the wire."""
    excerpt = bytearray()
    size = pieces = 0
    # Pieces are counted too: chunks of one byte cost thousands of parser steps without a pause.
    while size < MAX_BODY_BYTES and pieces < _MAX_PIECES and (piece := await exchange.read()):
        size += len(piece)
        pieces += 1
        excerpt += piece[: MAX_EXCERPT_BYTES - len(excerpt)]
    return bytes(excerpt)


def _retry_after(head: h11.Response) -> str | None:
    for name, value in head.headers:  # in lower case
        if name == b"retry-after":
            return value[:_MAX_TEXT].decode("latin-1")
    return None


def _milliseconds_since(started: float) -> int:
    return round((time.perf_counter() - started) * 1000)


def _classify(error: Exception) -> tuple[str, str]:
    """Name the kind of a failure and describe it without addresses, secrets or query strings."""
    if isinstance(error, TimeoutError | httpcore.TimeoutException):
        return "timeout", str(error) or "no complete answer within the deadline"
    if isinstance(error, AddressRefused):
        return "refused_address", str(error)
    if isinstance(error, InvalidEndpoint):
        return "invalid_request", str(error)
    if isinstance(error, httpcore.LocalProtocolError | httpcore.UnsupportedProtocol | httpx.InvalidURL):
        return "invalid_request", f"the request cannot be sent: {error}"
    if isinstance(error, UnicodeError):
        return "invalid_request", "the request cannot be sent: a header or the host is not ASCII"
    if isinstance(error.__cause__, ssl.SSLError):
        return "tls_error", str(error)
    if isinstance(error, httpcore.ConnectError):
        return "connect_error", str(error)
    if isinstance(error, httpcore.NetworkError | httpcore.ProtocolError):
        return "protocol_error", f"no complete answer: {error}"
    return "protocol_error", f"no complete answer: {type(error).__name__}"


class PooledTransport(httpx.AsyncBaseTransport):
    """The webhook connection pool for an ordinary ``httpx.AsyncClient``; flat in concurrency.

    The client's time-outs apply to each read and write, as httpx defines them. Give the client
    ``trust_env=False``: a proxy from the environment would go round the transport, and with it the guard.
    """

    def __init__(self, pool: ConnectionPool | None = None) -> None:
        self._pool = ConnectionPool() if pool is None else pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``; a request whose body is an iterator is never repeated on a fresh connection."""
        url = request.url
        outgoing = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=cast(AsyncIterator[bytes], request.stream),
            extensions=request.extensions,
        )
        try:
            exchange = await self._pool.send(
                outgoing, repeatable=isinstance(request.stream, httpx.ByteStream)
            )
        except (AddressRefused, *_HTTPCORE_ERRORS) as error:
            raise _as_httpx(error) from error
        head = exchange.head
        return httpx.Response(
            head.status_code,
            headers=head.headers.raw_items(),
            stream=_ResponseBody(exchange),
            extensions={"http_version": b"HTTP/" + head.http_version, "reason_phrase": head.reason},
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class _ResponseBody(httpx.AsyncByteStream):
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while piece := await self._exchange.read():
                yield piece
        except _HTTPCORE_ERRORS as error:
            raise _as_httpx(error) from error

    async def aclose(self) -> None:
        self._exchange.close()


def _as_httpx(error: Exception) -> httpx.TransportError:
    """Translate an exception of httpcore into that of the same name in httpx."""
    if isinstance(error, AddressRefused):
        return httpx.ConnectError(str(error))
    translated: type[httpx.TransportError] = getattr(httpx, type(error).__name__)
    return translated(str(error))
