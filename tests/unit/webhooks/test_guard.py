"""The guard against every known way round it; the connect is stubbed: nothing forbidden is ever dialled."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.exceptions import InvalidEndpoint, InvalidSettings
from svc_infra.testing.webhooks import LOOPBACK_ADDRESSES, LOOPBACK_URLS, loopback_sender
from svc_infra.webhooks.addresses import AllowEveryAddress, IPAddress, Resolver, look_up
from svc_infra.webhooks.delivery import OutgoingRequest, SendFailure
from svc_infra.webhooks.dialer import Dialer, SocketStream
from svc_infra.webhooks.guard import PublicAddresses, UrlPolicy
from svc_infra.webhooks.pool import ConnectionPool
from svc_infra.webhooks.transport import HttpSender

INTERNAL_IPV4 = [
    "0.0.0.0",
    "10.0.0.5",
    "100.64.0.1",
    "100.100.100.200",  # metadata
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # platform
    "169.254.169.254",  # metadata
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",  # metadata
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
INTERNAL_IPV6 = [
    "::",
    "::1",
    "::2",
    "::127.0.0.1",  # compatible
    "::ffff:127.0.0.1",  # mapped
    "::ffff:7f00:1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",  # SIIT
    "::5efe:7f00:1",  # ISATAP
    "fe80::5efe:a9fe:a9fe",
    "2606:4700::5efe:7f00:1",  # ISATAP in a global network
    "2606:4700::200:5efe:7f00:1",
    "64:ff9b::7f00:1",  # NAT64
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::7f00:1",
    "100::1",  # discard
    "2001::1",  # Teredo
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # metadata
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "223.255.255.255", "2606:4700::1111", "2a00:1450:4001::200e"]


class Network:
    """A name server and the sockets of a world of our own; remembers what was asked and dialled."""

    def __init__(self, *answers: list[str], resolve: Callable[[str, int], list[str]] | None = None) -> None:
        self.answers = list(answers)
        self.resolve = resolve or self._next_answer
        self.asked: list[str] = []
        self.dialled: list[str] = []

    def sender(self, policy: PublicAddresses | None = None, urls: UrlPolicy | None = None) -> HttpSender:
        dialer = Dialer(policy, resolver=Resolver(look_up=self._look_up), open_stream=self._open_stream)
        return HttpSender(pool=ConnectionPool(dialer), urls=urls)

    def _look_up(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return self.resolve(host, port)

    def _next_answer(self, host: str, port: int) -> list[str]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def _open_stream(self, address: IPAddress, port: int) -> SocketStream:
        self.dialled.append(str(address))
        raise ConnectionRefusedError(111, "refused")


async def failure_of(sender: HttpSender, url: str) -> SendFailure:
    result = await sender.send(OutgoingRequest(url, {"webhook-id": "msg_1"}, b"{}"))
    assert isinstance(result, SendFailure), result
    return result


# --- addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", INTERNAL_IPV4 + INTERNAL_IPV6)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not PublicAddresses().allow_address(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    assert PublicAddresses().allow_address(ip_address(address))


@pytest.mark.parametrize("address", ["fe80::1%eth0", "2606:4700::1111%1", "::1%lo"])
def test_an_address_with_a_scope_is_refused_even_where_its_network_is_allowed(address: str) -> None:
    assert not PublicAddresses(allow=["::/0"]).allow_address(ip_address(address))


def test_the_allow_list_opens_its_networks_and_no_others() -> None:
    policy = PublicAddresses(allow=["10.20.0.0/16", "fd00:1::/32"])
    allowed = [address for address in ("10.20.3.4", "10.21.0.1", "fd00:1::5", "fd00:2::5", "8.8.8.8")]
    assert [policy.allow_address(ip_address(address)) for address in allowed] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert not policy.allow_address(ip_address("::ffff:10.20.3.4"))


def test_an_allowed_translator_still_leads_to_public_addresses_only() -> None:
    policy = PublicAddresses(allow=["64:ff9b::/96"])
    assert policy.allow_address(ip_address("64:ff9b::8.8.8.8"))
    assert not policy.allow_address(ip_address("64:ff9b::127.0.0.1"))
    assert not policy.allow_address(ip_address("64:ff9b::169.254.169.254"))


@pytest.mark.parametrize("network", ["10.0.0.1/8", "somewhere", ""])
def test_an_allow_list_that_cannot_be_read_is_refused(network: str) -> None:
    with pytest.raises(InvalidSettings):
        PublicAddresses(allow=[network])


@given(st.ip_addresses(v=4))
def test_no_form_that_stands_for_an_ipv4_address_is_allowed(address: IPAddress) -> None:
    number = int(address)
    forms = [number, 0xFFFF << 32 | number, 0xFFFF << 48 | number, 0x64FF9B << 96 | number]
    forms += [0x2002 << 112 | number << 80, 0x2001 << 112 | number ^ 0xFFFFFFFF]
    forms += [0x2606_4700 << 96 | 0x5EFE << 32 | number]
    assert not any(PublicAddresses().allow_address(ip_address(form.to_bytes(16))) for form in forms)


# --- hosts, at the moment of dialling ---------------------------------------------------------------------


@pytest.mark.parametrize("address", INTERNAL_IPV4 + INTERNAL_IPV6)
@pytest.mark.parametrize("form", ["literal", "name"])
async def test_an_internal_address_is_never_dialled_however_it_is_named(address: str, form: str) -> None:
    network = Network([address])
    literal = f"[{address}]" if ":" in address else address
    host = literal if form == "literal" else "hooks.customer.example"
    failure = await failure_of(network.sender(), f"https://{host}/")
    assert failure.reason == "refused_address"
    assert network.dialled == []
    assert address not in failure.detail


@pytest.mark.parametrize(
    "host",
    ["127.1", "127.0.1", "0", "2130706433", "2852039166", "0x7f000001", "0x7f.1", "0xa9fea9fe", "0177.0.0.1"],
)
async def test_a_number_that_the_resolver_takes_for_an_address_is_vetted_when_the_url_check_lets_it_by(
    host: str,
) -> None:
    # What a check of the text alone would miss: the C library turns all of these into addresses.
    with pytest.raises(InvalidEndpoint):
        UrlPolicy().check(f"https://{host}/")
    answers = look_up(host, 443)
    assert answers
    assert not any(PublicAddresses().allow_address(ip_address(answer)) for answer in answers)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST"])
async def test_the_names_of_this_machine_are_refused_when_they_are_dialled(host: str) -> None:
    network = Network(resolve=look_up)
    assert (await failure_of(network.sender(), f"https://{host}/")).reason == "refused_address"
    assert network.dialled == []


@pytest.mark.parametrize(
    "answers",
    [
        ["8.8.8.8", "10.0.0.5"],
        ["10.0.0.5", "8.8.8.8"],
        ["8.8.8.8", "::1"],
        ["8.8.8.8", "2606:4700::1111", "fe80::1%eth0"],
        ["::ffff:8.8.8.8"],
        ["fd00:ec2::254"],  # AAAA only
    ],
)
async def test_one_internal_answer_among_public_ones_refuses_the_whole_host(answers: list[str]) -> None:
    network = Network(answers)
    failure = await failure_of(network.sender(), "https://mixed.customer.example/")
    assert failure.reason == "refused_address"
    assert network.dialled == []
    assert not any(answer in failure.detail for answer in answers)


async def test_a_name_that_is_rebound_between_two_look_ups_is_refused_the_second_time() -> None:
    network = Network(["8.8.8.8"], ["169.254.169.254"])
    sender = network.sender()
    assert (await failure_of(sender, "https://rebound.customer.example/")).reason == "connect_error"
    assert (await failure_of(sender, "https://rebound.customer.example/")).reason == "refused_address"
    assert (len(network.asked), network.dialled) == (2, ["8.8.8.8"])


async def test_each_connection_is_dialled_by_the_one_look_up_that_was_vetted() -> None:
    network = Network(["8.8.8.8", "2606:4700::1111"], ["127.0.0.1"])
    await failure_of(network.sender(), "https://rebound.customer.example/")
    assert network.asked == ["rebound.customer.example"]
    assert network.dialled == ["8.8.8.8", "2606:4700::1111"]


@pytest.mark.parametrize("host", ["169.254.169.254.nip.example", "a.alias.example", "xn--bcher-kva.example"])
async def test_a_chain_of_names_that_ends_inside_is_refused(host: str) -> None:
    # A resolver follows CNAMEs and wildcard names by itself: what it answers at the end is what counts.
    network = Network(["169.254.169.254"])
    assert (await failure_of(network.sender(), f"https://{host}/")).reason == "refused_address"
    assert network.dialled == []


@pytest.mark.parametrize("answers", [[], ["not an address"]])
async def test_a_resolver_that_fails_opens_nothing(answers: list[str]) -> None:
    network = Network(answers)
    assert (await failure_of(network.sender(), "https://hooks.customer.example/")).reason == "connect_error"
    assert network.dialled == []


async def test_all_refusals_read_the_same_whatever_is_inside() -> None:
    addresses = ["127.0.0.1", "10.0.0.5", "169.254.169.254", "fd00::1"]
    details = {
        (await failure_of(Network([address]).sender(), "https://a.example/")).detail for address in addresses
    }
    assert len(details) == 1


async def test_a_sender_is_safe_unless_it_is_told_otherwise() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"127.0.0.1:{server.getsockname()[1]}/"
        server.setblocking(False)
        guarded, only_urls_open = HttpSender(), HttpSender(urls=LOOPBACK_URLS)
        assert (await failure_of(guarded, f"http://{url}")).reason == "invalid_request"
        assert (await failure_of(guarded, f"https://{url}")).reason == "invalid_request"
        assert (await failure_of(only_urls_open, f"http://{url}")).reason == "refused_address"
        with pytest.raises(BlockingIOError):
            server.accept()
        sender = loopback_sender(deadline_seconds=0.2)
        assert (await failure_of(sender, f"http://{url}")).reason == "timeout"
        server.accept()[0].close()
        for one in (guarded, only_urls_open, sender):
            await one.aclose()


async def test_a_sender_takes_no_policy_that_it_would_ignore() -> None:
    with pytest.raises(InvalidSettings):
        HttpSender(pool=ConnectionPool(), policy=AllowEveryAddress())


# --- URLs -------------------------------------------------------------------------------------------------


REFUSED_URLS = [
    "",
    "/hook",
    "hooks.customer.example/hook",
    "//hooks.customer.example/hook",
    "https:hooks.customer.example",
    "https:/hooks.customer.example",
    "https:///hook",
    "https://",
    "https://:443/",
    "https://?a=b",
    "http://hooks.customer.example/",
    "ftp://hooks.customer.example/",
    "file:///etc/passwd",
    "gopher://hooks.customer.example:443/_x",
    "javascript://hooks.customer.example/%0aalert(1)",
    "https://good@127.0.0.1/",
    "https://user:canary@hooks.customer.example/",
    "https://@hooks.customer.example/",
    "https://hooks.customer.example#@127.0.0.1/",
    "https://127.0.0.1#@hooks.customer.example/",
    "https://hooks.customer.example/#part",
    "https://127.0.0.1\\@hooks.customer.example/",
    "https://hooks.customer.example\\@127.0.0.1/",
    "https:\\\\127.0.0.1/",
    "https://hooks.customer.example/a\\b",
    "https://127.0.0.1%00.customer.example/",
    "https://127%2e0%2e0%2e1/",
    "https://%31%32%37.0.0.1/",
    "https://[fe80::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[::1/",
    "https://::1/",
    "https://[127.0.0.1]/",
    "https://[::ffff:127.0.0.1].example/",
    "https://[hooks.customer.example]/",
    "https://127。0。0。1/",
    "https://１２７.0.0.1/",
    "https://①②⑦.⓪.⓪.①/",
    "https://bücher.example/",
    "https://hoo\u212as.example/",  # the Kelvin sign is a "k" to a careless comparison
    "https://hook\u017f.example/",  # and the long s an "s"
    "http\u017f://hooks.customer.example/",
    "https://hooks.customer.example./",
    "https://hooks..customer.example/",
    "https://.customer.example/",
    "https://./",
    "https://-a.example/",
    "https://a-.example/",
    f"https://{'a' * 64}.example/",
    f"https://{'a.' * 126}example/",
    "https://localhost./",
    "https://127.0.0.1./",
    "https://127.1/",
    "https://0/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://0x/",
    "https://0177.0.0.1/",
    "https://256.0.0.1/",
    "https://1.2.3.4.5/",
    "https://hooks.customer.example:0/",
    "https://hooks.customer.example:22/",
    "https://hooks.customer.example:25/",
    "https://hooks.customer.example:80/",
    "https://hooks.customer.example:6379/",
    "https://hooks.customer.example:65536/",
    "https://hooks.customer.example:99999/",
    "https://hooks.customer.example:443:443/",
    "https://hooks.customer.example:/",
    "https://hooks.customer.example:٤٤٣/",
    "https://hooks.customer.example:+443/",
    "https://hooks.customer.example/ hook",
    "https://hooks.customer.example/hook\n",
    "https://hooks.customer.example/hook\r\nx: y",
    " https://hooks.customer.example/",
    "https://hooks.customer.example\t/",
    "https://hooks.customer.example/\x00",
    "https://hooks.customer.example/" + "a" * 2048,
]


@pytest.mark.parametrize("url", REFUSED_URLS)
async def test_a_url_that_is_not_plainly_https_is_refused_at_creation_and_at_send(url: str) -> None:
    with pytest.raises(InvalidEndpoint) as caught:
        UrlPolicy().check(url)
    assert "canary" not in str(caught.value)
    network = Network(["8.8.8.8"])
    failure = await failure_of(network.sender(), url)
    assert failure.reason == "invalid_request"
    assert "canary" not in failure.detail
    assert (network.asked, network.dialled) == ([], [])


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.customer.example",
        "https://hooks.customer.example/",
        "HTTPS://Hooks.Customer.Example/Hook?a=b&c=%20@:#"[:-1],
        "https://hooks.customer.example:443/hook",
        "https://hooks.customer.example:8443/hook",
        "https://hooks.customer.example?a=b",
        "https://xn--bcher-kva.example/",
        "https://a_b.customer-1.example/",
        "https://123.example/",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]:8443/",
    ],
)
async def test_a_plain_url_is_allowed_and_dialled(url: str) -> None:
    assert UrlPolicy().check(url, PublicAddresses()) == url
    network = Network(["8.8.8.8"])
    assert (await failure_of(network.sender(), url)).reason == "connect_error"
    assert network.dialled in (["8.8.8.8"], ["2606:4700::1111"])


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/latest"])
def test_an_internal_literal_is_refused_at_creation_already(url: str) -> None:
    with pytest.raises(InvalidEndpoint, match="may not be dialled"):
        UrlPolicy().check(url, PublicAddresses())
    assert UrlPolicy().check(url) == url  # without an address policy only the text is checked


def test_http_and_more_ports_are_allowed_by_name() -> None:
    urls = UrlPolicy(allow_http=True, ports=[443, 9443])
    for url in ("http://a.example/", "https://a.example:9443/", "https://a.example/"):
        assert urls.check(url) == url
    for url in ("http://a.example:8080/", "https://a.example:8443/", "http://user@a.example/"):
        with pytest.raises(InvalidEndpoint):
            urls.check(url)


def test_the_loopback_policies_open_this_machine_and_nothing_else_inside() -> None:
    assert LOOPBACK_URLS.check("http://127.0.0.1:5000/", LOOPBACK_ADDRESSES)
    for address in ("10.0.0.5", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0"):
        assert not LOOPBACK_ADDRESSES.allow_address(ip_address(address))


@given(st.text(max_size=60) | st.text("aA1.-_:@[]%/?#\\x\u212a", max_size=30).map("https://{}".format))
def test_any_text_is_either_refused_or_a_url_with_one_reading(text: str) -> None:
    try:
        url = UrlPolicy().check(text)
    except InvalidEndpoint:
        return
    one, other = httpx.URL(url), urlsplit(url)
    assert (one.host, one.port) == (other.hostname, None if other.port == 443 else other.port)
    assert not one.userinfo
