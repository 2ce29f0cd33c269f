"""Opening connections: resolve once, vet every answer, dial the vetted address itself.

Whoever checks an address and then dials the *name* has checked nothing: the second look-up may answer
differently (DNS rebinding). ``Dialer`` is a network backend of httpcore, the layer below TLS and HTTP, so the
server name in TLS, the certificate check and the Host header stay those of the URL.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import httpcore

from svc_infra.webhooks.addresses import AddressPolicy, IPAddress, Resolver, vet
from svc_infra.webhooks.guard import PublicAddresses

_BUFFER_BYTES = 64 * 1024
_READ_BYTES_OF_A_HEAD = 4 * 1024

MAX_HEAD_BYTES = 16 * 1024
"""So much may come before an answer's head is complete, interim (1xx) answers included."""


class SocketStream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One TCP connection, with or without TLS, as httpcore wants to see it.

    A plain asyncio protocol, because httpcore's own anyio stream costs a cancel scope and two trips through
    the loop for each read and write. Only one task at a time may read, which HTTP/1.1 guarantees.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._to_send = bytearray()
        self._received = bytearray()
        self._reading_paused = False
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self.received_bytes = 0
        self._head_bytes_left: int | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()

    # --- called by the event loop -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not registered as such

    def data_received(self, data: bytes) -> None:
        """Keep what arrived, and stop reading while nobody takes it."""
        self._received += data
        self.received_bytes += len(data)
        if len(self._received) > _BUFFER_BYTES and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        """Note that nothing more will come; asyncio then closes the connection."""
        self._ended = True
        self._wake_reader()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end and its reason, and wake whoever waits."""
        self._ended = True
        self._error = exc
        self._wake_reader()
        self.resume_writing()
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Make writers wait: the socket takes no more for now."""
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let waiting writers go on."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # --- called by httpcore -------------------------------------------------------------------------------

    @property
    def is_readable(self) -> bool:
        """Whether something arrived or the peer has closed; on an idle connection both mean: do not reuse."""
        return self._ended or bool(self._received)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send ``buffer``, at the latest when the answer is read.

        httpcore writes the head and the body of a request one after the other and then reads. Holding the
        head back until then makes a webhook one system call and one packet instead of two.
        """
        self._to_send += buffer
        if len(self._to_send) > _BUFFER_BYTES:
            self._flush()
            drained = self._drained
            if drained is not None:
                try:
                    async with asyncio.timeout(timeout):
                        await drained
                except TimeoutError as error:
                    raise httpcore.WriteTimeout("the peer takes no more data") from error

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return up to ``max_bytes``, or ``b""`` at the end of the connection."""
        self._flush()
        if not self._received and not self._ended:
            await self._wait_for_data(timeout)
        if self._received:
            if self._head_bytes_left is not None:
                max_bytes = await self._share_of_the_head(max_bytes)
            data = bytes(self._received[:max_bytes])
            del self._received[:max_bytes]
            if self._reading_paused and self._transport is not None:
                self._reading_paused = False
                self._transport.resume_reading()
            return data
        if self._error is not None:
            raise httpcore.ReadError(_without_address(self._error)) from self._error
        return b""

    def expect_head(self) -> None:
        """Bound what is read from here until ``head_is_read``."""
        self._head_bytes_left = MAX_HEAD_BYTES

    def head_is_read(self) -> None:
        """Lift the bound: what follows is the body, and whoever reads it has limits of its own."""
        self._head_bytes_left = None

    async def _share_of_the_head(self, max_bytes: int) -> int:
        """Return how much of what has arrived may be parsed at once while the head is not complete.

        A peer can send interim answers without end. httpcore parses all that it is given without a pause, so
        it is given little, and the other tasks get their turn in between.
        """
        assert self._head_bytes_left is not None
        if self._head_bytes_left <= 0:
            raise httpcore.RemoteProtocolError(f"no answer within {MAX_HEAD_BYTES:,} bytes of headers")
        if self._head_bytes_left < MAX_HEAD_BYTES:
            await asyncio.sleep(0)
        share = min(max_bytes, _READ_BYTES_OF_A_HEAD)
        self._head_bytes_left -= min(share, len(self._received))
        return share

    async def _wait_for_data(self, timeout: float | None) -> None:
        self._reader = self._loop.create_future()
        try:
            if timeout is None:
                await self._reader
                return
            async with asyncio.timeout(timeout):
                await self._reader
        except TimeoutError as error:
            raise httpcore.ReadTimeout("no answer in time") from error
        finally:
            self._reader = None

    def _flush(self) -> None:
        if self._to_send and self._transport is not None and not self._ended:
            self._transport.write(bytes(self._to_send))
        self._to_send.clear()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Speak TLS from here on; the certificate must be that of ``server_hostname``.

        Raises:
            httpcore.ConnectError: the handshake failed; the cause tells whether TLS or the network did.
        """
        assert self._transport is not None
        try:
            async with asyncio.timeout(timeout):
                secured = await self._loop.start_tls(
                    self._transport, self, ssl_context, server_hostname=server_hostname
                )
        except TimeoutError as error:
            self.abort()
            raise httpcore.ConnectTimeout("no TLS handshake in time") from error
        except OSError as error:
            self.abort()
            raise httpcore.ConnectError(_without_address(error)) from error
        except BaseException:
            self.abort()
            raise
        if secured is None:
            self.abort()
            raise httpcore.ConnectError("the connection was closed during the TLS handshake")
        self._transport = secured
        return self

    async def aclose(self) -> None:
        """Close at once; see ``abort``."""
        self.abort()

    def abort(self) -> None:
        """Close at once, without awaiting anything, so that a cancelled task can do it too.

        A request whose answer was not read, or an idle connection, has nothing left to say.
        """
        if self._transport is not None:
            self._transport.abort()

    def get_extra_info(self, info: str) -> Any:
        """Answer the questions that httpcore asks about a stream."""
        if info == "is_readable":
            return self.is_readable
        names = {"server_addr": "peername", "client_addr": "sockname"}
        return self._transport.get_extra_info(names.get(info, info)) if self._transport else None


OpenStream = Callable[[IPAddress, int], Awaitable[SocketStream]]


async def open_stream(address: IPAddress, port: int) -> SocketStream:
    """Connect to an address; the literal goes to the socket, no look-up takes place.

    Raises:
        OSError: the connection was refused or the address cannot be reached.
    """
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(SocketStream, str(address), port)
    return stream


class Dialer(httpcore.AsyncNetworkBackend):
    """Resolves a host once, lets the policy vet every answer, and dials the vetted addresses in turn.

    Unless a policy is given, only public addresses are dialled.
    ``connect_seconds`` bounds each address, so that one that does not answer leaves time for the next.
    """

    def __init__(
        self,
        policy: AddressPolicy | None = None,
        *,
        resolver: Resolver | None = None,
        open_stream: OpenStream = open_stream,
        connect_seconds: float = 5.0,
    ) -> None:
        self._policy = PublicAddresses() if policy is None else policy
        self._resolver = Resolver() if resolver is None else resolver
        self._open_stream = open_stream
        self._connect_seconds = connect_seconds

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> SocketStream:
        """Connect to ``host``; the bind address and socket options of httpcore are not offered.

        Raises:
            AddressRefused: the policy refuses one of the addresses of the host; nothing was dialled.
            httpcore.ConnectError: no address could be found or reached.
            httpcore.ConnectTimeout: the last address did not answer in time.
        """
        if local_address is not None or socket_options is not None:
            raise NotImplementedError("this dialer has no bind address and no socket options; leave them out")
        addresses = await self._resolver.resolve(host, port)
        vet(addresses, self._policy)
        seconds = self._connect_seconds if timeout is None else min(timeout, self._connect_seconds)
        failure: OSError | None = None
        for address in addresses:
            try:
                async with asyncio.timeout(seconds):
                    return await self._open_stream(address, port)
            except OSError as error:  # TimeoutError is one
                failure = error
        if isinstance(failure, TimeoutError):
            raise httpcore.ConnectTimeout("no connection in time") from failure
        assert failure is not None
        raise httpcore.ConnectError(_without_address(failure)) from failure

    async def sleep(self, seconds: float) -> None:
        """Wait; httpcore asks its backend for it."""
        await asyncio.sleep(seconds)

    def close(self) -> None:
        """Take no more look-ups."""
        self._resolver.close()


def _without_address(error: Exception) -> str:
    """Describe a network error without the address that asyncio puts into its text."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or 'the peer closed the connection'}"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return type(error).__name__
