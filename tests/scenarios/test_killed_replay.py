"""kill -9 in the middle of a replay: what was queued is sent, and the rest is queued where it stopped."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.db.outbox import SqlOutboxStore
from svc_infra.webhooks.endpoints import SqlWebhookEndpoints, add_endpoint
from svc_infra.webhooks.models import DeliveryRow
from svc_infra.webhooks.relay import Relay
from svc_infra.webhooks.replay import BATCH_SIZE, Replay, list_replays, start_replay
from svc_infra.webhooks.service import Publication, WebhookService
from tests.scenarios.crash_worker import KILLED, Orders, WorkerProcess
from tests.scenarios.world import Endpoint, until

MESSAGES = BATCH_SIZE + 50


@pytest.mark.parametrize(
    ("failpoint", "hit", "parts", "queued"),
    [
        ("before_replay_commit", 2, ("webhook_upkeep",), BATCH_SIZE),
        ("before_send", 3, ("webhook_upkeep", "deliverer"), None),
    ],
)
async def test_a_replay_killed_in_the_middle_goes_on_where_it_was(
    failpoint: str,
    hit: int,
    parts: tuple[str, ...],
    queued: int | None,
    session_factory: async_sessionmaker[AsyncSession],
    database_url: str,
    endpoint: Endpoint,
    tmp_path: Path,
) -> None:
    await _publish_to_nobody(session_factory)
    await _start_replay(session_factory, endpoint)
    before = endpoint.receiver.stats()
    now = datetime.now(UTC)
    orders = Orders(database_url, timedelta(0), now, tmp_path / "log", parts=("webhook_upkeep", "deliverer"))
    dying = replace(orders, failpoint=failpoint, hit=hit, parts=parts, is_short_leased=True)
    with WorkerProcess(dying) as doomed:
        doomed.go()
        assert doomed.exit_code() == KILLED
    assert queued is None or (await _replay(session_factory)).queued == queued
    in_flight = await _count(session_factory, "sending")
    with WorkerProcess(orders) as healthy:
        healthy.go()

        # Asked of the receiver: a look into an SQLite file would keep the worker from writing.
        async def is_over() -> bool:
            return endpoint.receiver.stats().distinct_ids - before.distinct_ids == MESSAGES

        await until(is_over, what=lambda: f"the receiver has {endpoint.receiver.stats()}")
        healthy.stop()
    replay = await _replay(session_factory)
    assert (replay.state, replay.queued) == ("completed", MESSAGES)
    assert await _count(session_factory, "delivered") == MESSAGES
    after = endpoint.receiver.stats()
    assert after.duplicates - before.duplicates <= in_flight
    assert (after.failed, after.changed_bodies) == (before.failed, before.changed_bodies)


async def _publish_to_nobody(factory: async_sessionmaker[AsyncSession]) -> None:
    service = WebhookService(outbox=SqlOutboxStore(), subs=SqlWebhookEndpoints(factory))
    publications = [Publication("shop.order.paid", {"n": n}) for n in range(MESSAGES)]
    async with factory.begin() as session:
        await session.run_sync(lambda sync: service.publish_many(sync, publications))
    assert await Relay(factory).drain() == MESSAGES


async def _start_replay(factory: async_sessionmaker[AsyncSession], endpoint: Endpoint) -> None:
    url, secret = endpoint.receiver.url(endpoint.path), endpoint.secret
    async with factory.begin() as session:
        added = await session.run_sync(lambda sync: add_endpoint(sync, url=url, topics=["*"], secret=secret))
        await session.run_sync(start_replay, added.id, now=datetime.now(UTC), rate_per_second=10_000)


async def _replay(factory: async_sessionmaker[AsyncSession]) -> Replay:
    async with factory() as session:
        (replay,) = await session.run_sync(list_replays)
    return replay


async def _count(factory: async_sessionmaker[AsyncSession], state: str) -> int:
    async with factory() as session:
        query = select(func.count()).select_from(DeliveryRow).where(DeliveryRow.state == state)
        return await session.scalar(query) or 0
