"""HTTP/1.1 over one connection, an exchange at a time, with h11: the layer below httpcore's own connection.

That connection guards itself with a lock, traces every step and yields bodies through two generators, which
takes half of the processor time of a webhook. Here one task owns the connection from the first byte of the
request to the last one of the answer, as the pool sees to, so that none of it is needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import h11
import httpcore

from svc_infra.webhooks.dialer import SocketStream

_READ_BYTES = 64 * 1024
# The stream bounds what it hands out of a head; this is for chunk headers and trailers.
_MAX_INCOMPLETE_BYTES = 32 * 1024


class Http1Connection:
    """Sends requests over ``stream``, one after the other. Errors are those of httpcore."""

    __slots__ = ("_h11", "_read_seconds", "_stream")

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_INCOMPLETE_BYTES)
        self._read_seconds: float | None = None

    async def exchange(self, request: httpcore.Request) -> h11.Response:
        """Send ``request`` and return the head of its answer; interim answers are passed over.

        Raises:
            httpcore.LocalProtocolError: the request cannot be sent like this.
            httpcore.NetworkError, httpcore.RemoteProtocolError: there is no answer.
            httpcore.TimeoutException: there is none in the time that the request's extensions allow.
        """
        timeouts = request.extensions.get("timeout", {})
        self._read_seconds = timeouts.get("read")
        stream = self._stream
        stream.expect_head()
        try:
            await self._send(request, timeouts.get("write"))
        except httpcore.WriteError:
            pass  # a server may answer before it has read all and close: look for that answer
        while True:
            event = await self._next_event()
            if type(event) is h11.Response:
                stream.head_is_read()
                return event
            if type(event) is h11.InformationalResponse and event.status_code == 101:
                raise httpcore.RemoteProtocolError("the server wants to switch protocols")

    async def read_body(self) -> bytes:
        """Return the next piece of the answer's body, or ``b""`` at its end."""
        while True:
            event = await self._next_event()
            if type(event) is h11.Data:
                if event.data:
                    return bytes(event.data)
            else:
                return b""

    def is_reusable(self) -> bool:
        """Whether the exchange is over on both sides; the connection is then ready for another one.

        Bytes beyond the answer's end would be taken for the answer to the next request.
        """
        parser = self._h11
        if parser.our_state is not h11.DONE or parser.their_state is not h11.DONE or parser.trailing_data[0]:
            return False
        parser.start_next_cycle()
        return True

    async def _send(self, request: httpcore.Request, write_seconds: float | None) -> None:
        send, write = self._h11.send, self._stream.write
        try:
            head = h11.Request(method=request.method, target=request.url.target, headers=request.headers)
            await write(send(head), write_seconds)
            async for piece in cast(AsyncIterator[bytes], request.stream):
                if data := send(h11.Data(data=piece)):
                    await write(data, write_seconds)
            if data := send(h11.EndOfMessage()):
                await write(data, write_seconds)
        except h11.LocalProtocolError as error:
            raise httpcore.LocalProtocolError(str(error)) from error

    async def _next_event(self) -> Any:
        parser = self._h11
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                raise httpcore.RemoteProtocolError(str(error)) from error
            if event is not h11.NEED_DATA:
                return event
            data = await self._stream.read(_READ_BYTES, self._read_seconds)
            if not data and parser.their_state is h11.SEND_RESPONSE:
                raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
            parser.receive_data(data)
