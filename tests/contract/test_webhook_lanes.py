"""Order within a key as a property: whatever happens in whatever order, no message overtakes another."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import timedelta
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.db.session import make_engine
from svc_infra.ids import new_hex
from svc_infra.webhooks.claimed_delivery import ClaimedDelivery, DeliveryResult
from svc_infra.webhooks.delivery import Answer, RetrySchedule, judge
from svc_infra.webhooks.delivery_claim import claim
from svc_infra.webhooks.delivery_rows import record, rescue
from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.endpoint_switch import disable_endpoint, enable_endpoint
from svc_infra.webhooks.health import HealthPolicy
from svc_infra.webhooks.models import DeliveryRow
from svc_infra.webhooks.relay import relay_pending
from tests.contract.webhook_shop import NOON, Shop

SCHEDULE = RetrySchedule((0, 0, 0), jitter=0)
PATIENT = HealthPolicy(pause_after=1_000_000)
EXPIRED_AT = NOON - timedelta(days=3650)
FINISHED = {"delivered", "dead"}

keys, workers = st.sampled_from("ab"), st.sampled_from([0, 1])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), keys),
        st.tuples(st.just("publish"), keys),
        st.tuples(st.just("relay"), st.integers(1, 4)),
        st.tuples(st.just("claim"), workers),
        st.tuples(st.just("claim"), workers),
        st.tuples(st.just("succeed"), workers),
        st.tuples(st.just("succeed"), workers),
        st.tuples(st.just("fail"), workers),
        st.tuples(st.just("die"), workers),
        st.tuples(st.just("come back"), workers),
        st.tuples(st.just("switch off"), st.none()),
        st.tuples(st.just("switch on"), st.none()),
    ),
    max_size=40,
)


class Lanes:
    """An ordered endpoint and two workers that do one step at a time, watched."""

    def __init__(self, shop: Shop, endpoint_id: str, topic: str) -> None:
        self.shop = shop
        self.endpoint_id = endpoint_id
        self.topic = topic
        self.published: dict[str, list[str]] = defaultdict(list)
        self.in_hand: tuple[list[ClaimedDelivery], list[ClaimedDelivery]] = ([], [])
        self.zombies: tuple[list[ClaimedDelivery], list[ClaimedDelivery]] = ([], [])

    async def do(self, what: str, whom: Any) -> None:
        match what:
            case "publish":
                key = f"{self.topic}-{whom}"
                self.published[key] += await self.shop.publish({"n": 1}, topic=self.topic, key=key)
            case "relay":
                await self.shop.do(relay_pending, now=NOON, limit=whom)
            case "claim":
                await self._claim(whom)
            case "succeed" | "fail":
                if self.in_hand[whom]:
                    mine = self.in_hand[whom].pop(0)
                    assert await self._record(mine, 204 if what == "succeed" else 500) == {mine.id}
            case "die":
                await self._die(whom)
            case "come back":
                for one in self.zombies[whom]:
                    assert await self._record(one, 204) == set()
                self.zombies[whom].clear()
            case "switch off":
                await self.shop.do(disable_endpoint, self.endpoint_id, reason="off", now=NOON)
            case "switch on":
                await self.shop.do(enable_endpoint, self.endpoint_id, now=NOON, replay_held=True)

    async def finish(self) -> None:
        """Let everything end well, which it must."""
        await self.do("switch on", None)
        for _ in range(4 * sum(map(len, self.published.values())) + 4):
            for step in (("relay", 50), ("claim", 0), ("claim", 1)):
                await self.do(*step)
            while self.in_hand[0] or self.in_hand[1]:
                await self.do("succeed", 0)
                await self.do("succeed", 1)
        states = await self._states()
        everything = {id_ for ids in self.published.values() for id_ in ids}
        assert states.keys() == everything
        assert set(states.values()) <= FINISHED

    async def _claim(self, worker: int) -> None:
        claimed, _ = await self.shop.do(
            claim, now=NOON, lease_seconds=3600, limit=3, allowance=3, allowances={}, health=PATIENT
        )
        states = await self._states()
        for one in claimed:
            assert one.lane_key is not None
            ids = self.published[one.lane_key]
            earlier = ids[: ids.index(one.message.id)]
            assert {states[id_] for id_ in earlier} <= FINISHED, "a message overtook another of its key"
        self.in_hand[worker].extend(claimed)
        held = [one.lane_key for one in (*self.in_hand[0], *self.in_hand[1])]
        assert len(held) == len(set(held)), "two messages of one key at the same time"

    async def _die(self, worker: int) -> None:
        self.zombies[worker].extend(self.in_hand[worker])
        lost = [one.id for one in self.in_hand[worker]]
        self.in_hand[worker].clear()
        async with self.shop.factory.begin() as session:
            await session.execute(
                update(DeliveryRow).where(DeliveryRow.id.in_(lost)).values(lease_until=EXPIRED_AT)
            )
        assert await self.shop.do(rescue, now=NOON, max_attempts=SCHEDULE.max_attempts) == len(lost)

    async def _record(self, one: ClaimedDelivery, status: int) -> set[str]:
        answer = Answer(status, None, b"", 1)
        verdict = judge(answer, attempt=one.scheduled_attempt, now=NOON, schedule=SCHEDULE, rng=Random(1))
        result = DeliveryResult(one, answer, verdict, NOON, NOON)
        return await self.shop.do(record, [result], health=PATIENT)

    async def _states(self) -> dict[str, str]:
        query = (
            select(OutboxMessageRow.id, DeliveryRow.state)
            .join(DeliveryRow, DeliveryRow.message_id == OutboxMessageRow.id)
            .where(DeliveryRow.endpoint_id == self.endpoint_id)
        )
        async with self.shop.factory() as session:
            return {id_: state for id_, state in await session.execute(query)}


def test_no_message_overtakes_another_of_its_key(database_url: str) -> None:
    with asyncio.Runner() as runner:
        engine = runner.run(_engine(database_url))
        shop = Shop(async_sessionmaker(engine, expire_on_commit=False))

        @settings(max_examples=15)
        @given(steps=steps)
        def holds(steps: list[tuple[str, Any]]) -> None:
            runner.run(_example(shop, steps))

        try:
            holds()
        finally:
            runner.run(engine.dispose())


async def _engine(url: str) -> AsyncEngine:
    return make_engine(url)


async def _example(shop: Shop, steps: list[tuple[str, Any]]) -> None:
    topic = f"t{new_hex()}"  # one database serves all examples
    endpoint_id = await shop.add(topics=[topic], options=EndpointOptions(ordering="key"))
    lanes = Lanes(shop, endpoint_id, topic)
    for step in steps:
        await lanes.do(*step)
    await lanes.finish()
