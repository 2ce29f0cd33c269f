"""Endpoints with all that can be set for them: secrets, filters, headers, order, health, on and off."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from svc_infra.exceptions import InvalidEndpoint, InvalidSecret, NotFound
from svc_infra.webhooks.audit import list_acts
from svc_infra.webhooks.delivery import Answer, SendFailure
from svc_infra.webhooks.delivery_claim import claim
from svc_infra.webhooks.delivery_rows import rescue
from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.endpoint_switch import disable_endpoint, enable_endpoint
from svc_infra.webhooks.endpoints import (
    EndpointRules,
    add_endpoint,
    change_endpoint,
    get_endpoint,
)
from svc_infra.webhooks.guard import PublicAddresses, UrlPolicy
from svc_infra.webhooks.health import HealthPolicy
from svc_infra.webhooks.models import DeliveryAttemptRow, DeliveryRow, EndpointRow
from svc_infra.webhooks.relay import Relay
from svc_infra.webhooks.sealing import KeyRing, is_sealed, new_sealing_key
from svc_infra.webhooks.secret_rotation import reseal_secrets, rotate_secret
from svc_infra.webhooks.signature import new_secret, verify
from tests.contract.webhook_shop import NOON, TOPIC, URL, Factory, Shop


@pytest.fixture
async def shop(session_factory: Factory) -> Shop:
    return Shop(session_factory)


def ring(*key_ids: str) -> KeyRing:
    return KeyRing.parse(" ".join(new_sealing_key(key_id) for key_id in key_ids))


# --- secrets ------------------------------------------------------------------------------------------------


async def test_a_sealed_secret_signs_and_is_not_readable_in_the_database(session_factory: Factory) -> None:
    shop = Shop(session_factory, keys=ring("k1"))
    secret = new_secret()
    endpoint_id = await shop.add(secret=secret, options=EndpointOptions(headers={"x-token": "hunter2"}))
    row = await shop.row(endpoint_id)
    assert secret not in json.dumps(row.secrets)
    assert is_sealed(row.secrets[0]["secret"])
    assert "hunter2" not in json.dumps(row.headers)
    await shop.publish({"n": 1})
    assert await shop.service.deliver_due() == 1
    (request,) = shop.sender.requests
    verify(request.headers, request.body, [secret])
    assert request.headers["x-token"] == "hunter2"


async def test_without_its_key_an_endpoint_fails_alone_and_says_why(session_factory: Factory) -> None:
    sealed = Shop(session_factory, keys=ring("k1"))
    await sealed.add()
    shop = Shop(session_factory)
    await shop.add("https://other.example/")
    await shop.publish({"n": 1})
    assert await shop.service.deliver_due() == 1
    assert [request.url for request in shop.sender.requests] == ["https://other.example/"]


async def test_secrets_are_sealed_anew_with_the_newest_key(session_factory: Factory) -> None:
    old_key, new_key = new_sealing_key("old"), new_sealing_key("new")
    secret = new_secret()
    plain = Shop(session_factory)
    plain_id = await plain.add(secret=secret)
    old = Shop(session_factory, keys=KeyRing.parse(old_key))
    old_id = await old.add(secret=secret)
    keys = KeyRing.parse(f"{new_key} {old_key}")
    shop = Shop(session_factory, keys=keys)
    assert await shop.do(reseal_secrets, keys) == 2
    assert await shop.do(reseal_secrets, keys) == 0
    for endpoint_id in (plain_id, old_id):
        assert (await shop.row(endpoint_id)).secrets[0]["secret"].startswith("enc:v1:new:")
    only_new = Shop(session_factory, keys=KeyRing.parse(new_key))
    await only_new.publish({"n": 1})
    assert await only_new.service.deliver_due() == 2
    for request in only_new.sender.requests:
        verify(request.headers, request.body, [secret])


async def test_headers_are_sealed_anew_although_the_secret_is_already(session_factory: Factory) -> None:
    old, new = new_sealing_key("k1"), new_sealing_key("k2")
    shop = Shop(session_factory, keys=KeyRing.parse(old))
    endpoint_id = await shop.add(options=EndpointOptions(headers={"authorization": "Bearer abc"}))
    both = KeyRing.parse(f"{new}\n{old}")
    await shop.do(rotate_secret, endpoint_id, keys=both, overlap_seconds=0)
    assert await shop.do(reseal_secrets, both) == 1
    assert await shop.do(reseal_secrets, both) == 0
    without_the_old = Shop(session_factory, keys=KeyRing.parse(new))
    await without_the_old.publish({"n": 1})
    assert await without_the_old.service.deliver_due() == 1
    assert without_the_old.sender.requests[0].headers["authorization"] == "Bearer abc"


async def test_during_a_rotation_all_valid_secrets_sign_and_afterwards_only_the_new_one(shop: Shop) -> None:
    old = new_secret()
    endpoint_id = await shop.add(secret=old)
    rotated = await shop.do(rotate_secret, endpoint_id, overlap_seconds=600)
    assert rotated.secret is not None
    await shop.publish({"n": 1})
    await shop.service.deliver_due()
    (request,) = shop.sender.requests
    for secret in (old, rotated.secret):
        verify(request.headers, request.body, [secret])
    assert len(request.headers["webhook-signature"].split()) == 2
    last = await shop.do(rotate_secret, endpoint_id, overlap_seconds=0)
    await shop.publish({"n": 2})
    await shop.service.deliver_due()
    (signature,) = shop.sender.requests[1].headers["webhook-signature"].split()
    verify({**shop.sender.requests[1].headers}, shop.sender.requests[1].body, [str(last.secret)])
    assert signature.startswith("v1,")


async def test_the_overlap_ends_by_the_wall_clock(shop: Shop) -> None:
    old = new_secret()
    endpoint_id = await shop.add(secret=old)
    long_ago = datetime.now(UTC) - timedelta(seconds=700)
    await shop.do(rotate_secret, endpoint_id, overlap_seconds=600, now=long_ago)
    await shop.publish({"n": 1})
    await shop.service.deliver_due()
    assert len(shop.sender.requests[0].headers["webhook-signature"].split()) == 1


async def test_no_more_than_five_secrets_are_valid_at_once(shop: Shop) -> None:
    endpoint_id = await shop.add()
    for _ in range(4):
        await shop.do(rotate_secret, endpoint_id, overlap_seconds=600)
    with pytest.raises(InvalidSecret, match="5 secrets are valid already"):
        await shop.do(rotate_secret, endpoint_id, overlap_seconds=600)
    await shop.do(rotate_secret, endpoint_id, overlap_seconds=0)
    assert len((await shop.row(endpoint_id)).secrets) == 1


async def test_an_ed25519_endpoint_shows_its_public_key_and_never_the_private_one(
    session_factory: Factory,
) -> None:
    shop = Shop(session_factory, keys=ring("k1"))
    made = await shop.do(add_endpoint, url=URL, topics=[TOPIC], signing="v1a", rules=shop.rules)
    assert made.secret is None
    (public_key,) = made.public_keys
    rotated = await shop.do(rotate_secret, made.id, overlap_seconds=600, keys=shop.rules.keys)
    assert rotated.secret is None
    assert rotated.public_keys[1:] == (public_key,)
    await shop.publish({"n": 1})
    await shop.service.deliver_due()
    (request,) = shop.sender.requests
    for key in rotated.public_keys:
        verify(request.headers, request.body, [key])
    assert (await shop.do(get_endpoint, made.id)).public_keys == rotated.public_keys


# --- URLs and options ---------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("url", "setting"),
    [
        ("http://receiver.example/", "webhooks.allow_http"),
        ("https://receiver.example:9000/", "webhooks.allow_ports"),
        ("https://10.0.0.1/", "webhooks.allow_networks"),
    ],
)
async def test_a_url_that_the_settings_forbid_is_refused_with_the_setting_that_would_allow_it(
    shop: Shop, url: str, setting: str
) -> None:
    rules = EndpointRules(UrlPolicy(), PublicAddresses())
    with pytest.raises(InvalidEndpoint, match=setting):
        await shop.do(add_endpoint, url=url, topics=[TOPIC], rules=rules)
    endpoint_id = await shop.add()
    with pytest.raises(InvalidEndpoint, match=setting):
        await shop.do(change_endpoint, endpoint_id, url=url, rules=rules)


async def test_an_endpoint_gets_only_the_payloads_that_fit_its_filter(shop: Shop) -> None:
    await shop.add(
        options=EndpointOptions(payload_filter={"plan.name": ["gold", "silver"], "is_test": False})
    )
    await shop.add("https://all.example/")
    await shop.publish(
        {"n": 1, "plan": {"name": "gold"}, "is_test": False},
        {"n": 2, "plan": {"name": "gold"}, "is_test": True},
        {"n": 3, "plan": {"name": "tin"}, "is_test": False},
        {"n": 4, "plan": "gold", "is_test": False},
        {"n": 5, "is_test": 0, "plan": {"name": "silver"}},
    )
    assert await shop.service.deliver_due() == 6
    filtered = [json.loads(one.body)["data"]["n"] for one in shop.sender.requests if one.url == URL]
    assert filtered == [1]


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "wrong",
    [
        {"headers": {"Webhook-Id": "x"}},
        {"headers": {"content-length": "1"}},
        {"headers": {"Host": "internal"}},
        {"headers": {"Metadata-Flavor": "Google"}},
        {"headers": {"X-aws-ec2-metadata-token": "x"}},
        {"headers": {"X-Forwarded-For": "10.0.0.1"}},
        {"headers": {"x-a": "b\r\nx-c: d"}},
        {"headers": {"x a": "b"}},
        {"headers": {"x-a": "1", "X-A": "2"}},
        {"payload_filter": {}},
        {"payload_filter": {"a..b": 1}},
        {"payload_filter": {"a": 1.5}},
        {"payload_filter": {"a": []}},
        {"payload_filter": {"a": list(range(101))}},
        {"payload_filter": {"a": "b" * 501}},
        {"payload_filter": {"a": 1 << 300}},
        {"metadata": {"a": "b" * 501}},
        {"ordering": "sometimes"},
        {"content_mode": "xml"},
        {"rate_per_second": 0},
        {"in_flight_cap": 0},
    ],
)
def test_options_that_cannot_be_used_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidEndpoint):
        EndpointOptions(**wrong)


async def test_options_are_changed_and_header_values_stay_hidden(shop: Shop) -> None:
    endpoint_id = await shop.add(tenant_id="t1")
    options = EndpointOptions(headers={"authorization": "Bearer abc"}, metadata={"team": "books"})
    changed = await shop.do(
        change_endpoint, endpoint_id, url="https://new.example/", topics=["a.b", "shop.*"], options=options
    )
    assert (changed.url, changed.topics) == ("https://new.example/", ("a.b", "shop.*"))
    assert (dict(changed.options.headers), dict(changed.options.metadata)) == (
        {"authorization": "hidden"},
        {"team": "books"},
    )
    await shop.publish({"n": 1}, tenant_id="t1")
    await shop.service.deliver_due()
    assert shop.sender.requests[0].headers["authorization"] == "Bearer abc"
    with pytest.raises(NotFound):
        await shop.do(change_endpoint, endpoint_id, url=URL, tenant_id="t2")
    acts = await shop.do(list_acts, endpoint_id)
    assert [act.action for act in acts] == ["change", "add"]


async def test_options_that_are_shown_can_be_given_back_without_losing_a_header(shop: Shop) -> None:
    options = EndpointOptions(headers={"authorization": "Bearer abc", "x-old": "1"})
    endpoint_id = await shop.add(options=options)
    shown = (await shop.do(get_endpoint, endpoint_id)).options
    kept = {"authorization": shown.headers["authorization"], "x-new": "2"}
    await shop.do(change_endpoint, endpoint_id, options=replace(shown, headers=kept, rate_per_second=50))
    await shop.publish({"n": 1})
    await shop.service.deliver_due()
    sent = shop.sender.requests[0].headers
    assert (sent["authorization"], sent["x-new"], sent.get("x-old")) == ("Bearer abc", "2", None)
    with pytest.raises(InvalidEndpoint, match="give it anew"):
        await shop.do(change_endpoint, endpoint_id, options=replace(shown, headers={"x-b": "hidden"}))


async def test_an_endpoint_may_be_sent_structured_cloudevents(shop: Shop) -> None:
    secret = new_secret()
    await shop.add(secret=secret, options=EndpointOptions(content_mode="cloudevents"))
    (message_id,) = await shop.publish({"n": 1}, tenant_id="t1")
    shop.sender.answers[URL] = [Answer(500, None, b"", 1)]
    # An operator's endpoint gets the messages of every tenant.
    await shop.service.deliver_due()
    shop.clock.advance(timedelta(minutes=1))
    await shop.service.deliver_due()
    first, second = shop.sender.requests
    verify(first.headers, first.body, [secret])
    assert first.headers["content-type"] == "application/cloudevents+json"
    assert json.loads(first.body) == {
        "specversion": "1.0",
        "id": message_id,
        "source": "/webhooks",
        "type": TOPIC,
        "time": "2025-01-01T12:00:00Z",
        "subject": "t1",
        "datacontenttype": "application/json",
        "data": {"n": 1},
    }
    assert first.body == second.body


# --- on and off ---------------------------------------------------------------------------------------------


async def test_what_was_published_while_disabled_is_held_and_sent_on_enable_if_asked(shop: Shop) -> None:
    endpoint_id = await shop.add()
    assert await shop.do(disable_endpoint, endpoint_id, reason="maintenance", now=NOON)
    await shop.publish({"n": 1}, {"n": 2})
    assert await shop.service.deliver_due() == 0
    assert await shop.states(endpoint_id) == [("held", "disabled")] * 2
    assert await shop.do(enable_endpoint, endpoint_id, now=NOON) == 0
    assert await shop.service.deliver_due() == 0
    await shop.do(disable_endpoint, endpoint_id, reason="again", now=NOON)
    assert await shop.do(enable_endpoint, endpoint_id, now=NOON, replay_held=True) == 2
    assert await shop.service.deliver_due() == 2
    assert [one["n"] for one in shop.sender.data()] == [1, 2]
    acts = [(act.action, act.detail) for act in await shop.do(list_acts, endpoint_id)]
    assert acts[0] == ("enable", {"replayed": 2})
    assert acts[-2] == ("disable", {"reason": "maintenance"})


async def test_enabling_ends_a_pause_and_what_was_put_off_is_due(shop: Shop) -> None:
    endpoint_id = await shop.add()
    shop.sender.answers[URL] = [Answer(503, "3600", b"", 1)]
    await shop.publish({"n": 1})
    await shop.service.deliver_due()
    assert await shop.do(enable_endpoint, endpoint_id, now=NOON) == 0
    assert await shop.service.deliver_due() == 1


async def test_a_lane_whose_first_was_found_disabled_does_not_wait_for_ever(shop: Shop) -> None:
    endpoint_id = await shop.add(options=EndpointOptions(ordering="key"))
    await shop.publish({"n": 1}, {"n": 2}, key="a")
    await Relay(shop.factory, shop.clock).drain()
    async with shop.factory.begin() as session:  # as a relay that had read it before leaves it
        (await session.get_one(EndpointRow, endpoint_id)).is_enabled = False
    await shop.service.deliver_due()
    assert await shop.states(endpoint_id) == [("held", "disabled"), ("held", "order")]
    await shop.do(enable_endpoint, endpoint_id, now=NOON)
    assert await shop.service.deliver_due() == 1
    assert [one["n"] for one in shop.sender.data()] == [2]  # the first waits for a replay, as asked


async def test_nobody_disables_the_endpoint_of_another_tenant(shop: Shop) -> None:
    endpoint_id = await shop.add(tenant_id="t1")
    off = {"reason": "off", "now": NOON}
    assert not await shop.do(disable_endpoint, endpoint_id, tenant_id="t2", **off)
    assert (await shop.row(endpoint_id)).is_enabled
    assert await shop.do(disable_endpoint, endpoint_id, tenant_id="t1", **off)


async def test_disabling_is_announced_once_to_those_who_asked_for_it(shop: Shop) -> None:
    endpoint_id = await shop.add(tenant_id="t1")
    await shop.add("https://ops.example/", topics=["webhooks.*"])
    await shop.add("https://everything.example/", topics=["*"])
    assert await shop.do(disable_endpoint, endpoint_id, reason="too old", now=NOON)
    assert not await shop.do(disable_endpoint, endpoint_id, reason="too old", now=NOON)
    assert await shop.service.deliver_due() == 1
    (request,) = shop.sender.requests
    assert request.url == "https://ops.example/"
    assert json.loads(request.body) == {
        "type": "webhooks.endpoint.disabled",
        "timestamp": "2025-01-01T12:00:00Z",
        "data": {
            "endpoint_id": endpoint_id,
            "tenant_id": "t1",
            "reason": "too old",
            "disabled_at": "2025-01-01T12:00:00Z",
        },
    }


# --- health -------------------------------------------------------------------------------------------------

REFUSED = SendFailure("connect_error", "refused", 1)


async def test_an_endpoint_that_only_fails_is_paused_then_probed_once_and_recovers(shop: Shop) -> None:
    endpoint_id = await shop.add()
    shop.sender.answers[URL] = [REFUSED] * 6
    await shop.publish(*({"n": n} for n in range(5)))
    await shop.service.deliver_due()
    assert len(shop.sender.requests) == 5
    paused = (await shop.row(endpoint_id)).paused_until
    assert paused == NOON + timedelta(seconds=30)
    await shop.publish(*({"n": n} for n in range(5, 20)))
    await shop.service.deliver_due()
    assert len(shop.sender.requests) == 5  # nothing is sent during the pause
    shop.clock.advance(timedelta(seconds=30))
    await shop.service.deliver_due()
    assert len(shop.sender.requests) == 6  # one probe, which fails
    shop.clock.advance(timedelta(seconds=30))
    assert await shop.service.deliver_due() == 1  # one probe, which arrives
    assert (await shop.row(endpoint_id)).paused_until is None
    while await shop.service.deliver_due():
        pass
    shop.clock.advance(timedelta(minutes=2))
    await shop.service.deliver_due()
    assert {state for state, _ in await shop.states(endpoint_id)} == {"delivered"}


async def test_pauses_double_while_an_endpoint_keeps_failing() -> None:
    policy = HealthPolicy()
    seconds = [policy.pause(failing_for=timedelta(seconds=s)).total_seconds() for s in (0, 30, 60, 600, 9e5)]
    assert seconds == [30, 30, 60, 600, 900]


async def test_an_endpoint_that_fails_for_too_long_is_disabled_and_that_is_announced_once(shop: Shop) -> None:
    endpoint_id = await shop.add(tenant_id="t1")
    shop.sender.answers[URL] = [REFUSED] * 500
    await shop.publish(*({"n": n} for n in range(8)), tenant_id="t1")
    for _ in range(40):
        await shop.service.deliver_due()
        shop.clock.advance(timedelta(minutes=5))
    row = await shop.row(endpoint_id)
    assert not row.is_enabled
    assert row.disabled_reason == "every attempt failed since 2025-01-01T12:00:00Z"
    assert len(shop.sender.requests) < 30  # the pauses grew
    (announced,) = await shop.published("webhooks.endpoint.disabled")
    assert announced["endpoint_id"] == endpoint_id
    assert {state for state, _ in await shop.states(endpoint_id)} == {"held"}


async def test_retry_after_holds_up_the_whole_endpoint_and_no_other(shop: Shop) -> None:
    endpoint_id = await shop.add()
    await shop.add("https://other.example/")
    shop.sender.answers[URL] = [Answer(429, "120", b"", 1)]
    await shop.publish({"n": 1})
    await shop.service.deliver_due()
    await shop.publish({"n": 2})
    shop.clock.advance(timedelta(seconds=119))
    assert await shop.service.deliver_due() == 1
    assert [one.url for one in shop.sender.requests].count(URL) == 1
    shop.clock.advance(timedelta(seconds=1))
    assert await shop.service.deliver_due() == 2
    assert (await shop.row(endpoint_id)).paused_until is None


async def test_a_delivery_that_is_given_up_is_announced_but_never_an_announcement(
    session_factory: Factory,
) -> None:
    shop = Shop(session_factory, attempts=2)
    await shop.add(tenant_id="t1")
    await shop.add("https://ops.example/", topics=["webhooks.delivery.exhausted"])
    for url in (URL, "https://ops.example/"):
        shop.sender.answers[url] = [REFUSED] * 20
    (message_id,) = await shop.publish({"n": 1}, tenant_id="t1")
    for _ in range(6):
        await shop.service.deliver_due()
        shop.clock.advance(timedelta(minutes=10))
    (announced,) = await shop.published("webhooks.delivery.exhausted")
    assert (announced["message_id"], announced["attempts"], announced["last_outcome"]) == (
        message_id,
        2,
        "connect_error",
    )


# --- order --------------------------------------------------------------------------------------------------


async def test_messages_of_one_key_wait_for_the_one_before_and_other_keys_do_not(shop: Shop) -> None:
    endpoint_id = await shop.add(options=EndpointOptions(ordering="key"))
    await shop.publish({"n": 1}, {"n": 2}, {"n": 3}, key="a")
    await shop.publish({"n": 4}, key="b")
    shop.sender.answers[URL] = [Answer(500, None, b"", 1)]
    await shop.service.deliver_due()
    assert [one["n"] for one in shop.sender.data()] == [1, 4]
    assert await shop.states(endpoint_id) == [
        ("pending", None),
        ("held", "order"),
        ("held", "order"),
        ("delivered", None),
    ]
    shop.clock.advance(timedelta(minutes=1))
    for _ in range(3):
        await shop.service.deliver_due()
    assert [one["n"] for one in shop.sender.data()] == [1, 4, 1, 2, 3]


async def test_a_message_given_up_lets_the_next_of_its_key_go(session_factory: Factory) -> None:
    shop = Shop(session_factory, attempts=1)
    endpoint_id = await shop.add(options=EndpointOptions(ordering="key"))
    await shop.publish({"n": 1}, {"n": 2}, key="a")
    shop.sender.answers[URL] = [REFUSED]
    await shop.service.deliver_due()
    await shop.service.deliver_due()
    assert [state for state, _ in await shop.states(endpoint_id)] == ["dead", "delivered"]


async def test_an_ordered_endpoint_that_was_disabled_goes_on_in_order(shop: Shop) -> None:
    endpoint_id = await shop.add(options=EndpointOptions(ordering="key"))
    await shop.publish({"n": 1}, {"n": 2}, key="a")
    await shop.do(disable_endpoint, endpoint_id, reason="maintenance", now=NOON)
    await shop.publish({"n": 3}, key="a")
    await shop.service.deliver_due()
    await shop.do(enable_endpoint, endpoint_id, now=NOON, replay_held=True)
    for _ in range(3):
        await shop.service.deliver_due()
    assert [one["n"] for one in shop.sender.data()] == [1, 2, 3]


async def test_of_two_deliverers_one_probes_a_paused_endpoint(shop: Shop) -> None:
    await shop.add()
    shop.sender.answers[URL] = [REFUSED] * 8
    await shop.publish(*({"n": n} for n in range(8)))
    await shop.service.deliver_due()
    later = NOON + timedelta(minutes=5)
    arguments = {"now": later, "lease_seconds": 60, "limit": 50, "allowance": 8, "allowances": {}}
    policy = HealthPolicy(pause_after=5)
    first, _ = await shop.do(claim, **arguments, health=policy)
    second, _ = await shop.do(claim, **arguments, health=policy)
    assert (len(first), len(second)) == (1, 0)


@pytest.mark.postgres_only
async def test_of_several_that_disable_an_endpoint_at_once_one_announces_it(shop: Shop) -> None:
    endpoint_id = await shop.add()
    done = await asyncio.gather(
        *(shop.do(disable_endpoint, endpoint_id, reason=f"by {n}", now=NOON) for n in range(5))
    )
    assert sorted(done) == [False] * 4 + [True]
    assert len(await shop.published("webhooks.endpoint.disabled")) == 1


async def test_a_rate_holds_an_endpoint_to_so_many_requests_a_second(shop: Shop) -> None:
    await shop.add(options=EndpointOptions(rate_per_second=50, in_flight_cap=3))
    await shop.publish(*({"n": n} for n in range(6)))
    started = time.monotonic()
    assert await shop.service.deliver_due() == 6
    assert time.monotonic() - started >= 0.09  # the sixth may go a tenth of a second after the first


async def test_an_endpoint_that_slows_down_while_much_is_under_way_is_still_sent_the_rest(shop: Shop) -> None:
    endpoint_id = await shop.add()
    await shop.publish(*({"n": n} for n in range(60)))
    assert await shop.service.deliver_due() == 60
    shop.sender.answers[URL] = [Answer(429, None, b"", 1)] * 4
    await shop.publish(*({"n": n} for n in range(40)))
    async with asyncio.timeout(30):
        assert await shop.service.deliver_due() == 36
    assert [state for state, _ in await shop.states(endpoint_id)].count("pending") == 4


async def test_an_endpoint_that_asks_to_wait_is_not_sent_what_was_claimed_ahead(shop: Shop) -> None:
    await shop.add()
    await shop.publish(*({"n": n} for n in range(60)))
    assert await shop.service.deliver_due() == 60
    shop.sender.requests.clear()
    shop.sender.answers[URL] = [Answer(503, "120", b"", 1)] * 40
    await shop.publish(*({"n": n} for n in range(40)))
    await shop.service.deliver_due()
    assert len(shop.sender.requests) <= 8  # those that were under way
    async with shop.factory() as session:
        waiting = list(await session.scalars(select(DeliveryRow).where(DeliveryRow.state == "pending")))
    assert len(waiting) == 40
    assert min(row.run_at for row in waiting) >= NOON + timedelta(seconds=120)
    assert sum(row.attempt for row in waiting) == len(shop.sender.requests)


async def test_a_paused_endpoint_with_a_long_backlog_hides_nobody(shop: Shop) -> None:
    endpoint_id = await shop.add()
    await shop.add("https://other.example/", topics=["other.topic"])
    await shop.publish(*({"n": n} for n in range(900)))
    await Relay(shop.factory, shop.clock).drain()
    async with shop.factory.begin() as session:
        row = await session.get_one(EndpointRow, endpoint_id)
        row.paused_until, row.failures_in_a_row = NOON + timedelta(hours=1), 50
    shop.clock.advance(timedelta(seconds=1))
    await shop.publish({"n": 1}, topic="other.topic")
    assert await shop.service.deliver_due() == 1
    assert [one.url for one in shop.sender.requests] == ["https://other.example/"]


async def test_a_delivery_whose_senders_all_died_is_announced_too(shop: Shop) -> None:
    await shop.add(tenant_id="t1")
    (message_id,) = await shop.publish({"n": 1}, tenant_id="t1")
    await Relay(shop.factory, shop.clock).drain()
    lost = {"now": NOON, "lease_seconds": -1, "limit": 5, "allowance": 5, "allowances": {}}
    assert len((await shop.do(claim, **lost))[0]) == 1
    assert await shop.do(rescue, now=NOON, max_attempts=1) == 1
    async with shop.factory() as session:
        (attempt,) = await session.scalars(select(DeliveryAttemptRow))
    assert (attempt.attempt, attempt.outcome, attempt.status_code) == (1, "lease_expired", None)
    (announced,) = await shop.published("webhooks.delivery.exhausted")
    assert (announced["message_id"], announced["last_outcome"]) == (message_id, "lease_expired")
    assert announced["tenant_id"] == "t1"


async def test_a_tenant_has_no_more_endpoints_than_the_rules_let_it_have(shop: Shop) -> None:
    rules = EndpointRules(per_tenant=2)
    new = {"url": URL, "topics": ["*"], "rules": rules}
    for tenant_id in ("t1", "t1", "t2", None, None, None):
        await shop.do(add_endpoint, tenant_id=tenant_id, **new)
    with pytest.raises(InvalidEndpoint, match=r"'t1' has 2 endpoints.*webhooks\.endpoints_per_tenant"):
        await shop.do(add_endpoint, tenant_id="t1", **new)
