"""Each wall of the webhooks alone: with it taken away, the test that names it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import literal, null, select, text, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from svc_infra.db import outbox
from svc_infra.db.outbox import SqlOutboxStore
from svc_infra.testing.webhooks import loopback_sender
from svc_infra.webhooks import delivery_rows, endpoint_switch, ordering, relay
from svc_infra.webhooks.models import DeliveryRow, EndpointRow
from tests.contract import test_delivery, test_outbox, test_webhook_endpoints
from tests.contract.webhook_shop import Factory, Shop


@dataclass(frozen=True)
class Wall:
    """A wall, how to take it away, and the test that must then fail."""

    name: str
    take_away: Callable[[pytest.MonkeyPatch, Factory], Awaitable[None]]
    test: Callable[[Factory], Awaitable[None]]


async def _no_fence(patch: pytest.MonkeyPatch, _factory: Factory) -> None:
    patch.setattr(delivery_rows, "is_held", lambda table, claims, *, running: table.c.id == claims.c.id)
    _forget_statements()


def _forget_statements() -> None:
    delivery_rows._record.cache_clear()
    delivery_rows._rescue.cache_clear()


async def _no_unique_delivery(patch: pytest.MonkeyPatch, factory: Factory) -> None:
    def insert_all(dialect: str) -> Any:
        rows = relay._FAN_OUT.table(dialect)
        into = (postgresql if dialect == "postgresql" else sqlite).insert(DeliveryRow.__table__)
        now = relay.bindparam("now", type_=relay.UtcDateTime)
        names = [*relay._FAN_OUT.columns, "run_at", "created_at", "attempt", "rescues"]
        return into.from_select(names, select(*rows.c, now, now, literal(0), literal(0)).where(true()))

    patch.setattr(relay, "_insert_deliveries", insert_all)
    async with factory.begin() as session:
        await session.execute(text("DROP INDEX uq_webhook_deliveries_message_id"))


async def _no_waiting_in_a_lane(patch: pytest.MonkeyPatch, _factory: Factory) -> None:
    def promote_all(_dialect: str) -> Any:
        now = ordering.bindparam("now", type_=ordering.UtcDateTime)
        is_waiting = DeliveryRow.hold_reason == ordering.HELD_FOR_ORDER
        made_due = {"state": "pending", "hold_reason": null(), "run_at": now}
        return update(DeliveryRow).where(is_waiting).values(made_due).returning(DeliveryRow.id)

    patch.setattr(ordering, "_promote", promote_all)


async def _no_idempotency_key(patch: pytest.MonkeyPatch, _factory: Factory) -> None:
    patch.setattr(outbox, "_digest_of", lambda _message: None)


async def _disable_whatever_it_is(patch: pytest.MonkeyPatch, _factory: Factory) -> None:
    patch.setattr(endpoint_switch, "is_still_enabled", lambda: EndpointRow.id.is_not(None))


async def _fenced(factory: Factory) -> None:
    async with _world(factory) as world:
        await test_delivery.test_a_deliverer_whose_lease_was_rescued_changes_nothing(world, factory)


async def _once_per_endpoint(factory: Factory) -> None:
    test = test_delivery.test_relays_at_the_same_time_make_one_delivery_for_each_message
    async with _world(factory) as world:
        await test(world, factory)


async def _never_overtaken(factory: Factory) -> None:
    test = test_webhook_endpoints.test_messages_of_one_key_wait_for_the_one_before_and_other_keys_do_not
    await test(Shop(factory))


async def _one_fact_once(factory: Factory) -> None:
    await test_outbox.test_one_fact_is_published_once_and_a_duplicate_ends_nobodys_transaction(
        SqlOutboxStore(), factory
    )


async def _announced_once(factory: Factory) -> None:
    await test_webhook_endpoints.test_disabling_is_announced_once_to_those_who_asked_for_it(Shop(factory))


@asynccontextmanager
async def _world(factory: Factory) -> AsyncIterator[test_delivery.World]:
    sender = loopback_sender()
    try:
        yield test_delivery.World(factory, sender)
    finally:
        await sender.aclose()


WALLS = [
    Wall("the fence of a delivery", _no_fence, _fenced),
    Wall("one delivery per message and endpoint", _no_unique_delivery, _once_per_endpoint),
    Wall("the block of a lane", _no_waiting_in_a_lane, _never_overtaken),
    Wall("the idempotency key", _no_idempotency_key, _one_fact_once),
    Wall("the condition of disabling", _disable_whatever_it_is, _announced_once),
]


@pytest.fixture
def _fresh_statements() -> Iterator[None]:
    yield
    _forget_statements()


@pytest.mark.usefixtures("_fresh_statements")
@pytest.mark.parametrize("wall", WALLS, ids=lambda wall: wall.name.replace(" ", "-"))
async def test_without_a_wall_its_test_fails(
    wall: Wall, session_factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await wall.take_away(monkeypatch, session_factory)
    # Without the fence, the attempt that a rescue has recorded is in the way of the late one.
    with pytest.raises((AssertionError, IntegrityError)):
        await wall.test(session_factory)
