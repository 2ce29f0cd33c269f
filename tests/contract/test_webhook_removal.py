"""Removing an endpoint: what becomes of its deliveries, its secrets, its replays and its row."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select, update

from svc_infra.exceptions import NotFound
from svc_infra.webhooks.audit import list_acts
from svc_infra.webhooks.delivery import SendFailure
from svc_infra.webhooks.delivery_claim import claim
from svc_infra.webhooks.delivery_log import list_attempts
from svc_infra.webhooks.delivery_rows import release
from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.endpoint_removal import remove_endpoint
from svc_infra.webhooks.endpoint_switch import enable_endpoint
from svc_infra.webhooks.endpoints import get_endpoint, list_endpoints
from svc_infra.webhooks.models import DeliveryRow, EndpointRow
from svc_infra.webhooks.redelivery import redeliver
from svc_infra.webhooks.replay import list_replays, start_replay
from svc_infra.webhooks.retention import Retention
from svc_infra.webhooks.upkeep import WebhookUpkeep
from tests.contract.webhook_shop import NOON, URL, Factory, Shop


@pytest.fixture
async def shop(session_factory: Factory) -> Shop:
    return Shop(session_factory)


async def test_a_removed_endpoint_gets_nothing_more_and_keeps_no_secret(shop: Shop) -> None:
    endpoint_id = await shop.add(
        f"{URL}?token=abc", tenant_id="t1", options=EndpointOptions(headers={"authorization": "Bearer abc"})
    )
    await shop.add("https://other.example/")
    shop.sender.answers[f"{URL}?token=abc"] = [SendFailure("connect_error", "refused", 1)]
    await shop.publish({"n": 1}, tenant_id="t1")
    await shop.service.deliver_due()
    await shop.do(start_replay, endpoint_id, now=NOON)
    with pytest.raises(NotFound):
        await shop.do(remove_endpoint, endpoint_id, now=NOON, tenant_id="t2")
    assert await shop.do(remove_endpoint, endpoint_id, now=NOON, tenant_id="t1", actor="ann") == 1
    await shop.publish({"n": 2}, tenant_id="t1")
    shop.clock.advance(timedelta(hours=1))
    await shop.service.deliver_due()
    assert [one.url for one in shop.sender.requests].count(f"{URL}?token=abc") == 1
    assert await shop.states(endpoint_id) == [("dead", None)]
    row = await shop.row(endpoint_id)
    assert (row.secrets, row.headers, row.url) == ([], None, URL)
    assert [one.url for one in await shop.do(list_endpoints)] == ["https://other.example/"]
    assert [one.state for one in await shop.do(list_replays)] == ["cancelled"]
    assert await shop.published("webhooks.delivery.exhausted") == []
    newest = (await shop.do(list_acts, endpoint_id, tenant_id="t1"))[0]
    assert (newest.actor, newest.action, newest.detail) == ("ann", "remove", {"url": URL, "given_up": 1})
    assert await shop.do(list_acts, endpoint_id, tenant_id="t2") == []


async def test_a_removed_endpoint_is_unknown_to_every_command_and_its_history_readable(shop: Shop) -> None:
    endpoint_id = await shop.add(tenant_id="t1")
    await shop.publish({"n": 1}, tenant_id="t1")
    await shop.service.deliver_due()
    async with shop.factory() as session:
        (delivery_id,) = await session.scalars(select(DeliveryRow.id))
    await shop.do(remove_endpoint, endpoint_id, now=NOON)
    for act, arguments in (
        (get_endpoint, [endpoint_id]),
        (enable_endpoint, [endpoint_id]),
        (remove_endpoint, [endpoint_id]),
        (start_replay, [endpoint_id]),
        (redeliver, [delivery_id]),
    ):
        with pytest.raises(NotFound):
            await shop.do(act, *arguments, **({} if act is get_endpoint else {"now": NOON}))
    assert [one.outcome for one in await shop.do(list_attempts, delivery_id)] == ["success"]
    with pytest.raises(NotFound):
        await shop.do(list_attempts, delivery_id, tenant_id="t2")


async def test_what_a_sender_gives_back_after_the_removal_ends_and_then_the_row_goes(shop: Shop) -> None:
    endpoint_id = await shop.add()
    await shop.publish({"n": 1})
    await shop.service._from_database()[0].drain()
    arguments = {"now": NOON, "lease_seconds": 60, "limit": 5, "allowance": 5, "allowances": {}}
    claimed, _ = await shop.do(claim, **arguments)
    assert await shop.do(remove_endpoint, endpoint_id, now=NOON) == 0
    await shop.do(release, claimed)
    await shop.service.deliver_due()
    assert shop.sender.requests == []
    upkeep = WebhookUpkeep(shop.factory, shop.clock, retention=Retention(dead=timedelta(days=9)))
    assert await upkeep.prune() == 0
    assert await shop.states(endpoint_id) == [("dead", None)]
    shop.clock.advance(timedelta(days=10))
    assert (
        await upkeep.prune() == 1 + 1
    )  # the delivery, and the endpoint; its message is younger than 30 days
    async with shop.factory() as session:
        assert list(await session.scalars(select(EndpointRow.id))) == []


async def test_a_relay_that_read_the_endpoint_before_its_removal_sends_nothing(shop: Shop) -> None:
    endpoint_id = await shop.add()
    await shop.publish({"n": 1})
    await shop.service._from_database()[0].drain()
    await shop.do(remove_endpoint, endpoint_id, now=NOON)
    async with shop.factory.begin() as session:  # as that relay would have left it
        await session.execute(update(DeliveryRow).values(state="pending", finished_at=None))
    assert await shop.service.deliver_due() == 0
    assert shop.sender.requests == []
    await WebhookUpkeep(shop.factory, shop.clock).prune()
    assert await shop.states(endpoint_id) == [("dead", None)]
