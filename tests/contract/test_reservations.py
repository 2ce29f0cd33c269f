"""Reserving quotas: atomic at any concurrency, given back or kept, renewed, watched."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.billing.aggregation import DayKey, recompute
from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.entitlements import (
    Reservation,
    Window,
    commit,
    feature_of,
    has_feature,
    prune_reservations,
    quota_of,
    release,
    reserve,
)
from svc_infra.billing.jobs import enqueue_aggregate_daily, make_billing_job_handler
from svc_infra.billing.models import Tenant
from svc_infra.billing.periods import day_bounds
from svc_infra.billing.quota_listing import Entitled, list_entitled
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.clock import FixedClock
from svc_infra.db.outbox import OutboxMessageRow, SqlOutboxStore
from svc_infra.exceptions import InvalidUsage, NotFound, QuotaExceeded
from svc_infra.jobs import SqlJobQueue, process_one
from svc_infra.webhooks.endpoints import SqlWebhookEndpoints
from svc_infra.webhooks.service import WebhookService

Sessions = async_sessionmaker[AsyncSession]

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
NOW = datetime(2025, 1, 15, 12, tzinfo=UTC)
CATALOG = """
[[plans]]
key = "pro"
default = true
entitlements = [
    { key = "reports", limit = 10, window = "day", alerts = [50, 80, 100] },
    { key = "tokens", limit = 100, window = "month" },
    { key = "exports", limit = 1, window = "day", soft = true },
    { key = "calls", limit = "unlimited", window = "day" },
    { key = "sso", value = true },
    { key = "seats", value = 5 },
]
[[plans]]
key = "extra"
entitlements = [{ key = "seats", value = 9 }, { key = "beta", value = false }]
"""


@pytest.fixture(autouse=True)
async def _catalog(session_factory: Sessions) -> None:
    async with session_factory.begin() as session:
        await session.run_sync(apply_catalog, parse_catalog(CATALOG), now=JANUARY)
        await session.run_sync(subscribe_many, [NewSubscription("t1", "pro", JANUARY)], now=JANUARY)


async def do(sessions: Sessions, act: Any, *args: Any, **options: Any) -> Any:
    async with sessions.begin() as session:
        return await session.run_sync(act, *args, **options)


async def take(
    sessions: Sessions, key: str = "reports", amount: Any = 1, *, now: datetime = NOW, **options: Any
) -> Reservation:
    reservation: Reservation = await do(sessions, reserve, "t1", key, amount, now=now, **options)
    return reservation


async def used(sessions: Sessions, key: str = "reports", window: Window = "day") -> Decimal:
    quota = await do(sessions, quota_of, "t1", key, window, now=NOW)
    return Decimal(quota.used)


async def use(sessions: Sessions, amount: str, at: datetime = NOW, key: str = "reports") -> None:
    await do(sessions, record_many, [NewUsage("t1", key, Decimal(amount), at, f"{at}")], now=NOW)


async def test_of_200_at_once_on_a_limit_of_100_exactly_100_pass(session_factory: Sessions) -> None:
    await use(session_factory, "0.5", key="tokens")
    tries = [take(session_factory, "tokens", "0.995", window="month") for _ in range(200)]
    passed = [each for each in await asyncio.gather(*tries, return_exceptions=True) if _is_reserved(each)]
    assert len(passed) == 100
    assert await used(session_factory, "tokens", "month") == Decimal("100.000")


def _is_reserved(answer: Any) -> bool:
    if not isinstance(answer, Reservation | QuotaExceeded):
        raise answer
    return isinstance(answer, Reservation)


@pytest.mark.postgres_only
async def test_who_waits_for_a_window_counts_the_usage_of_the_one_before(session_factory: Sessions) -> None:
    """The wall is the lock in a statement of its own: without it the waiting one misses the event."""
    held = await take(session_factory, amount=10)
    async with session_factory.begin() as session:
        usage = [NewUsage("t1", "reports", Decimal(10), NOW, "k")]
        await session.run_sync(record_many, usage, now=NOW)
        await session.run_sync(commit, "t1", held.id, is_recorded=True)
        waiting = asyncio.create_task(take(session_factory))
        await _until_somebody_waits(session_factory)
    with pytest.raises(QuotaExceeded):
        await waiting


async def _until_somebody_waits(sessions: Sessions) -> None:
    async with sessions() as session, asyncio.timeout(20):
        is_waiting = text("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)")
        while not await session.scalar(is_waiting):
            pass


async def test_what_is_released_or_expires_can_be_taken_again(session_factory: Sessions) -> None:
    first = await take(session_factory, amount=4)
    await take(session_factory, amount=6, lives_seconds=60)
    await do(session_factory, release, "t1", first.id)
    await do(session_factory, release, "t1", first.id)
    await take(session_factory, amount=4)
    with pytest.raises(QuotaExceeded):
        await take(session_factory, now=NOW + timedelta(seconds=59))
    await take(session_factory, amount=6, now=NOW + timedelta(seconds=60))
    assert await used(session_factory) == 10


async def test_what_is_committed_stays_once_however_often_and_late(session_factory: Sessions) -> None:
    held = await take(session_factory, amount=10, lives_seconds=60)
    later = NOW + timedelta(seconds=60)
    await take(session_factory, amount=10, now=later)  # the first has expired by now
    await do(session_factory, commit, "t1", held.id)
    await do(session_factory, commit, "t1", held.id)
    assert await used(session_factory) == 20
    with pytest.raises(QuotaExceeded, match="was committed before"):
        await do(session_factory, release, "t1", held.id)


async def test_less_than_was_reserved_may_be_committed(session_factory: Sessions) -> None:
    held = await take(session_factory, amount=10)
    await do(session_factory, commit, "t1", held.id, amount="2.5")
    assert await used(session_factory) == Decimal("2.5")


async def test_a_rolled_back_reservation_took_nothing(session_factory: Sessions) -> None:
    async with session_factory() as session:
        await session.run_sync(reserve, "t1", "reports", now=NOW)
    assert await used(session_factory) == 0


async def test_a_reservation_of_another_tenant_is_not_found(session_factory: Sessions) -> None:
    held = await take(session_factory)
    for end in (commit, release):
        with pytest.raises(NotFound):
            await do(session_factory, end, "t2", held.id)


async def test_a_window_is_the_tenants_own_day_and_month(session_factory: Sessions) -> None:
    async with session_factory.begin() as session:
        session.add(Tenant(tenant_id="t2", timezone="America/New_York", created_at=JANUARY))
        new_york = datetime(2025, 1, 1, 5, tzinfo=UTC)
        await session.flush()
        await session.run_sync(subscribe_many, [NewSubscription("t2", "pro", new_york)], now=NOW)
    before = datetime(2025, 2, 1, 4, 59, tzinfo=UTC)
    for at, window, key, amount in (
        (before, "day", "reports", 10),
        (before, "month", "tokens", 100),
    ):
        await do(session_factory, reserve, "t2", key, amount, window=window, now=at)
        with pytest.raises(QuotaExceeded):
            await do(session_factory, reserve, "t2", key, window=window, now=at)
        await do(session_factory, reserve, "t2", key, amount, window=window, now=at + timedelta(minutes=1))


async def test_a_tenant_that_moved_to_another_zone_takes_of_the_new_days(session_factory: Sessions) -> None:
    """What is believed of a tenant's zone is checked by the statement that takes."""
    for zone, start in (("Asia/Tokyo", 15), ("UTC", 0), ("Asia/Tokyo", 15)):
        async with session_factory.begin() as session:
            await session.merge(Tenant(tenant_id="t1", timezone=zone, created_at=JANUARY))
        for _ in range(2):
            assert (await take(session_factory)).quota.period.start.hour == start


@pytest.mark.postgres_only
async def test_nobody_waits_for_a_reservation_that_is_being_committed(session_factory: Sessions) -> None:
    """Who holds the window would wait for who commits, who may want the window next: a deadlock."""
    first = await take(session_factory, amount=10, lives_seconds=1)
    later = NOW + timedelta(minutes=1)
    async with session_factory.begin() as committing:
        await committing.run_sync(commit, "t1", first.id)
        async with asyncio.timeout(10):
            with pytest.raises(QuotaExceeded):
                await take(session_factory, now=later)
    assert await used(session_factory) == 10


async def test_soft_and_unlimited_entitlements_refuse_nothing_and_count(session_factory: Sessions) -> None:
    assert not (await take(session_factory, "exports")).quota.is_exceeded
    assert (await take(session_factory, "exports")).quota.is_exceeded
    assert (await take(session_factory, "calls", 10**12)).quota.limit is None
    assert await used(session_factory, "calls") == 10**12


async def test_an_unknown_entitlement_or_an_amount_of_nothing_is_refused(session_factory: Sessions) -> None:
    with pytest.raises(QuotaExceeded, match="no plan"):
        await take(session_factory, "unknown", soft=True)
    with pytest.raises(QuotaExceeded, match="no plan"):
        await take(session_factory, now=JANUARY - timedelta(seconds=1))
    for amount in (0, -1):
        with pytest.raises(InvalidUsage):
            await take(session_factory, amount=amount)


async def test_features_are_the_best_of_the_active_plans(session_factory: Sessions) -> None:
    assert await do(session_factory, feature_of, "t1", "seats", now=NOW) == 5
    await do(session_factory, subscribe_many, [NewSubscription("t1", "extra", JANUARY)], now=NOW)
    assert await do(session_factory, feature_of, "t1", "seats", now=NOW) == 9
    has = [await do(session_factory, has_feature, "t1", key, now=NOW) for key in ("sso", "beta", "unknown")]
    assert has == [True, False, False]
    assert not await do(session_factory, has_feature, "t2", "sso", now=NOW)


async def alerts(sessions: Sessions) -> list[tuple[int, str]]:
    async with sessions() as session:
        found = await session.scalars(
            select(OutboxMessageRow.body)
            .where(OutboxMessageRow.topic == "billing.quota.threshold")
            .order_by(OutboxMessageRow.id)
        )
        data = [json.loads(body)["data"] for body in found]
    return [(each["percent"], each["used"]) for each in data]


async def test_a_list_says_of_each_key_what_the_key_alone_says_in_as_many_statements(
    engine: AsyncEngine, session_factory: Sessions
) -> None:
    async def listed(keys: int) -> tuple[list[Entitled], int]:
        statements: list[str] = []
        note = lambda *given: statements.append(given[2])  # noqa: E731  # to be taken off again
        event.listen(engine.sync_engine, "before_cursor_execute", note)
        found = await do(session_factory, list_entitled, "t1", now=NOW, limit=keys)
        event.remove(engine.sync_engine, "before_cursor_execute", note)
        return found, len(statements)

    await do(session_factory, subscribe_many, [NewSubscription("t1", "extra", JANUARY)], now=NOW)
    await use(session_factory, "0.5")
    await do(session_factory, recompute, [DayKey("t1", "reports", day_bounds(NOW.date(), UTC))], now=NOW)
    await use(session_factory, "0.25", at=NOW + timedelta(seconds=1))
    await use(session_factory, "7", at=NOW - timedelta(days=3), key="tokens")
    await take(session_factory, amount=2)
    await take(session_factory, amount=3, lives_seconds=-1)  # which has run out and holds nothing
    (_, of_few), (all_, of_all) = await listed(2), await listed(100)
    assert of_few == of_all
    assert [(each.key, each.value) for each in all_ if each.quota is None] == [
        ("beta", False),
        ("seats", 9),
        ("sso", True),
    ]
    for each in all_:
        if each.quota is not None:
            assert each.quota == await do(session_factory, quota_of, "t1", each.key, each.window, now=NOW)
    assert {each.key: each.quota.used for each in all_ if each.quota} == {
        "calls": 0,
        "exports": 0,
        "reports": Decimal("2.75"),
        "tokens": 7,
    }


async def test_a_threshold_is_announced_once_in_a_window(session_factory: Sessions) -> None:
    await take(session_factory, amount=4)
    held = await take(session_factory)
    await do(session_factory, release, "t1", held.id)
    await take(session_factory, amount=4)
    await take(session_factory, amount=2)
    assert await alerts(session_factory) == [(50, "5"), (80, "8"), (100, "10")]
    await take(session_factory, amount=9, now=NOW + timedelta(days=1))
    assert (await alerts(session_factory))[3:] == [(50, "9"), (80, "9")]


async def test_recorded_usage_crosses_thresholds_when_it_is_aggregated(session_factory: Sessions) -> None:
    clock = FixedClock(NOW)
    webhooks = WebhookService(outbox=SqlOutboxStore(), subs=SqlWebhookEndpoints(session_factory))
    handler = make_billing_job_handler(session_factory=session_factory, webhooks=webhooks, clock=clock)
    queue = SqlJobQueue(session_factory, clock=clock)
    for amount, at in (("5", NOW), ("4", NOW + timedelta(hours=1))):
        await use(session_factory, amount, at)
        async with session_factory.begin() as session:
            enqueue_aggregate_daily(queue.bind(session), tenant_id="t1", metric="reports", day_start=NOW)
        assert await process_one(queue, handler)
    assert await alerts(session_factory) == [(50, "5"), (80, "9")]


async def test_ended_reservations_are_pruned_and_open_ones_are_not(session_factory: Sessions) -> None:
    ended, _open = await take(session_factory), await take(session_factory)
    await do(session_factory, commit, "t1", ended.id)
    assert await do(session_factory, prune_reservations, before=NOW + timedelta(days=1)) == 1
    assert await used(session_factory) == 2
