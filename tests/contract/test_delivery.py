"""What delivery promises, in memory, on SQLite and on PostgreSQL, over real HTTP to a foreign verifier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.clock import FixedClock
from svc_infra.db.outbox import InMemoryOutboxStore, OutboxMessageRow, SqlOutboxStore
from svc_infra.testing.webhooks import loopback_sender
from svc_infra.webhooks.claimed_delivery import ClaimedDelivery, DeliveryResult
from svc_infra.webhooks.deliverer import Deliverer
from svc_infra.webhooks.delivery import Answer, RetrySchedule, judge
from svc_infra.webhooks.delivery_claim import claim
from svc_infra.webhooks.delivery_rows import record, rescue
from svc_infra.webhooks.due_deliveries import Round
from svc_infra.webhooks.endpoint_switch import disable_endpoint
from svc_infra.webhooks.endpoints import SqlWebhookEndpoints, get_endpoint
from svc_infra.webhooks.models import DeliveryAttemptRow, DeliveryRow
from svc_infra.webhooks.relay import Relay
from svc_infra.webhooks.service import InMemoryWebhookSubscriptions, WebhookService
from svc_infra.webhooks.signature import new_secret
from svc_infra.webhooks.transport import HttpSender
from tests.contract.scripted_receiver import ScriptedReceiver
from tests.scenarios.world import until

Factory = async_sessionmaker[AsyncSession]
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
SECRET = new_secret()
SCHEDULE = RetrySchedule((0, 60, 60), jitter=0)
TOPIC = "billing.usage_aggregated"

every_store = pytest.mark.parametrize("target", ["memory", "sqlite", "postgres"], indirect=True)


@dataclass
class World:
    """One service on one kind of store, and how to look at it."""

    factory: Factory | None
    sender: HttpSender
    clock: FixedClock = field(default_factory=lambda: FixedClock(NOON))

    def __post_init__(self) -> None:
        self.memory = InMemoryWebhookSubscriptions()
        self.outbox = SqlOutboxStore() if self.factory else InMemoryOutboxStore()
        self.service = WebhookService(
            outbox=self.outbox,
            subs=SqlWebhookEndpoints(self.factory) if self.factory else self.memory,
            clock=self.clock,
            sender=self.sender,
            schedule=SCHEDULE,
        )

    async def subscribe(self, pattern: str, url: str, tenant_id: str | None = None) -> str:
        if self.factory is None:
            return self.memory.add(pattern, url=url, secret=SECRET, tenant_id=tenant_id).id
        endpoints = SqlWebhookEndpoints(self.factory)
        return (await endpoints.add(pattern, url=url, secret=SECRET, tenant_id=tenant_id)).id

    async def publish(self, *topics: str, tenant_id: str | None = None) -> list[str]:
        if self.factory is None:
            return [self.service.publish(topic, {"n": 1}, tenant_id=tenant_id) for topic in topics]
        async with self.factory.begin() as session:
            return [
                self.service.publish(topic, {"n": 1}, tenant_id=tenant_id, session=session)
                for topic in topics
            ]

    async def states(self) -> list[str]:
        if self.factory is None:
            assert self.service._memory is not None
            return sorted(one.state.value for one in self.service._memory.deliveries)
        async with self.factory() as session:
            return list(await session.scalars(select(DeliveryRow.state).order_by(DeliveryRow.state)))

    async def outcomes(self) -> list[str]:
        if self.factory is None:
            assert self.service._memory is not None
            return [
                one.outcome.value for delivery in self.service._memory.deliveries for one in delivery.attempts
            ]
        async with self.factory() as session:
            query = select(DeliveryAttemptRow.outcome).order_by(
                DeliveryAttemptRow.delivery_id, DeliveryAttemptRow.attempt
            )
            return list(await session.scalars(query))

    async def message_ids(self) -> list[str]:
        if self.factory is None:
            return [one.id for one in cast(InMemoryOutboxStore, self.outbox).messages]
        async with self.factory() as session:
            return list(await session.scalars(select(OutboxMessageRow.id)))


@pytest.fixture
async def sender() -> AsyncIterator[HttpSender]:
    sender = loopback_sender()
    yield sender
    await sender.aclose()


@pytest.fixture
def world(target: str, request: pytest.FixtureRequest, sender: HttpSender) -> World:
    return World(None if target == "memory" else request.getfixturevalue("session_factory"), sender)


@pytest.fixture
async def receiver() -> AsyncIterator[ScriptedReceiver]:
    async with ScriptedReceiver(SECRET) as receiver:
        yield receiver


@every_store
async def test_a_published_message_arrives_once_however_often_delivery_runs(
    world: World, receiver: ScriptedReceiver
) -> None:
    await world.subscribe(TOPIC, receiver.url())
    (message_id,) = await world.publish(TOPIC)
    assert [await world.service.deliver_due() for _ in range(3)] == [1, 0, 0]
    (received,) = receiver.received
    assert received.webhook_id == message_id
    assert (
        received.body == b'{"type":"%s","timestamp":"2025-01-01T12:00:00Z","data":{"n":1}}' % TOPIC.encode()
    )
    assert (await world.states(), await world.outcomes()) == (["delivered"], ["success"])


@every_store
async def test_a_message_goes_to_every_endpoint_that_wants_it_and_to_no_other(
    world: World, receiver: ScriptedReceiver
) -> None:
    await world.subscribe(TOPIC, receiver.url("/exact"))
    await world.subscribe("billing.*", receiver.url("/below"), tenant_id="t1")
    await world.subscribe("*", receiver.url("/other-tenant"), tenant_id="t2")
    await world.subscribe("billing.invoice.created", receiver.url("/other-topic"))
    await world.publish(TOPIC, tenant_id="t1")
    assert await world.service.deliver_due() == 2
    assert receiver.paths() == {"/exact": 1, "/below": 1}


@every_store
async def test_a_failed_delivery_is_sent_again_with_the_same_id_and_bytes_when_it_is_due(
    world: World, receiver: ScriptedReceiver
) -> None:
    receiver.answers["/"] = [500, 301]
    await world.subscribe(TOPIC, receiver.url())
    await world.publish(TOPIC)
    assert await world.service.deliver_due() == 0
    world.clock.advance(timedelta(seconds=59))
    assert await world.service.deliver_due() == 0
    assert len(receiver.received) == 1
    world.clock.advance(timedelta(seconds=1))
    assert await world.service.deliver_due() == 0
    world.clock.advance(timedelta(seconds=60))
    assert await world.service.deliver_due() == 1
    assert len(receiver.received) == 3
    assert len({(one.webhook_id, one.body) for one in receiver.received}) == 1
    assert await world.outcomes() == ["server_error", "redirect", "success"]
    assert await world.states() == ["delivered"]


@every_store
async def test_a_delivery_is_dead_when_its_schedule_is_used_up(
    world: World, receiver: ScriptedReceiver
) -> None:
    receiver.answers["/"] = [500] * 9
    await world.subscribe(TOPIC, receiver.url())
    await world.publish(TOPIC)
    for _ in range(5):
        assert await world.service.deliver_due() == 0
        world.clock.advance(timedelta(hours=1))
    assert await world.states() == ["dead"]
    assert await world.outcomes() == ["server_error"] * 3
    assert len(receiver.received) == 3


@every_store
async def test_an_endpoint_that_is_gone_gets_nothing_more_and_its_messages_are_held(
    world: World, receiver: ScriptedReceiver
) -> None:
    receiver.answers["/gone"] = [410]
    await world.subscribe(TOPIC, receiver.url("/gone"))
    await world.subscribe(TOPIC, receiver.url("/well"))
    await world.publish(TOPIC)
    await world.service.deliver_due()
    await world.publish(TOPIC)
    assert await world.service.deliver_due() == 1
    assert receiver.paths() == {"/gone": 1, "/well": 2}
    assert await world.states() == ["dead", "delivered", "delivered", "held"]


@every_store
async def test_a_message_that_nobody_wants_is_kept_and_never_sent_to_a_later_endpoint(
    world: World, receiver: ScriptedReceiver
) -> None:
    ids = await world.publish(TOPIC)
    assert await world.service.deliver_due() == 0
    await world.subscribe(TOPIC, receiver.url())
    assert await world.service.deliver_due() == 0
    assert (await world.message_ids(), await world.states()) == (ids, [])


@every_store
async def test_a_connection_refused_is_a_failure_like_any_other(world: World) -> None:
    async with ScriptedReceiver(SECRET) as receiver:
        url = receiver.url()
    await world.subscribe(TOPIC, url)
    await world.publish(TOPIC)
    assert await world.service.deliver_due() == 0
    assert (await world.states(), await world.outcomes()) == (["pending"], ["connect_error"])


async def test_relays_at_the_same_time_make_one_delivery_for_each_message(
    world: World, session_factory: Factory
) -> None:
    await world.subscribe(TOPIC, "http://127.0.0.1:9/")
    ids = await world.publish(*[TOPIC] * 90)
    relays = [Relay(session_factory, world.clock, batch_size=7) for _ in range(3)]
    assert sum(await asyncio.gather(*(relay.drain() for relay in relays))) == 90
    async with session_factory.begin() as session:
        await session.execute(update(OutboxMessageRow).values(state="pending"))
    assert await relays[0].drain() == 90
    async with session_factory() as session:
        rows = list(await session.scalars(select(DeliveryRow)))
    assert sorted(row.message_id for row in rows) == sorted(ids)
    assert {row.run_at for row in rows} == {NOON}


async def test_deliverers_at_the_same_time_send_each_message_once(
    world: World, session_factory: Factory, receiver: ScriptedReceiver
) -> None:
    await world.subscribe(TOPIC, receiver.url())
    await world.publish(*[TOPIC] * 300)
    await Relay(session_factory, world.clock).drain()
    deliverers = [Deliverer(session_factory, world.sender, world.clock) for _ in range(3)]
    await asyncio.gather(*(deliverer.run_once() for deliverer in deliverers))
    await deliverers[0].drain()
    assert len(receiver.received) == 300
    assert await world.states() == ["delivered"] * 300


async def test_an_endpoint_that_hangs_delays_no_other_and_what_was_not_sent_is_given_back(
    world: World, session_factory: Factory, receiver: ScriptedReceiver
) -> None:
    await world.subscribe("a.hangs", receiver.url("/hangs"))
    await world.subscribe("a.works", receiver.url("/works"))
    deliverer = Deliverer(session_factory, world.sender, world.clock, in_flight=8, per_endpoint=4)
    await world.publish(*["a.hangs"] * 30)
    await Relay(session_factory, world.clock).drain()
    assert await deliverer.drain() == 30  # so it is claimed ahead from now on
    receiver.hanging["/hangs"] = asyncio.Event()
    await world.publish(*["a.hangs"] * 100)
    await world.publish(*["a.works"] * 100)
    await Relay(session_factory, world.clock).drain()
    stop = asyncio.Event()
    running = asyncio.create_task(deliverer.run(stop))
    await receiver.wait_for("/works", 100)
    assert receiver.paths() == {"/hangs": 30 + 4, "/works": 100}
    stop.set()
    receiver.hanging["/hangs"].set()
    await running
    async with session_factory() as session:
        rows = list(await session.scalars(select(DeliveryRow)))
    sent = receiver.paths().total()
    assert sum(row.state == "delivered" for row in rows) == sent
    unsent = [row for row in rows if row.state != "delivered"]
    assert {(row.state, row.attempt, row.lease_id) for row in unsent} == {("pending", 0, None)}


async def test_a_deliverer_whose_lease_was_rescued_changes_nothing(
    world: World, session_factory: Factory
) -> None:
    endpoint_id = await world.subscribe(TOPIC, "http://127.0.0.1:9/")
    await world.publish(TOPIC)
    await Relay(session_factory, world.clock).drain()
    (stale,) = await claimed(session_factory, lease_seconds=-1)
    async with session_factory.begin() as session:
        assert await session.run_sync(rescue, now=NOON, max_attempts=3) == 1
    (fresh,) = await claimed(session_factory, lease_seconds=60)
    async with session_factory.begin() as session:
        assert await session.run_sync(record, [finished(stale, status=410)]) == set()
    async with session_factory() as session:
        row = await session.get_one(DeliveryRow, fresh.id)
        assert (row.state, row.lease_id, row.attempt, row.rescues) == ("sending", fresh.lease_id, 2, 1)
        assert (await session.run_sync(get_endpoint, endpoint_id)).is_enabled
    assert await world.outcomes() == ["lease_expired"]
    async with session_factory.begin() as session:
        assert await session.run_sync(record, [finished(fresh, status=200)]) == {fresh.id}
    assert (await world.states(), await world.outcomes()) == (["delivered"], ["lease_expired", "success"])


async def test_a_delivery_that_is_still_leased_is_not_rescued_and_one_used_up_ends_dead(
    world: World, session_factory: Factory
) -> None:
    await world.subscribe(TOPIC, "http://127.0.0.1:9/")
    await world.publish(TOPIC, TOPIC)
    await Relay(session_factory, world.clock).drain()
    await claimed(session_factory, lease_seconds=60, limit=1)
    await claimed(session_factory, lease_seconds=-1, limit=1)
    async with session_factory.begin() as session:
        assert await session.run_sync(rescue, now=NOON, max_attempts=1) == 1
    assert await world.states() == ["dead", "sending"]


async def test_what_was_relayed_to_an_endpoint_disabled_meanwhile_is_held_and_not_sent(
    world: World, session_factory: Factory
) -> None:
    endpoint_id = await world.subscribe(TOPIC, "http://127.0.0.1:9/")
    await world.publish(TOPIC)
    await Relay(session_factory, world.clock).drain()
    async with session_factory.begin() as session:
        assert await session.run_sync(disable_endpoint, endpoint_id, reason="asked to")
        assert not await session.run_sync(disable_endpoint, endpoint_id, reason="asked twice")
    assert await world.states() == ["held"]
    async with session_factory.begin() as session:
        # A relay that had read the endpoint before it was disabled.
        await session.execute(update(DeliveryRow).values(state="pending"))
    assert await claimed(session_factory, lease_seconds=60) == []
    async with session_factory() as session:
        (row,) = await session.scalars(select(DeliveryRow))
    assert (row.state, row.attempt, row.lease_id) == ("held", 0, None)


async def test_what_a_relay_makes_beside_a_deliverer_is_sent_without_another_claim(
    world: World, receiver: ScriptedReceiver, sender: HttpSender, session_factory: Factory
) -> None:
    await world.subscribe(TOPIC, receiver.url("/hook"))
    deliverer, stop = Deliverer(session_factory, sender, world.clock, poll_seconds=3600), asyncio.Event()
    relay = Relay(session_factory, world.clock, deliverer=deliverer)
    running = asyncio.create_task(deliverer.run(stop))
    await world.publish(TOPIC)
    await relay.run_once()

    async def is_idle() -> bool:
        return await world.states() == ["delivered"]

    await until(is_idle, what=lambda: "the first is not recorded")
    woken: list[bool] = []
    deliverer.wake = lambda: woken.append(True)  # type: ignore[method-assign]
    await world.publish(TOPIC)
    await relay.run_once()
    await receiver.wait_for("/hook", 2)
    assert woken == []
    stop.set()
    await running
    assert await world.states() == ["delivered"] * 2


async def test_a_deliverer_that_stops_takes_nothing_over(world: World, session_factory: Factory) -> None:
    await world.subscribe(TOPIC, "http://127.0.0.1:9/")
    deliverer, stop = Deliverer(session_factory, world.sender, world.clock), asyncio.Event()
    stop.set()
    await deliverer.run(stop)
    await world.publish(TOPIC)
    assert await Relay(session_factory, world.clock, deliverer=deliverer).run_once() == 1
    assert await world.states() == ["pending"]


async def test_no_more_is_claimed_of_an_endpoint_than_it_may_have(
    world: World, session_factory: Factory
) -> None:
    full = await world.subscribe("a.full", "http://127.0.0.1:9/")
    other = await world.subscribe("a.other", "http://127.0.0.1:9/")
    await world.publish(*["a.full"] * 50)
    await Relay(session_factory, world.clock).drain()
    await world.publish(*["a.other"] * 50)
    await Relay(session_factory, world.clock).drain()
    first = await claimed(session_factory, lease_seconds=60, limit=10, allowance=4)
    assert [one.endpoint_id for one in first] == [full] * 4
    more = {"allowance": 4, "allowances": {full: 0}, "round_": Round()}
    second = await claimed(session_factory, lease_seconds=60, limit=10, **more)
    assert [one.endpoint_id for one in second] == [other] * 4


async def claimed(factory: Factory, *, lease_seconds: float, **more: Any) -> list[ClaimedDelivery]:
    arguments: dict[str, Any] = {"limit": 10, "allowance": 10, "allowances": {}, **more}

    def take(session: Session) -> list[ClaimedDelivery]:
        return claim(session, now=NOON, lease_seconds=lease_seconds, **arguments)[0]

    async with factory.begin() as session:
        return await session.run_sync(take)


def finished(delivery: ClaimedDelivery, *, status: int) -> DeliveryResult:
    answer = Answer(status, None, b"", 3)
    verdict = judge(answer, attempt=delivery.attempt, now=NOON, schedule=SCHEDULE, rng=cast(Any, None))
    return DeliveryResult(delivery, answer, verdict, NOON, NOON)
