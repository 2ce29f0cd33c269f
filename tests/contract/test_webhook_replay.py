"""Sending again: one delivery, a span of time, a test event; and deleting what is old."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.exceptions import InvalidEndpoint, NotFound
from svc_infra.webhooks.audit import list_acts
from svc_infra.webhooks.delivery import Answer, SendFailure
from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.endpoint_switch import disable_endpoint, enable_endpoint
from svc_infra.webhooks.models import DeliveryAttemptRow, DeliveryRow
from svc_infra.webhooks.redelivery import redeliver, send_test
from svc_infra.webhooks.replay import MISSING, advance_replay, cancel_replay, list_replays, start_replay
from svc_infra.webhooks.retention import Retention
from svc_infra.webhooks.upkeep import WebhookUpkeep
from tests.contract.webhook_shop import NOON, URL, Factory, Shop

REFUSED = SendFailure("connect_error", "refused", 1)


@pytest.fixture
async def shop(session_factory: Factory) -> Shop:
    return Shop(session_factory, attempts=2)


async def deliveries(shop: Shop) -> list[DeliveryRow]:
    async with shop.factory() as session:
        return list(await session.scalars(select(DeliveryRow).order_by(DeliveryRow.id)))


async def attempts(shop: Shop) -> list[tuple[int, str, str]]:
    async with shop.factory() as session:
        query = select(DeliveryAttemptRow).order_by(DeliveryAttemptRow.attempt)
        return [(row.attempt, row.trigger, row.outcome) for row in await session.scalars(query)]


async def finish_replays(shop: Shop, **named: Any) -> int:
    """Advance every replay to its end; return in how many batches."""
    batches = 0
    while await shop.do(advance_replay, now=shop.clock.now(), **named):
        batches += 1
        shop.clock.advance(timedelta(seconds=60))
    return batches


async def test_a_dead_delivery_is_redelivered_with_a_whole_new_schedule(shop: Shop) -> None:
    endpoint_id = await shop.add(tenant_id="t1")
    shop.sender.answers[URL] = [REFUSED] * 3
    await shop.publish({"n": 1}, tenant_id="t1")
    for _ in range(2):
        await shop.service.deliver_due()
        shop.clock.advance(timedelta(minutes=2))
    (dead,) = await deliveries(shop)
    assert dead.state == "dead"
    with pytest.raises(NotFound, match=f"no delivery '{dead.id}'"):  # and not a word about whose it is
        await shop.do(redeliver, dead.id, now=shop.clock.now(), tenant_id="t2")
    await shop.do(redeliver, dead.id, now=shop.clock.now(), actor="ann")
    assert await shop.service.deliver_due() == 0
    shop.clock.advance(timedelta(minutes=2))
    assert await shop.service.deliver_due() == 1
    assert await attempts(shop) == [
        (1, "scheduled", "connect_error"),
        (2, "scheduled", "connect_error"),
        (3, "manual", "connect_error"),
        (4, "manual", "success"),
    ]
    assert len({(one.headers["webhook-id"], one.body) for one in shop.sender.requests}) == 1
    act = (await shop.do(list_acts, endpoint_id))[0]
    assert (act.actor, act.action, act.detail) == ("ann", "redeliver", {"delivery_id": dead.id})


async def test_nothing_is_redelivered_to_a_disabled_endpoint_and_an_unknown_one_is_named(shop: Shop) -> None:
    endpoint_id = await shop.add()
    await shop.publish({"n": 1})
    await shop.service.deliver_due()
    (delivery,) = await deliveries(shop)
    await shop.do(disable_endpoint, endpoint_id, reason="off", now=NOON)
    with pytest.raises(InvalidEndpoint, match="enable it first"):
        await shop.do(redeliver, delivery.id, now=NOON)
    with pytest.raises(NotFound, match="webhooks deliveries"):
        await shop.do(redeliver, "nowhere", now=NOON)


async def test_a_replay_sends_what_occurred_since_then_in_order_and_at_its_rate(shop: Shop) -> None:
    endpoint_id = await shop.add()
    await shop.publish({"n": 0})
    await shop.service.deliver_due()
    shop.clock.advance(timedelta(hours=1))
    await shop.publish(*({"n": n} for n in range(1, 6)))
    await shop.service.deliver_due()
    shop.sender.requests.clear()
    since = shop.clock.now()
    replay = await shop.do(start_replay, endpoint_id, since=since, now=since, rate_per_second=2)
    assert await shop.do(advance_replay, now=since)
    due = [row.run_at - since for row in await deliveries(shop) if row.state == "pending"]
    assert due == [timedelta(seconds=second) for second in (0, 0.5, 1, 1.5, 2)]
    shop.clock.advance(timedelta(minutes=1))
    assert await shop.service.deliver_due() == 5
    assert [one["n"] for one in shop.sender.data()] == [1, 2, 3, 4, 5]
    (done,) = await shop.do(list_replays)
    assert (done.id, done.state, done.queued) == (replay.id, "completed", 5)
    assert {row.trigger for row in await deliveries(shop)} == {"scheduled", "replay"}


async def test_a_replay_goes_on_where_it_was_and_repeats_nothing(shop: Shop) -> None:
    endpoint_id = await shop.add()
    await shop.publish(*({"n": n} for n in range(7)))
    await shop.service.deliver_due()
    await shop.do(start_replay, endpoint_id, now=NOON, rate_per_second=100)
    async with shop.factory() as session:  # a worker that dies before its commit has done nothing
        await session.run_sync(lambda sync: advance_replay(sync, now=NOON, batch_size=3))
        await session.rollback()
    assert await finish_replays(shop, batch_size=3) == 3
    assert await shop.service.deliver_due() == 7
    assert [one["n"] for one in shop.sender.data()] == [*range(7), *range(7)]


async def test_a_replay_waits_for_its_rate(shop: Shop) -> None:
    endpoint_id = await shop.add()
    await shop.publish(*({"n": n} for n in range(4)))
    await shop.service.deliver_due()
    await shop.do(start_replay, endpoint_id, now=NOON, rate_per_second=0.5)
    assert await shop.do(advance_replay, now=NOON, batch_size=2)
    assert not await shop.do(advance_replay, now=NOON + timedelta(seconds=3.9), batch_size=2)
    assert await shop.do(advance_replay, now=NOON + timedelta(seconds=4), batch_size=2)


async def test_the_rate_of_a_replay_holds_for_an_ordered_endpoint_too(shop: Shop) -> None:
    endpoint_id = await shop.add(options=EndpointOptions(ordering="key"))
    for key in "abc":
        await shop.publish({"key": key}, key=key)
    await shop.service.deliver_due()
    await shop.do(start_replay, endpoint_id, now=NOON, rate_per_second=0.5)
    await shop.do(advance_replay, now=NOON)
    assert [(row.run_at - NOON).total_seconds() for row in await deliveries(shop)] == [0, 2, 4]


async def test_what_was_delivered_is_not_missing_when_that_is_forgotten(shop: Shop) -> None:
    await shop.publish({"n": 1})  # older than both endpoints
    await shop.service.deliver_due()
    shop.clock.advance(timedelta(hours=1))
    endpoint_id = await shop.add(now=shop.clock.now())
    await shop.add("https://fails.example/", now=shop.clock.now())
    shop.sender.answers["https://fails.example/"] = [REFUSED] * 2
    await shop.publish({"n": 2})
    for _ in range(2):
        await shop.service.deliver_due()
        shop.clock.advance(timedelta(minutes=2))
    retention = Retention(delivered=timedelta(days=30), dead=timedelta(days=90))
    upkeep = WebhookUpkeep(shop.factory, shop.clock, retention=retention)
    shop.clock.advance(timedelta(days=31))
    await upkeep.prune()  # the delivery, and the message that nobody had; the other message has a dead one
    assert [row.state for row in await deliveries(shop)] == ["dead"]
    await shop.do(start_replay, endpoint_id, now=shop.clock.now(), states=[MISSING])
    assert await upkeep.advance()
    assert [row.state for row in await deliveries(shop)] == ["dead"]


async def test_a_younger_endpoint_is_sent_what_it_missed_and_wants(shop: Shop) -> None:
    await shop.publish({"n": 1, "plan": "gold"}, {"n": 2, "plan": "tin"}, tenant_id="t1")
    await shop.publish({"n": 3, "plan": "gold"}, tenant_id="t2")
    await shop.publish({"n": 4, "plan": "gold"}, topic="shop.order.sent", tenant_id="t1")
    await shop.service.deliver_due()
    options = EndpointOptions(payload_filter={"plan": "gold"})
    endpoint_id = await shop.add(tenant_id="t1", topics=["shop.*"], options=options)
    await shop.do(start_replay, endpoint_id, now=NOON, states=["dead"])
    await finish_replays(shop)
    assert await shop.service.deliver_due() == 0
    now = shop.clock.now()
    await shop.do(start_replay, endpoint_id, now=now, states=[MISSING], topics=["shop.order.paid"])
    await finish_replays(shop)
    assert await shop.service.deliver_due() == 1
    assert [one["n"] for one in shop.sender.data()] == [1]


async def test_only_dead_ones_are_replayed_if_asked(shop: Shop) -> None:
    endpoint_id = await shop.add()
    shop.sender.answers[URL] = [REFUSED, Answer(200, None, b"", 1), REFUSED]
    await shop.publish({"n": 1})
    await shop.service.deliver_due()
    await shop.publish({"n": 2})
    await shop.service.deliver_due()
    shop.clock.advance(timedelta(minutes=2))
    await shop.service.deliver_due()
    assert [row.state for row in await deliveries(shop)] == ["dead", "delivered"]
    await shop.do(start_replay, endpoint_id, now=shop.clock.now(), states=["dead"])
    await finish_replays(shop)
    assert await shop.service.deliver_due() == 1
    assert [one["n"] for one in shop.sender.data()] == [1, 2, 1, 1]


async def test_a_replay_keeps_the_order_of_keys_and_waits_for_a_disabled_endpoint(shop: Shop) -> None:
    endpoint_id = await shop.add(options=EndpointOptions(ordering="key"))
    await shop.publish({"n": 1}, {"n": 2}, {"n": 3}, key="a")
    for _ in range(3):
        await shop.service.deliver_due()
    await shop.do(disable_endpoint, endpoint_id, reason="off", now=NOON)
    await shop.do(start_replay, endpoint_id, now=NOON)
    assert await shop.do(advance_replay, now=NOON)
    assert [row.state for row in await deliveries(shop)] == ["delivered"] * 3
    await shop.do(enable_endpoint, endpoint_id, now=NOON)
    shop.clock.advance(timedelta(minutes=1))
    await finish_replays(shop)
    for _ in range(3):
        await shop.service.deliver_due()
    assert [one["n"] for one in shop.sender.data()] == [1, 2, 3, 1, 2, 3]


async def test_a_cancelled_replay_queues_nothing_more(shop: Shop) -> None:
    endpoint_id = await shop.add()
    await shop.publish(*({"n": n} for n in range(4)))
    await shop.service.deliver_due()
    replay = await shop.do(start_replay, endpoint_id, now=NOON)
    await shop.do(advance_replay, now=NOON, batch_size=2)
    with pytest.raises(NotFound, match=f"no replay '{replay.id}'"):
        await shop.do(cancel_replay, replay.id, now=NOON, tenant_id="t2")
    assert await shop.do(list_replays, tenant_id="t2") == []
    assert (await shop.do(cancel_replay, replay.id, now=NOON)).state == "cancelled"
    assert await finish_replays(shop) == 0
    assert [act.action for act in await shop.do(list_acts, endpoint_id)] == ["cancel_replay", "replay", "add"]


@pytest.mark.parametrize("wrong", [{"states": ["sending"]}, {"states": []}, {"rate_per_second": 0}])
@pytest.mark.sqlite_only
async def test_a_replay_that_makes_no_sense_is_refused(shop: Shop, wrong: dict[str, Any]) -> None:
    endpoint_id = await shop.add()
    with pytest.raises(InvalidEndpoint):
        await shop.do(start_replay, endpoint_id, now=NOON, **wrong)


async def test_a_test_event_goes_to_its_endpoint_alone_whatever_it_subscribed_to(shop: Shop) -> None:
    endpoint_id = await shop.add()
    await shop.add("https://other.example/", topics=["*", "webhooks.*"])
    message_id = await shop.do(send_test, endpoint_id, now=NOON, actor="ann")
    assert await shop.service.deliver_due() == 1
    (request,) = shop.sender.requests
    assert (request.url, request.headers["webhook-id"]) == (URL, message_id)
    assert json.loads(request.body)["data"] == {"endpoint_id": endpoint_id, "sent_by": "ann"}
    assert [trigger for _, trigger, _ in await attempts(shop)] == ["test"]


async def test_old_deliveries_attempts_and_messages_are_deleted_and_nothing_else(shop: Shop) -> None:
    endpoint_id = await shop.add()
    shop.sender.answers[URL] = [REFUSED, Answer(200, None, b"", 1), REFUSED]
    await shop.publish({"n": 1}, topic="nobody.wants")
    await shop.publish({"n": 2})
    await shop.service.deliver_due()
    await shop.publish({"n": 3})
    await shop.service.deliver_due()
    shop.clock.advance(timedelta(minutes=2))
    await shop.service.deliver_due()  # the first one is dead now
    retention = Retention(delivered=timedelta(days=1), dead=timedelta(days=10))
    upkeep = WebhookUpkeep(shop.factory, shop.clock, retention=retention)
    assert await upkeep.prune() == 0
    shop.clock.advance(timedelta(days=2))
    assert await upkeep.prune() == 1 + 2  # a delivery; its message and the one that nobody wanted
    assert [row.state for row in await deliveries(shop)] == ["dead"]
    shop.clock.advance(timedelta(days=10))
    await shop.service.deliver_due()  # relays the announcement of the dead one, which nobody wants
    assert await upkeep.prune() == 1 + 2
    await shop.do(start_replay, endpoint_id, now=shop.clock.now())
    assert await upkeep.advance()
    shop.clock.advance(timedelta(days=11))
    assert await upkeep.prune() == 1  # the replay
    async with shop.factory() as session:
        for table in (DeliveryRow, DeliveryAttemptRow, OutboxMessageRow):
            assert await session.scalar(select(func.count()).select_from(table)) == 0
