"""Order within a key: whatever fails and whoever sends, a message never overtakes another of its key."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from random import Random

import pytest
from sqlalchemy import select

from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.webhooks.deliverer import Deliverer
from svc_infra.webhooks.delivery import Answer, OutgoingRequest, RetrySchedule, SendResult
from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.health import HealthPolicy
from svc_infra.webhooks.relay import Relay
from tests.contract.webhook_shop import Factory, Shop

KEYS, PER_KEY = "abcd", 12


class Flaky:
    """Fails a third of all requests, and remembers per key what was begun and what arrived."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.begun: dict[str, list[int]] = defaultdict(list)
        self.arrived: dict[str, list[int]] = defaultdict(list)
        self.under_way: set[str] = set()

    async def send(self, request: OutgoingRequest) -> SendResult:
        data = json.loads(request.body)["data"]
        key, n = data["key"], data["n"]
        assert key not in self.under_way, "two messages of one key at the same time"
        self.under_way.add(key)
        self.begun[key].append(n)
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)
        self.under_way.discard(key)
        if self.rng.random() < 0.33:
            return Answer(500, None, b"", 1)
        self.arrived[key].append(n)
        return Answer(204, None, b"", 1)


@pytest.mark.parametrize("seed", range(3))
async def test_keys_are_never_overtaken_with_failures_two_relays_and_two_deliverers(
    session_factory: Factory, seed: int
) -> None:
    rng = Random(seed)
    shop = Shop(session_factory)
    await shop.add(options=EndpointOptions(ordering="key"))
    sender = Flaky(rng)
    deliverers = [
        Deliverer(
            session_factory,
            sender,
            shop.clock,
            schedule=RetrySchedule((0,) * 40, jitter=0),
            health=HealthPolicy(pause_after=1000),
            rng=rng,
        )
        for _ in range(2)
    ]
    relays = [Relay(session_factory, shop.clock, batch_size=5) for _ in range(2)]
    for n in range(PER_KEY):
        for key in KEYS:
            await shop.publish({"key": key, "n": n}, key=key)
        if n % 3 == 2:
            await asyncio.gather(*(relay.drain() for relay in relays), *(one.drain() for one in deliverers))
    for _ in range(KEYS.__len__() * PER_KEY):
        if sum(map(len, sender.arrived.values())) == len(KEYS) * PER_KEY:
            break
        await asyncio.gather(*(one.drain() for one in deliverers))
    assert sender.arrived == {key: list(range(PER_KEY)) for key in KEYS}
    assert all(begun == sorted(begun) for begun in sender.begun.values())


async def test_a_waiting_message_costs_no_claim(session_factory: Factory) -> None:
    shop = Shop(session_factory)
    endpoint_id = await shop.add(options=EndpointOptions(ordering="key"))
    await shop.publish(*({"n": n} for n in range(50)), key="a")
    shop.sender.answers["https://receiver.example/hook"] = [Answer(500, None, b"", 1)]
    for _ in range(5):
        await shop.service.deliver_due()
    assert len(shop.sender.requests) == 1
    assert [state for state, _ in await shop.states(endpoint_id)].count("held") == 49


@pytest.mark.postgres_only
async def test_a_message_waits_for_an_earlier_one_that_another_relay_holds(session_factory: Factory) -> None:
    shop = Shop(session_factory)
    endpoint_id = await shop.add(options=EndpointOptions(ordering="key"))
    first, _ = await shop.publish({"n": 1}, {"n": 2}, key="a")
    relay = Relay(session_factory, shop.clock)
    async with session_factory() as other:
        await other.execute(select(OutboxMessageRow).where(OutboxMessageRow.id == first).with_for_update())
        assert await relay.run_once() == 1
        assert await shop.states(endpoint_id) == [("held", "order")]
        await other.rollback()
    for _ in range(3):
        await shop.service.deliver_due()
    assert [one["n"] for one in shop.sender.data()] == [1, 2]
