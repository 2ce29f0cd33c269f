"""Keep-alive connections by origin, found and given back in constant time.

httpcore's pool walks all its connections at each start and end of a request, so that 200 requests in flight
cost 40 ms of processor time each. This one keeps a stack of idle connections per origin (the last one used is
the one least likely to have been closed by the peer) and counts nothing else: how many requests are in flight
is up to the caller.
"""

from __future__ import annotations

import ssl
import time
from collections import OrderedDict, deque

import h11
import httpcore
import httpx

from svc_infra.webhooks.dialer import Dialer, SocketStream
from svc_infra.webhooks.http1 import Http1Connection

_DEFAULT_PORTS = {b"http": 80, b"https": 443}

OriginKey = tuple[bytes, bytes, int]
"""Scheme, host and port: two names on one address share no connection."""


class _Connection:
    __slots__ = ("born_at", "http", "idle_since", "key", "stream")

    def __init__(self, key: OriginKey, stream: SocketStream, born_at: float) -> None:
        self.key = key
        self.stream = stream
        self.http = Http1Connection(stream)
        self.born_at = born_at
        self.idle_since = born_at


class Exchange:
    """An answer whose body has not been read yet, and the connection that it holds until ``close``."""

    __slots__ = ("_connection", "_pool", "head")

    def __init__(self, pool: ConnectionPool, connection: _Connection, head: h11.Response) -> None:
        self._pool = pool
        self._connection: _Connection | None = connection
        self.head = head

    async def read(self) -> bytes:
        """Return the next piece of the body, or ``b""`` at its end.

        Raises:
            Exceptions of httpcore: the answer breaks off or breaks the protocol.
        """
        if self._connection is None:
            return b""
        return await self._connection.http.read_body()

    def close(self) -> None:
        """Give the connection back if the answer was read to its end, else drop it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool._give_back(connection)


class ConnectionPool:
    """Sends requests over pooled HTTP/1.1 connections.

    A connection is not reused after ``max_age_seconds``, so that the addresses of a host are resolved and
    vetted anew now and then, nor after ``idle_seconds`` without use.
    """

    def __init__(
        self,
        dialer: Dialer | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        max_idle_per_origin: int = 256,
        max_idle: int = 1024,
        idle_seconds: float = 60.0,
        max_age_seconds: float = 300.0,
    ) -> None:
        self._dialer = Dialer() if dialer is None else dialer
        self._ssl_context = ssl_context
        self._max_idle_per_origin = max_idle_per_origin
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._max_age_seconds = max_age_seconds
        self._open: set[_Connection] = set()
        self._stacks: dict[OriginKey, deque[_Connection]] = {}
        # The same idle connections, oldest first over all origins.
        self._idle: OrderedDict[_Connection, None] = OrderedDict()
        self._closed = False

    @property
    def open_count(self) -> int:
        """How many sockets are open, idle or in use."""
        return len(self._open)

    @property
    def idle_count(self) -> int:
        """How many connections wait to be reused."""
        return len(self._idle)

    async def send(self, request: httpcore.Request, *, repeatable: bool = True) -> Exchange:
        """Send ``request`` and return as soon as the head of the answer is there.

        A peer may close an idle connection at the very moment at which it is reused. Then the request is sent
        once more at once, on a fresh connection, if no byte of an answer came and the body is ``repeatable``.

        Raises:
            AddressRefused: the host has an address that may not be dialled.
            Exceptions of httpcore: the request could not be sent or got no proper answer.
        """
        if self._closed:
            raise httpcore.ConnectError("the connection pool is closed")
        url = request.url
        port = _DEFAULT_PORTS.get(url.scheme, 0) if url.port is None else url.port
        key = (url.scheme, url.host, port)
        connection = self._take_idle(key)
        if connection is not None:
            seen = connection.stream.received_bytes
            try:
                return await self._exchange(connection, request)
            except (httpcore.NetworkError, httpcore.RemoteProtocolError):
                if not repeatable or connection.stream.received_bytes != seen:
                    raise
        return await self._exchange(await self._connect(key), request)

    async def aclose(self) -> None:
        """Close every connection, those in use too, and wait until the sockets are gone."""
        self._closed = True
        self._idle.clear()
        self._stacks.clear()
        connections = list(self._open)
        for connection in connections:
            connection.stream.abort()
        for connection in connections:
            await connection.stream.closed
        self._dialer.close()

    async def _exchange(self, connection: _Connection, request: httpcore.Request) -> Exchange:
        try:
            head = await connection.http.exchange(request)
        except BaseException:
            connection.stream.abort()
            raise
        return Exchange(self, connection, head)

    async def _connect(self, key: OriginKey) -> _Connection:
        scheme, host, port = key
        if scheme not in _DEFAULT_PORTS or not host:
            raise httpcore.UnsupportedProtocol("the URL must be http:// or https:// with a host")
        name = host.decode("ascii")
        stream = await self._dialer.connect_tcp(name, port)
        if scheme == b"https":
            await stream.start_tls(self._tls(), server_hostname=name)
        if self._closed:  # meanwhile
            stream.abort()
            raise httpcore.ConnectError("the connection pool is closed")
        connection = _Connection(key, stream, time.monotonic())
        self._open.add(connection)
        stream.closed.add_done_callback(lambda _: self._open.discard(connection))
        return connection

    def _tls(self) -> ssl.SSLContext:
        """Return the one TLS context; made when first needed, because it takes tens of milliseconds."""
        if self._ssl_context is None:
            self._ssl_context = httpx.create_ssl_context()
            self._ssl_context.set_alpn_protocols(["http/1.1"])
        return self._ssl_context

    def _take_idle(self, key: OriginKey) -> _Connection | None:
        now = time.monotonic()
        stack = self._stacks.get(key)
        while stack:
            connection = stack.pop()
            if not stack:
                del self._stacks[key]
            del self._idle[connection]
            if not connection.stream.is_readable and not self._is_stale(connection, now):
                return connection
            connection.stream.abort()
        return None

    def _give_back(self, connection: _Connection) -> None:
        now = time.monotonic()
        is_young = now - connection.born_at <= self._max_age_seconds
        if self._closed or not is_young or not connection.http.is_reusable():
            connection.stream.abort()
            return
        connection.idle_since = now
        stack = self._stacks.setdefault(connection.key, deque())
        stack.append(connection)
        self._idle[connection] = None
        if len(stack) > self._max_idle_per_origin:
            self._evict(stack[0])
        while self._idle:
            oldest = next(iter(self._idle))
            if len(self._idle) <= self._max_idle and not self._is_stale(oldest, now):
                break
            self._evict(oldest)

    def _is_stale(self, connection: _Connection, now: float) -> bool:
        return (
            now - connection.idle_since > self._idle_seconds
            or now - connection.born_at > self._max_age_seconds
        )

    def _evict(self, connection: _Connection) -> None:
        """Close an idle connection, which is the oldest of its origin."""
        stack = self._stacks[connection.key]
        stack.popleft()
        if not stack:
            del self._stacks[connection.key]
        del self._idle[connection]
        connection.stream.abort()
