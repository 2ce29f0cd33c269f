"""Sending through an egress proxy: a deliberate setting, never one found in the environment."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

import httpcore

from svc_infra.exceptions import AddressRefused, InvalidSettings
from svc_infra.webhooks.addresses import AddressPolicy, AllowEveryAddress, Resolver, vet
from svc_infra.webhooks.dialer import Dialer, OpenStream, SocketStream, open_stream
from svc_infra.webhooks.guard import PublicAddresses

_MAX_ANSWER_BYTES = 8 * 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_PROXY = re.compile(
    r"http://(?:(?P<user>[^\s:@/]+):(?P<password>[^\s@/]*)@)?(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)"
    r":(?P<port>[0-9]{1,5})/?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class EgressProxy:
    """An HTTP proxy that opens tunnels (CONNECT); ``credentials`` are ``user:password`` or empty."""

    host: str
    port: int
    credentials: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> EgressProxy:
        """Read ``http://proxy.example:3128`` or ``http://user:password@proxy.example:3128``.

        Raises:
            InvalidSettings: it is neither; the message does not repeat it, for it may hold a password.
        """
        match = _PROXY.fullmatch(text)
        if match is None or not 0 < int(match["port"]) < 65536:
            raise InvalidSettings(
                "webhooks.egress_proxy is written http://host:port, or http://user:password@host:port"
            )
        credentials = f"{match['user']}:{match['password']}" if match["user"] else ""
        return cls(match["host"].strip("[]"), int(match["port"]), credentials)


class ProxyDialer(Dialer):
    """Reaches every host by a CONNECT to one HTTP proxy, and so leaves the look-up and the guard to it.

    For networks whose only way out is such a proxy (Smokescreen, Squid). The proxy must refuse internal
    addresses: host names are resolved there, out of our sight. What is checked here all the same: the URL, by
    its policy; hosts written as addresses, by the address policy; and ``localhost``, which would be the
    proxy's own machine. TLS runs through the tunnel and is verified here, so the proxy sees the name of the
    host and no more. The proxy's own address is the operator's and is not vetted. Pass it on as
    ``HttpSender(pool=ConnectionPool(dialer))``.
    """

    def __init__(
        self,
        proxy: EgressProxy,
        *,
        policy: AddressPolicy | None = None,
        resolver: Resolver | None = None,
        open_stream: OpenStream = open_stream,
        connect_seconds: float = 5.0,
    ) -> None:
        super().__init__(
            AllowEveryAddress(), resolver=resolver, open_stream=open_stream, connect_seconds=connect_seconds
        )
        self._proxy = proxy
        self._target_policy = PublicAddresses() if policy is None else policy
        self._tunnel_seconds = connect_seconds

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> SocketStream:
        """Connect to ``host`` through the proxy.

        Raises:
            AddressRefused: ``host`` is an address that the policy refuses or this machine's own name, or the
                proxy lets nobody there.
            httpcore.ConnectError: the proxy, or the host behind it, could not be reached.
            httpcore.ConnectTimeout: there was no tunnel in time.
        """
        authority = f"{host}:{port}"
        if f".{host.lower()}".endswith(".localhost"):
            raise AddressRefused("the endpoint's host is a name of this machine; use a public host")
        with contextlib.suppress(ValueError):
            address = ip_address(host)
            vet([address], self._target_policy)
            if isinstance(address, IPv6Address):
                authority = f"[{host}]:{port}"
        stream = await super().connect_tcp(
            self._proxy.host, self._proxy.port, timeout, local_address, socket_options
        )
        try:
            async with asyncio.timeout(self._tunnel_seconds if timeout is None else timeout):
                await _open_tunnel(stream, authority.encode("ascii"), self._proxy.credentials)
        except TimeoutError as error:
            stream.abort()
            raise httpcore.ConnectTimeout("no tunnel through the egress proxy in time") from error
        except BaseException:
            stream.abort()
            raise
        return stream


async def _open_tunnel(stream: SocketStream, authority: bytes, credentials: str) -> None:
    login = b""
    if credentials:
        login = b"Proxy-Authorization: Basic %b\r\n" % base64.b64encode(credentials.encode())
    await stream.write(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (authority, authority, login))
    answer = bytearray()
    while b"\r\n\r\n" not in answer:
        piece = await stream.read(_MAX_ANSWER_BYTES)
        answer += piece
        if not piece or len(answer) > _MAX_ANSWER_BYTES:
            raise httpcore.ConnectError("the egress proxy gave no proper answer")
    status = _STATUS_LINE.match(answer)
    match int(status[1]) if status else 0:
        # Behind the tunnel is silence until we speak: what follows the head would be the proxy's own.
        case 200 if not answer.partition(b"\r\n\r\n")[2]:
            return
        case code if 400 <= code < 500:
            raise AddressRefused("the egress proxy lets no webhook through to the endpoint's host")
    raise httpcore.ConnectError("the egress proxy could not connect to the endpoint's host")
