"""Which endpoints can be made, and which messages they get."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.exceptions import InvalidEndpoint, InvalidSecret, InvalidTopic, NotFound
from svc_infra.webhooks.endpoints import (
    add_endpoint,
    check_url,
    get_endpoint,
    list_endpoints,
)
from svc_infra.webhooks.topic_patterns import check_pattern, is_wanted, matches

Factory = async_sessionmaker[AsyncSession]


@pytest.mark.parametrize(
    ("pattern", "topic", "is_match"),
    [
        ("billing.invoice.created", "billing.invoice.created", True),
        ("billing.invoice.created", "billing.invoice.created_twice", False),
        ("billing.*", "billing.invoice.created", True),
        ("billing.*", "billing", False),
        ("billing.*", "billings.invoice", False),
        ("billing.invoice.*", "billing.usage", False),
        ("*", "anything", True),
        ("*", "webhooks.endpoint.disabled", False),
        ("webhooks.*", "webhooks.endpoint.disabled", True),
    ],
)
def test_a_pattern_wants_its_topic_or_all_below_it(pattern: str, topic: str, is_match: bool) -> None:
    assert matches(pattern, topic) is is_match


@pytest.mark.parametrize("pattern", ["", ".*", "a.**", "a.*.b", "*.a", "a b", "a*", "a..b"])
def test_a_wildcard_stands_only_at_the_end(pattern: str) -> None:
    with pytest.raises(InvalidTopic):
        check_pattern(pattern)


@pytest.mark.parametrize(
    ("message_tenant", "endpoint_tenant", "wanted"),
    [("t1", None, True), ("t1", "t1", True), ("t1", "t2", False), (None, "t1", False), (None, None, True)],
)
def test_a_tenant_gets_its_own_messages_only(
    message_tenant: str | None, endpoint_tenant: str | None, wanted: bool
) -> None:
    assert is_wanted("a.b", message_tenant, patterns=["*"], endpoint_tenant_id=endpoint_tenant) is wanted


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/hook",
        "ftp://example.com/",
        "https:///path",
        "https://user:password@example.com/",
        "https://@example.com/",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://[::1/",
        "https://exämple.com/",
        "https://example.com/a b",
        "https://example.com\\@evil.test/",
        "https://example.com/\n",
        "https://example.com/" + "a" * 2048,
    ],
)
def test_a_url_that_no_webhook_may_go_to_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidEndpoint) as raised:
        check_url(url)
    assert "password@" not in str(raised.value)


@pytest.mark.parametrize("url", ["https://example.com", "http://127.0.0.1:8080/a?b=c", "https://[::1]/hook"])
def test_an_ordinary_url_is_kept_as_it_is(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.sqlite_only
async def test_the_secret_is_shown_once(session_factory: Factory) -> None:
    async with session_factory.begin() as session:
        made = await session.run_sync(lambda s: add_endpoint(s, url="https://a.test/", topics=["a.*", "a.*"]))
        given = await session.run_sync(
            lambda s: add_endpoint(s, url="https://b.test/", topics=["*"], secret="sekrit", tenant_id="t1")
        )
    assert made.secret is not None
    assert made.secret.startswith("whsec_")
    assert made.topics == ("a.*",)
    assert (given.secret, "sekrit" in repr(given)) == ("sekrit", False)
    async with session_factory() as session:
        listed = await session.run_sync(list_endpoints)
        assert [(one.url, one.secret) for one in listed] == [
            ("https://a.test/", None),
            ("https://b.test/", None),
        ]
        assert await session.run_sync(lambda s: list_endpoints(s, tenant_id="t1")) == listed[1:]
        with pytest.raises(NotFound):
            await session.run_sync(lambda s: get_endpoint(s, made.id, tenant_id="t1"))


@pytest.mark.sqlite_only
async def test_an_endpoint_that_could_never_work_is_not_stored(session_factory: Factory) -> None:
    async with session_factory() as session:
        for wrong, error in [
            ({"topics": []}, InvalidEndpoint),
            ({"topics": "billing.*"}, InvalidEndpoint),
            ({"topics": ["no topic"]}, InvalidTopic),
            ({"secret": ""}, InvalidSecret),
            ({"secret": "whsec_?"}, InvalidSecret),
            ({"description": "a" * 501}, InvalidEndpoint),
        ]:
            arguments = {"url": "https://a.test/", "topics": ["a.b"], **wrong}
            with pytest.raises(error):
                await session.run_sync(lambda s, arguments=arguments: add_endpoint(s, **arguments))
        assert await session.run_sync(list_endpoints) == []
