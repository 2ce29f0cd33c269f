"""Recording usage in batches, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TypeVar

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.billing.models import UsageDirtyDay, UsageEvent
from svc_infra.billing.tenants import change_settings, zones_of
from svc_infra.billing.usage import NewUsage, RecordedUsage, record_alone, record_many
from svc_infra.billing.usage_limits import UsageLimits
from svc_infra.exceptions import InvalidSettings
from tests.contract.seen_statements import statements

R = TypeVar("R")
Factory = async_sessionmaker[AsyncSession]
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def usage(
    key: str, amount: str = "1", *, tenant: str = "t1", at: datetime = NOON, **more: object
) -> NewUsage:
    return NewUsage(tenant, "tokens", Decimal(amount), at, key, more or None)


async def in_session(factory: Factory, act: Callable[[Session], R]) -> R:
    async with factory() as session, session.begin():
        return await session.run_sync(act)


async def record(factory: Factory, events: Sequence[NewUsage]) -> list[RecordedUsage]:
    return await in_session(factory, lambda session: record_many(session, events, now=NOON))


async def stored(factory: Factory) -> dict[str, Decimal]:
    async with factory() as session:
        rows = await session.execute(select(UsageEvent.idempotency_key, UsageEvent.amount))
        return {row.idempotency_key: row.amount for row in rows}


async def marks(factory: Factory) -> list[tuple[str, datetime, datetime]]:
    async with factory() as session:
        rows = await session.execute(
            select(UsageDirtyDay.tenant_id, UsageDirtyDay.day_start, UsageDirtyDay.day_end).order_by(
                UsageDirtyDay.tenant_id, UsageDirtyDay.day_start
            )
        )
        return [(row.tenant_id, row.day_start, row.day_end) for row in rows]


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("billing_usage_ingest_total", {"result": result}) or 0


async def test_a_batch_says_in_its_own_order_what_became_of_each_event(session_factory: Factory) -> None:
    [old] = await record(session_factory, [usage("c", "3")])
    recorded = await record(
        session_factory,
        [usage("z"), usage("c", "3.0"), usage("a"), usage("c", "4"), usage("z"), usage("z", "2")],
    )
    assert [item.outcome for item in recorded] == [
        "inserted",
        "duplicate",
        "inserted",
        "conflict",
        "duplicate",
        "conflict",
    ]
    z = recorded[0].id
    assert [item.id for item in recorded if item.outcome != "inserted"] == [old.id, old.id, z, z]
    assert await stored(session_factory) == {"a": 1, "c": 3, "z": 1}


async def test_nothing_recorded_is_no_statement(session_factory: Factory) -> None:
    assert await record(session_factory, []) == []


async def test_usage_recorded_alone_is_committed_and_judged_as_ever(session_factory: Factory) -> None:
    limits = UsageLimits(past=timedelta(days=30))
    events = [usage("a"), usage("b", at=NOON - timedelta(days=40)), usage("a", "2")]
    recorded = await record_alone(session_factory, events, now=NOON, limits=limits)
    assert [item.outcome for item in recorded] == ["inserted", "rejected", "conflict"]
    [again] = await record_alone(session_factory, [usage("a")], now=NOON)
    assert again == (recorded[0].id, "duplicate", "")
    assert await stored(session_factory) == {"a": 1}


async def test_usage_recorded_alone_of_a_tenant_in_another_zone_is_whole_with_its_marks(
    session_factory: Factory,
) -> None:
    await in_session(
        session_factory, lambda s: change_settings(s, "ny", timezone="America/New_York", now=NOON)
    )
    events = [usage("a"), usage("b", tenant="ny")]
    recorded = await record_alone(session_factory, events, now=NOON)
    assert [item.outcome for item in recorded] == ["inserted", "inserted"]
    assert [(tenant, start.hour) for tenant, start, _ in await marks(session_factory)] == [
        ("ny", 5),
        ("t1", 0),
    ]


@pytest.mark.postgres_only
async def test_usage_recorded_alone_is_one_statement(session_factory: Factory, engine: AsyncEngine) -> None:
    with statements(engine) as seen:
        await record_alone(session_factory, [usage("a"), usage("b")], now=NOON)
    assert len(seen) == 1
    assert len(await marks(session_factory)) == 1


async def test_amounts_instants_and_metadata_come_back_as_they_were(session_factory: Factory) -> None:
    event = usage(
        "ключ'\"\\",
        "9" * 26 + "." + "9" * 12,
        at=NOON + timedelta(microseconds=1),
        clé="ü\n",
        n=[1.5, 10**30],
    )
    await record(session_factory, [event])
    async with session_factory() as session:
        row = (await session.scalars(select(UsageEvent))).one()
    assert (row.idempotency_key, row.amount, row.at_ts) == (event.idempotency_key, event.amount, event.at)
    assert row.metadata_json == event.metadata_json
    [again] = await record(session_factory, [event])
    assert again[:2] == (row.id, "duplicate")


async def test_each_day_with_a_new_event_is_marked_once_a_batch(session_factory: Factory) -> None:
    midnight = datetime(2025, 1, 2, tzinfo=UTC)
    await record(session_factory, [usage("a"), usage("b"), usage("c", at=midnight), usage("d", tenant="t2")])
    first = (midnight - timedelta(days=1), midnight)
    assert await marks(session_factory) == [
        ("t1", *first),
        ("t1", midnight, midnight + timedelta(days=1)),
        ("t2", *first),
    ]


async def test_duplicates_and_conflicts_mark_no_day(session_factory: Factory) -> None:
    await record(session_factory, [usage("a")])
    before = await marks(session_factory)
    await record(session_factory, [usage("a"), usage("a", "2", at=NOON + timedelta(days=3))])
    assert await marks(session_factory) == before


async def test_a_mark_is_of_the_tenants_local_day(session_factory: Factory) -> None:
    await in_session(
        session_factory, lambda s: change_settings(s, "ny", timezone="America/New_York", now=NOON)
    )
    spring_forward = datetime(2025, 3, 10, 3, 59, tzinfo=UTC)
    await record(session_factory, [usage("a", tenant="ny", at=spring_forward)])
    [(_, start, end)] = await marks(session_factory)
    assert (start, end - start) == (datetime(2025, 3, 9, 5, tzinfo=UTC), timedelta(hours=23))


async def test_only_committed_events_are_counted(session_factory: Factory) -> None:
    before = {result: counted(result) for result in ("inserted", "duplicate", "conflict")}
    async with session_factory() as session:
        await session.run_sync(record_many, [usage("lost")], now=NOON)
        await session.rollback()
    await record(session_factory, [usage("a"), usage("b"), usage("a"), usage("a", "2")])
    grown = {result: counted(result) - before[result] for result in before}
    assert grown == {"inserted": 2, "duplicate": 1, "conflict": 1}


async def test_five_thousand_events_are_one_batch(session_factory: Factory) -> None:
    events = [usage(f"k{index}", tenant=f"t{index % 700}") for index in range(5_000)]
    recorded = await record(session_factory, events)
    assert {item.outcome for item in recorded} == {"inserted"}
    assert len(await stored(session_factory)) == 5_000
    assert {item.outcome for item in await record(session_factory, events)} == {"duplicate"}


async def test_of_concurrent_writers_of_one_key_one_wins_and_the_others_get_its_id(
    session_factory: Factory,
) -> None:
    together = asyncio.Barrier(6)

    async def write(amount: str) -> list[RecordedUsage]:
        await together.wait()
        return await record(session_factory, [usage("own" + amount), usage("shared", amount)])

    answers = await asyncio.gather(*(write(str(number % 2 + 1)) for number in range(6)))
    shared = [answer[1] for answer in answers]
    assert len({item.id for item in shared}) == 1
    assert sorted(item.outcome for item in shared).count("inserted") == 1
    # Whoever wins, the two others with its amount are duplicates and the three with another are conflicts.
    assert sorted(item.outcome for item in shared) == ["conflict"] * 3 + ["duplicate"] * 2 + ["inserted"]


@pytest.mark.postgres_only
async def test_who_waited_for_a_winner_sees_its_row(session_factory: Factory) -> None:
    async with session_factory() as winner:
        [won] = await winner.run_sync(record_many, [usage("k", "7")], now=NOON)
        waiting = asyncio.create_task(record(session_factory, [usage("k", "7"), usage("k2")]))
        await _until_someone_waits(session_factory)
        await winner.commit()
    assert [(item.id == won.id, item.outcome) for item in await waiting] == [
        (True, "duplicate"),
        (False, "inserted"),
    ]


@pytest.mark.postgres_only
async def test_who_waited_for_a_loser_records_its_own_event(session_factory: Factory) -> None:
    async with session_factory() as loser:
        await loser.run_sync(record_many, [usage("k", "7")], now=NOON)
        waiting = asyncio.create_task(record(session_factory, [usage("k", "8")]))
        await _until_someone_waits(session_factory)
        await loser.rollback()
    assert [item.outcome for item in await waiting] == ["inserted"]
    assert await stored(session_factory) == {"k": 8}


async def test_batches_with_the_same_keys_in_opposite_orders_never_deadlock(session_factory: Factory) -> None:
    events = [usage(f"k{index:03}", tenant=f"t{index % 7}") for index in range(200)]
    for round_number in range(5):
        again = [usage(f"{round_number}{event.idempotency_key}", tenant=event.tenant_id) for event in events]
        answers = await asyncio.gather(
            *(record(session_factory, again[:: 1 if turn % 2 else -1]) for turn in range(4))
        )
        assert sum(item.outcome == "inserted" for answer in answers for item in answer) == len(events)


@pytest.mark.postgres_only
async def test_a_zone_cannot_change_under_usage_that_is_being_recorded(session_factory: Factory) -> None:
    def to_tokyo(session: Session) -> None:
        change_settings(session, "t1", timezone="Asia/Tokyo", now=NOON)

    async with session_factory() as recording:
        await recording.run_sync(record_many, [usage("k")], now=NOON)
        changing = asyncio.create_task(in_session(session_factory, to_tokyo))
        await _until_someone_waits(session_factory)
        await recording.commit()
    with pytest.raises(InvalidSettings, match="usage"):
        await changing


@pytest.mark.postgres_only
async def test_usage_recorded_during_a_change_of_zone_is_marked_in_the_new_one(
    session_factory: Factory,
) -> None:
    async with session_factory() as changing:
        await changing.run_sync(change_settings, "t1", timezone="Asia/Tokyo", now=NOON)
        recording = asyncio.create_task(record(session_factory, [usage("k")]))
        await _until_someone_waits(session_factory)
        await changing.commit()
    await recording
    [(_, start, _end)] = await marks(session_factory)
    assert start == datetime(2024, 12, 31, 15, tzinfo=UTC)


async def test_zones_are_utc_unless_set(session_factory: Factory) -> None:
    await in_session(session_factory, lambda s: change_settings(s, "t1", timezone="Asia/Tokyo", now=NOON))
    zones = await in_session(session_factory, lambda session: zones_of(session, ["t1", "t2"]))
    assert (str(zones["t1"]), zones["t2"]) == ("Asia/Tokyo", UTC)


async def _until_someone_waits(factory: Factory) -> None:
    """Return once a backend of this database waits for a lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(20):
        while True:
            async with factory() as session:
                if (await session.execute(waiting)).scalar_one():
                    return
