"""Which addresses a host name stands for, and which of them may be dialled."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol

import httpcore

from svc_infra.exceptions import AddressRefused

IPAddress = IPv4Address | IPv6Address

_SLOW_THREADS = 8
_MAX_SLOW_NAMES = 4_096


class AddressPolicy(Protocol):
    """Says which addresses a webhook may be sent to."""

    def allow_address(self, address: IPAddress) -> bool:
        """Tell whether ``address`` may be dialled."""
        ...


class AllowEveryAddress:
    """The policy that refuses nothing, for a sender whose way out is guarded by other means."""

    def allow_address(self, address: IPAddress) -> bool:
        """Allow it."""
        return True


def vet(addresses: list[IPAddress], policy: AddressPolicy) -> None:
    """Refuse a host when even one of its addresses is not allowed.

    A name that answers with a public and a private address is an attempt to get past the guard, so the good
    answers are not used either. The message names no address: it may be shown to a tenant, and must not
    tell them what our resolver sees.

    Raises:
        AddressRefused: an address is not allowed by the policy.
    """
    if not all(policy.allow_address(address) for address in addresses):
        raise AddressRefused("the endpoint's host has an address that may not be dialled; use a public host")


def look_up(host: str, port: int) -> list[str]:
    """Ask the operating system for the addresses of ``host``; blocks until it answers."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in answers]


class Resolver:
    """Resolves host names in threads of its own.

    asyncio resolves in the loop's default executor, which has a handful of threads: a few names whose name
    server does not answer would stop every other look-up of the process. Here a name that is being looked up
    occupies one thread, however many connections wait for it, and one whose last look-up took long waits for
    one of a few threads apart, so that many such names stop the others once at most.
    """

    def __init__(
        self,
        *,
        max_threads: int = 32,
        look_up: Callable[[str, int], list[str]] = look_up,
        slow_seconds: float = 2.0,
    ) -> None:
        self._threads = ThreadPoolExecutor(max_threads, thread_name_prefix="webhook-dns")
        self._slow_threads = ThreadPoolExecutor(_SLOW_THREADS, thread_name_prefix="webhook-dns-slow")
        self._look_up = look_up
        self._slow_seconds = slow_seconds
        self._slow: dict[str, None] = {}
        self._slow_lock = threading.Lock()
        self._pending: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    async def resolve(self, host: str, port: int) -> list[IPAddress]:
        """Return the addresses of ``host`` in the order in which they should be tried.

        Raises:
            httpcore.ConnectError: the name has no address.
        """
        with contextlib.suppress(ValueError):
            return [ip_address(host)]
        try:
            # shield: the one who gives up waiting must not take the answer from the others.
            answers = await asyncio.shield(self._look_up_once(host, port))
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the host name could not be resolved") from error
        try:
            addresses = [ip_address(answer) for answer in dict.fromkeys(answers)]
        except ValueError as error:
            raise httpcore.ConnectError("the host name has an address that cannot be read") from error
        if not addresses:
            raise httpcore.ConnectError("the host name has no address")
        return addresses

    def _look_up_once(self, host: str, port: int) -> asyncio.Future[list[str]]:
        key = (host, port)
        pending = self._pending.get(key)
        if pending is None:
            threads = self._slow_threads if host in self._slow else self._threads
            pending = asyncio.get_running_loop().run_in_executor(threads, self._timed_look_up, host, port)
            self._pending[key] = pending
            pending.add_done_callback(lambda _: self._pending.pop(key))
        return pending

    def _timed_look_up(self, host: str, port: int) -> list[str]:
        started = time.monotonic()
        try:
            return self._look_up(host, port)
        finally:
            self._remember(host, is_slow=time.monotonic() - started >= self._slow_seconds)

    def _remember(self, host: str, *, is_slow: bool) -> None:
        with self._slow_lock:
            self._slow.pop(host, None)
            if is_slow:
                self._slow[host] = None
            if len(self._slow) > _MAX_SLOW_NAMES:
                del self._slow[next(iter(self._slow))]

    def close(self) -> None:
        """Take no more look-ups; those under way end by themselves."""
        for threads in (self._threads, self._slow_threads):
            threads.shutdown(wait=False, cancel_futures=True)
