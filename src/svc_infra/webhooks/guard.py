"""What a webhook may be sent to: public addresses and plain https URLs, unless the operator says otherwise.

An endpoint's URL comes from a stranger, and the sender stands inside our network: without a guard it would
fetch whatever the stranger names (server-side request forgery). Two walls, each enough for most attacks:
``UrlPolicy`` looks at the text, when an endpoint is made and again at each send; ``PublicAddresses`` looks at
what is dialled, after the look-up, where no spelling of a host can hide it. The networks are listed here one
by one, because ``ipaddress.is_global`` of several Python releases lets internal ones through.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from svc_infra.exceptions import InvalidEndpoint, InvalidSettings
from svc_infra.webhooks.addresses import AddressPolicy, IPAddress

IPNetwork = IPv4Network | IPv6Network

MAX_URL_LENGTH = 2048
DEFAULT_PORTS = frozenset({443, 8443})
LOOPBACK_NETWORKS = ("127.0.0.0/8", "::1/128")

# The special-purpose registry of IANA (RFC 6890), and one platform address that only looks public.
_REFUSED_IPV4 = tuple(
    IPv4Network(net)
    for net in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier NAT; holds the metadata service of one cloud
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # the platform's own service inside one cloud
        "169.254.0.0/16",  # link-local; holds the metadata services of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; holds the metadata service of one cloud
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
# IPv6 is refused unless it is in the only block that is given out to the world, and not in these parts of it.
_GLOBAL_IPV6 = IPv6Network("2000::/3")
_REFUSED_IPV6 = tuple(
    IPv6Network(net)
    for net in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
# Translated addresses hold an IPv4 address in their last 32 bits: mapped, compatible, SIIT, NAT64.
_TRANSLATED = tuple(
    IPv6Network(net)
    for net in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
_6TO4 = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_ISATAP_MARKS = frozenset({0x0000_5EFE, 0x0200_5EFE})
_LOW_32_BITS = 0xFFFF_FFFF


class PublicAddresses:
    """The address policy that lets only the public internet be dialled, and what ``allow`` adds to it.

    ``allow`` are networks in CIDR form, like ``"10.20.0.0/16"``, for receivers inside one's own network and
    for loopback in tests. An IPv6 address that stands for an IPv4 address (mapped, NAT64, 6to4, Teredo,
    ISATAP) is refused whatever it stands for; behind a NAT64 that is one's own, allow its prefix, and then
    the IPv4 address inside decides. An address with a scope id is always refused.

    Raises:
        InvalidSettings: one of ``allow`` is not a network.
    """

    def __init__(self, allow: Iterable[str | IPNetwork] = ()) -> None:
        self.allow: tuple[IPNetwork, ...] = tuple(_network(net) for net in allow)

    def allow_address(self, address: IPAddress) -> bool:
        """Tell whether ``address`` may be dialled."""
        if isinstance(address, IPv4Address):
            return self._is_allowed(address) or not any(address in net for net in _REFUSED_IPV4)
        if address.scope_id is not None:
            return False
        inside = _ipv4_inside(address)
        if inside is not None:
            # An allowed prefix opens the way to the translator, not to every address behind it.
            return self._is_allowed(address) and self.allow_address(inside)
        if self._is_allowed(address):
            return True
        return address in _GLOBAL_IPV6 and not any(address in net for net in _REFUSED_IPV6)

    def _is_allowed(self, address: IPAddress) -> bool:
        return any(address in net for net in self.allow)


def _network(net: str | IPNetwork) -> IPNetwork:
    try:
        return ip_network(net)
    except ValueError:
        raise InvalidSettings(
            f"{net!r:.60} is no network; write it in CIDR form, like '10.20.0.0/16'"
        ) from None


def _ipv4_inside(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that ``address`` stands for, if it is of a form that stands for one."""
    number = int(address)
    if number <= 1:
        return None  # the unspecified address and loopback look like the compatible form and are IPv6's own
    if address in _6TO4:
        return IPv4Address(number >> 80 & _LOW_32_BITS)
    if address in _TEREDO:
        return IPv4Address(~number & _LOW_32_BITS)
    if any(address in net for net in _TRANSLATED) or number >> 32 & _LOW_32_BITS in _ISATAP_MARKS:
        return IPv4Address(number & _LOW_32_BITS)
    return None


# A URL is taken only in a form that no two parsers can read differently. What stands before the path holds
# no user name, percent escape, backslash or letter beyond ASCII, so there is nothing left to normalise.
_ASCII_ANY_CASE = re.ASCII | re.IGNORECASE  # alone, the second takes the Kelvin sign for a "k"
_URL = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?:[/?][!-~]*)?",
    _ASCII_ANY_CASE,
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", _ASCII_ANY_CASE)
# "127.1", "0x7f.1", "2130706433": what the C library would read as an address ends in a number.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", _ASCII_ANY_CASE)
_MAX_HOST_LENGTH = 253
_SCHEME_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class UrlPolicy:
    """Which URLs an endpoint may have: https on port 443 or 8443 of a host by its plain name or address.

    ``allow_http`` adds plain http. ``ports`` are the ports that may be written or implied; None is every
    port, for tests. Port 80 goes with ``allow_http``.
    """

    allow_http: bool = False
    ports: Collection[int] | None = DEFAULT_PORTS

    def __post_init__(self) -> None:
        if self.ports is not None:
            object.__setattr__(self, "ports", frozenset(self.ports))

    def check(self, url: str, addresses: AddressPolicy | None = None) -> str:
        """Return ``url`` if a webhook may be sent to it.

        Given ``addresses``, a host that is written as an address is vetted too, so that whoever makes the
        endpoint is told at once; a host name is vetted when it is dialled.

        Raises:
            InvalidEndpoint: it may not; the message tells what to change and repeats no part of the URL,
                which may hold a password.
        """
        if len(url) > MAX_URL_LENGTH:
            raise InvalidEndpoint(
                f"the endpoint's URL is longer than {MAX_URL_LENGTH} characters; shorten it"
            )
        match = _URL.fullmatch(url)
        if match is None or "#" in url or "\\" in url:
            raise InvalidEndpoint(_what_is_wrong(url))
        scheme, host = match["scheme"].lower(), match["host"]
        if scheme not in _SCHEME_PORTS or (scheme == "http" and not self.allow_http):
            wanted = "https:// or http://" if self.allow_http else "https://"
            advice = "" if self.allow_http else "; the operator's setting webhooks.allow_http adds http://"
            raise InvalidEndpoint(f"the endpoint's URL must begin with {wanted}{advice}")
        self._check_port(int(match["port"] or _SCHEME_PORTS[scheme]))
        address = _check_host(host)
        if address is not None and addresses is not None and not addresses.allow_address(address):
            raise InvalidEndpoint(
                "the endpoint's URL names an address that may not be dialled; use a public host (the "
                "operator's setting webhooks.allow_networks adds networks)"
            )
        return url

    def _check_port(self, port: int) -> None:
        if not 0 < port < 65536:
            raise InvalidEndpoint("the port in the endpoint's URL must be between 1 and 65535")
        allowed = self.ports
        if allowed is None or port in allowed or (port == 80 and self.allow_http):
            return
        listed = ", ".join(str(one) for one in sorted(allowed))
        raise InvalidEndpoint(
            f"the endpoint's URL names a port that webhooks may not use; use one of {listed} (the operator's "
            "setting webhooks.allow_ports adds others)"
        )


def _check_host(host: str) -> IPAddress | None:
    """Return the address that ``host`` is written as, or None for a name.

    Raises:
        InvalidEndpoint: it is neither, or an address in a form that only some parsers take for one.
    """
    try:
        if host.startswith("["):
            return IPv6Address(host[1:-1])
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            return IPv4Address(host)
    except ValueError:
        raise InvalidEndpoint(
            "the host of the endpoint's URL is a number that is no plain address; write the host's name"
        ) from None
    if len(host) > _MAX_HOST_LENGTH or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise InvalidEndpoint(
            "the host of the endpoint's URL is no host name: labels of 1 to 63 letters, digits and hyphens, "
            "joined by single dots, without one at the end"
        )
    return None


def _what_is_wrong(url: str) -> str:
    """Say what keeps ``url`` from being read; the first of the likely mistakes that it makes."""
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    if not url.isascii():
        return (
            "the endpoint's URL has letters beyond ASCII; write the host in its xn-- form and escape the path"
        )
    if "@" in authority:
        return "the endpoint's URL holds a user name or password; remove it and verify signatures instead"
    if "#" in url:
        return "the endpoint's URL has a fragment (#…), which is never sent; remove it"
    return "the endpoint's URL must be https://host/path, with no spaces, backslashes or escapes in the host"
