"""Which due deliveries a claim finds: the longest due, and behind one endpoint's backlog the others' too."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.clock import FixedClock
from svc_infra.db.outbox import SqlOutboxStore
from svc_infra.webhooks.due_deliveries import Round, lease_due
from svc_infra.webhooks.endpoints import SqlWebhookEndpoints
from svc_infra.webhooks.relay import Relay
from svc_infra.webhooks.service import WebhookService

Factory = async_sessionmaker[AsyncSession]
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


class Shop:
    """Endpoints of a topic each, and what is due for them."""

    def __init__(self, factory: Factory) -> None:
        self.factory = factory
        self.endpoints = SqlWebhookEndpoints(factory)
        self.service = WebhookService(outbox=SqlOutboxStore(), subs=self.endpoints, clock=FixedClock(NOON))

    async def subscribe(self, topic: str) -> str:
        return (await self.endpoints.add(topic, url="http://127.0.0.1:9/")).id

    async def relay(self, *topics: str) -> None:
        """Publish these; they become due after all that was relayed before."""
        async with self.factory.begin() as session:
            for topic in topics:
                self.service.publish(topic, {"n": 1}, session=session)
        await Relay(self.factory, FixedClock(NOON)).drain()

    async def claim(self, **how: Any) -> Counter[str]:
        """Lease some and return how many of which endpoint."""
        arguments: dict[str, Any] = {"limit": 10, "allowance": 4, "allowances": {}, **how}

        def take(session: Session) -> Counter[str]:
            rows = lease_due(session, now=NOON, lease_id="l", lease_seconds=60, **arguments)
            assert len(rows) == len({row.id for row in rows})
            return Counter(row.endpoint_id for row in rows)

        async with self.factory.begin() as session:
            return await session.run_sync(take)


@pytest.fixture
def shop(session_factory: Factory) -> Shop:
    return Shop(session_factory)


async def test_a_backlog_that_may_not_be_sent_yet_hides_nobody_elses_delivery(shop: Shop) -> None:
    rated, other = await shop.subscribe("a.rated"), await shop.subscribe("a.other")
    await shop.relay(*["a.rated"] * 60)
    await shop.relay(*["a.other"] * 3)
    assert await shop.claim(allowances={rated: 1}, limit=10, round_=Round()) == {rated: 1, other: 3}
    assert await shop.claim(allowances={rated: 0}, limit=10, round_=Round()) == {}


async def test_of_no_endpoint_more_is_claimed_than_it_may_have(shop: Shop) -> None:
    ids = [await shop.subscribe(f"a.n{number}") for number in range(3)]
    await shop.relay(*[f"a.n{number}" for number in range(3) for _ in range(9)])
    claimed = await shop.claim(allowances={ids[0]: 2, ids[1]: 0}, limit=20, round_=Round())
    assert claimed == {ids[0]: 2, ids[2]: 4}


async def test_the_rounds_come_to_every_endpoint(shop: Shop) -> None:
    first = await shop.subscribe("a.first")
    others = [await shop.subscribe(f"a.n{number}") for number in range(70)]
    await shop.relay(*["a.first"] * 900)
    await shop.relay(*[f"a.n{number}" for number in range(70)])
    round_, found = Round(), Counter[str]()
    for _ in range(2):
        found += await shop.claim(allowances={first: 0}, limit=200, round_=round_)
    assert found == dict.fromkeys(others, 1)
    assert round_.is_complete


async def test_half_of_a_claim_is_left_to_what_is_longest_due(shop: Shop) -> None:
    first, last = sorted([await shop.subscribe("a.x"), await shop.subscribe("a.y")])
    await shop.relay(*["a.x", "a.y"] * 50)
    claimed = await shop.claim(limit=4, round_=Round())
    assert claimed.total() == 4
    assert set(claimed) == {first, last}


async def test_neither_way_reads_the_whole_table(shop: Shop, engine: AsyncEngine, target: str) -> None:
    for number in range(5):
        await shop.subscribe(f"a.n{number}")
    await shop.relay(*[f"a.n{number % 5}" for number in range(3_000)])
    async with shop.factory.begin() as session:
        await session.execute(text("UPDATE webhook_deliveries SET state = 'delivered'"))
    # Nearly all that waits is one endpoint's, which the planner knows.
    await shop.relay(*["a.n0"] * 2_000, *[f"a.n{number % 5}" for number in range(20)])
    async with shop.factory.begin() as session:
        await session.execute(text("ANALYZE"))
    plans: list[str] = []

    def note(connection: Any, cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        if sql.startswith(("WITH", "UPDATE")):
            asked = connection.connection.cursor()
            asked.execute(("EXPLAIN QUERY PLAN " if target == "sqlite" else "EXPLAIN ") + sql, parameters)
            plans.append("\n".join(str(row[-1]) for row in asked.fetchall()))
            asked.close()

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    await shop.claim(round_=Round())
    event.remove(engine.sync_engine, "before_cursor_execute", note)
    assert len(plans) == 3
    for plan in plans:
        assert "Seq Scan on webhook_deliveries" not in plan, plan
        assert "SCAN webhook_deliveries" not in plan.replace("SCAN webhook_deliveries USING", ""), plan
    assert "ix_webhook_deliveries_of_endpoint" in plans[0]
    assert "ix_webhook_deliveries_pending" not in plans[0]
    assert "ix_webhook_deliveries_endpoint_id" not in plans[0]
    assert "ix_webhook_deliveries_pending" in plans[2]
