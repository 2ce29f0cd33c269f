"""Daily totals by replacement: right after every interleaving of recording and recomputing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from svc_infra.billing.aggregation import (
    DayKey,
    DayTotal,
    consume_marks_of,
    dirty_days,
    list_daily,
    recompute,
)
from svc_infra.billing.models import UsageDirtyDay
from svc_infra.billing.periods import day_bounds, month_bounds
from svc_infra.billing.usage import NewUsage, record_many

R = TypeVar("R")
Factory = async_sessionmaker[AsyncSession]
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
FIRST = day_bounds(NOON, UTC)
LATER = NOON + timedelta(days=40)


def key(tenant: str = "t1", metric: str = "tokens", at: datetime = NOON) -> DayKey:
    return DayKey(tenant, metric, day_bounds(at, UTC))


async def in_session(factory: Factory, act: Callable[[Session], R]) -> R:
    async with factory() as session, session.begin():
        return await session.run_sync(act)


async def record(
    factory: Factory, name: str, amount: str = "1", *, tenant: str = "t1", at: datetime = NOON
) -> None:
    new = NewUsage(tenant, "tokens", Decimal(amount), at, name)
    await in_session(factory, lambda session: record_many(session, [new], now=NOON))


async def totals(factory: Factory, *keys: DayKey, **options: Any) -> list[DayTotal]:
    return await in_session(factory, lambda session: recompute(session, keys, now=NOON, **options))


async def dirty(factory: Factory, ended_before: datetime = LATER, **options: Any) -> list[DayKey]:
    return await in_session(factory, lambda s: dirty_days(s, ended_before=ended_before, **options))


async def mark_count(factory: Factory) -> int:
    return await in_session(
        factory, lambda s: s.execute(select(func.count()).select_from(UsageDirtyDay)).scalar_one()
    )


async def test_a_total_is_exact_and_only_of_its_tenant_metric_and_day(session_factory: Factory) -> None:
    await record(session_factory, "a", "0.1")
    await record(session_factory, "b", "0.2", at=FIRST.start)
    await record(session_factory, "c", "5", tenant="t2")
    await record(session_factory, "d", "7", at=FIRST.end)
    [day] = await totals(session_factory, key())
    assert (day.total, day.has_changed, day.is_published) == (Decimal("0.3"), True, False)


async def test_sums_beyond_38_digits_are_exact(session_factory: Factory) -> None:
    for index in range(12):
        await record(session_factory, f"k{index}", "9" * 26 + "." + "9" * 12)
    [day] = await totals(session_factory, key())
    assert str(day.total).replace(".", "") == str(12 * int("9" * 38))


async def test_many_days_are_recomputed_in_key_order_each_once(session_factory: Factory) -> None:
    await record(session_factory, "a", tenant="t2")
    days = await totals(session_factory, key("t2"), key("t1"), key("t2"), key("t1", at=FIRST.end))
    assert [(day.key.tenant_id, day.key.day.start, day.total) for day in days] == [
        ("t1", FIRST.start, 0),
        ("t1", FIRST.end, 0),
        ("t2", FIRST.start, 1),
    ]


async def test_a_published_total_is_unpublished_only_by_a_change(session_factory: Factory) -> None:
    await record(session_factory, "a")
    [first] = await totals(session_factory, key(), will_publish=True)
    [same] = await totals(session_factory, key(), will_publish=True)
    await record(session_factory, "b")
    [quiet] = await totals(session_factory, key())
    [again] = await totals(session_factory, key(), will_publish=True)
    [last] = await totals(session_factory, key())
    assert [(day.has_changed, day.is_published) for day in (first, same, quiet, again, last)] == [
        (True, False),
        (False, True),
        (True, False),
        (False, False),
        (False, True),
    ]


async def test_a_first_total_of_0_is_not_published_yet(session_factory: Factory) -> None:
    [first] = await totals(session_factory, key(), will_publish=True)
    [second] = await totals(session_factory, key(), will_publish=True)
    assert (first.total, first.has_changed, first.is_published) == (0, False, False)
    assert second.is_published


async def test_recomputing_consumes_the_marks_of_its_days_only(session_factory: Factory) -> None:
    await record(session_factory, "a")
    await record(session_factory, "b")
    await record(session_factory, "c", tenant="t2")
    await totals(session_factory, key())
    assert await mark_count(session_factory) == 1


async def test_dirty_days_are_the_ended_ones_that_are_marked_or_unpublished(session_factory: Factory) -> None:
    await record(session_factory, "a")
    await record(session_factory, "b")
    await record(session_factory, "c", tenant="t2")
    await record(session_factory, "d", at=FIRST.end)
    await totals(session_factory, key("t2"))
    await totals(session_factory, key("t3"), will_publish=True)
    assert await dirty(session_factory, FIRST.end) == [key("t1"), key("t2")]
    assert await dirty(session_factory, FIRST.end - timedelta(microseconds=1)) == []
    everything = [key("t1"), key("t1", at=FIRST.end), key("t2")]
    assert await dirty(session_factory) == everything
    assert await dirty(session_factory, limit=2) == everything[:2]
    assert await dirty(session_factory, limit=2, after=everything[1]) == everything[2:]


async def test_the_marks_of_a_period_are_consumed_for_the_tenants_asked(session_factory: Factory) -> None:
    january = month_bounds(2025, 1, UTC)
    for tenant in ("t1", "t2", "t3"):
        await record(session_factory, "a", "2", tenant=tenant)
        await record(session_factory, "b", "3", tenant=tenant, at=january.end)
    days = await in_session(
        session_factory, lambda s: consume_marks_of(s, ["t1", "t2", "none"], january, now=NOON)
    )
    assert [(day.key, day.total) for day in days] == [(key("t1"), 2), (key("t2"), 2)]
    assert [day.tenant_id for day in await dirty(session_factory)] == ["t1", "t1", "t2", "t2", "t3", "t3"]
    assert await mark_count(session_factory) == 4


async def test_the_number_of_statements_does_not_grow_with_the_days(
    engine: AsyncEngine, session_factory: Factory
) -> None:
    statements: list[str] = []
    event.listen(
        engine.sync_engine,
        "before_cursor_execute",
        lambda _conn, _cursor, statement, *_rest: statements.append(statement),
    )
    await totals(session_factory, key(), will_publish=True)
    for_one = len(statements)
    statements.clear()
    days = [key(f"t{number}", at=NOON + timedelta(days=day)) for number in range(100) for day in range(10)]
    assert len(await totals(session_factory, *days, will_publish=True)) == 1_000
    assert len(statements) == for_one <= 7


@pytest.mark.sqlite_only
async def test_sqlite_goes_from_the_days_to_the_events_by_index(
    engine: AsyncEngine, session_factory: Factory
) -> None:
    plans: list[str] = []

    def explain(conn: Any, _cursor: Any, statement: str, parameters: Any, _ctx: Any, _many: Any) -> None:
        if statement.startswith("WITH"):
            rows = conn.connection.cursor()
            rows.execute("EXPLAIN QUERY PLAN " + statement, parameters)
            plans.extend(row[3] for row in rows.fetchall())

    await record(session_factory, "a")
    event.listen(engine.sync_engine, "before_cursor_execute", explain)
    await totals(session_factory, key())
    assert any("usage_events USING COVERING INDEX" in step and "at_ts>?" in step for step in plans)
    tables = ("usage_events", "usage_aggregates", "usage_dirty_days", "consumed")
    assert [step for step in plans if step.startswith("SCAN") and step.split()[1] in tables] == []


async def test_a_listing_shows_stored_totals_in_order(session_factory: Factory) -> None:
    await totals(session_factory, key(at=FIRST.end), key(), key("t2"), key(metric="calls"))
    listed = await in_session(session_factory, lambda s: list_daily(s, "t1", "tokens"))
    assert [(item.metric, item.period_start, item.granularity, item.total) for item in listed] == [
        ("tokens", FIRST.start, "day", 0),
        ("tokens", FIRST.end, "day", 0),
    ]


async def test_no_event_is_missed_while_days_are_recomputed(session_factory: Factory) -> None:
    """Writers commit at random times, two recomputers run all the while; whatever is unmarked is right."""
    writers_left = 8

    async def write(number: int) -> None:
        nonlocal writers_left
        for index in range(12):
            await record(session_factory, f"{number}-{index}", tenant=f"t{index % 2}")
        writers_left -= 1

    async def aggregate() -> None:
        while writers_left:
            await totals(session_factory, key("t0"), key("t1"), will_publish=True)
            await check_unmarked()

    async def check_unmarked() -> None:
        # One statement, so one snapshot: an aggregate without a mark equals the plain sum of its events.
        wrong = text(
            "SELECT a.tenant_id, a.total, (SELECT count(*) FROM usage_events e "
            "WHERE e.tenant_id = a.tenant_id) FROM usage_aggregates a WHERE NOT EXISTS "
            "(SELECT 1 FROM usage_dirty_days d WHERE d.tenant_id = a.tenant_id) "
            "AND a.total <> (SELECT count(*) FROM usage_events e WHERE e.tenant_id = a.tenant_id)"
        )
        async with session_factory() as session:
            dialect = session.get_bind().dialect.name
            if dialect == "postgresql":
                assert (await session.execute(wrong)).all() == []

    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(write(number))
        tasks.create_task(aggregate())
        tasks.create_task(aggregate())
    await totals(session_factory, *await dirty(session_factory))
    assert await mark_count(session_factory) == 0
    listed = await totals(session_factory, key("t0"), key("t1"))
    assert [(day.total, day.has_changed) for day in listed] == [(48, False), (48, False)]


@pytest.mark.postgres_only
async def test_two_recomputes_of_one_day_are_done_one_after_the_other(session_factory: Factory) -> None:
    """The second waits for the first's row before it consumes marks, so it adds up what came meanwhile."""
    await record(session_factory, "a", "1")
    async with session_factory() as first:
        [before] = await first.run_sync(recompute, [key()], now=NOON)
        await record(session_factory, "b", "2")
        second = asyncio.create_task(totals(session_factory, key()))
        await _until_someone_waits(session_factory)
        assert await mark_count(session_factory) == 2
        await first.commit()
    [after] = await second
    assert (before.total, after.total) == (1, 3)
    assert await mark_count(session_factory) == 0


@pytest.mark.postgres_only
async def test_an_event_that_commits_during_a_recompute_leaves_its_mark(session_factory: Factory) -> None:
    await record(session_factory, "a", "1")
    async with session_factory() as recording:
        late = NewUsage("t1", "tokens", Decimal(2), NOON, "b")
        await recording.run_sync(record_many, [late], now=NOON)
        [before] = await totals(session_factory, key())
        await recording.commit()
    assert await mark_count(session_factory) == 1
    [after] = await totals(session_factory, key())
    assert (before.total, after.total) == (1, 3)


@pytest.mark.postgres_only
async def test_an_event_that_commits_just_before_the_marks_are_consumed_is_counted(
    engine: AsyncEngine, session_factory: Factory
) -> None:
    await record(session_factory, "a", "1")
    _once_before(engine, "DELETE FROM usage_dirty_days", lambda: record(session_factory, "b", "2"))
    [day] = await totals(session_factory, key())
    assert (day.total, await mark_count(session_factory)) == (3, 0)


@pytest.mark.postgres_only
async def test_no_other_recompute_comes_between_adding_up_and_storing(
    engine: AsyncEngine, session_factory: Factory
) -> None:
    """Without the lock the slower of the two would store its older total, and no mark would be left."""
    other: list[asyncio.Task[list[DayTotal]]] = []

    async def start_another() -> None:
        await record(session_factory, "b", "2")
        other.append(asyncio.create_task(totals(session_factory, key())))
        await _until_someone_waits(session_factory, or_done=other[0])

    await totals(session_factory, key())
    _once_before(engine, "AS recorded", lambda: record(session_factory, "a", "1"))
    _once_before(engine, "UPDATE usage_aggregates", start_another)
    await totals(session_factory, key())
    await other[0]
    [stored] = await in_session(session_factory, lambda s: list_daily(s, "t1", "tokens"))
    assert (stored.total, await mark_count(session_factory)) == (3, 0)


@pytest.mark.postgres_only
async def test_recomputes_of_the_same_days_in_opposite_orders_never_deadlock(
    session_factory: Factory,
) -> None:
    days = [key(f"t{number}") for number in range(60)]
    for offset in range(4):
        shifted = [day for day in days if int(day.tenant_id[1:]) >= offset * 10]
        answers = await asyncio.gather(
            *(totals(session_factory, *shifted[:: 1 if turn % 2 else -1]) for turn in range(6))
        )
        assert {len(answer) for answer in answers} == {len(shifted)}


def _once_before(engine: AsyncEngine, part: str, act: Callable[[], Awaitable[None]]) -> None:
    """Await ``act`` right before the next statement that contains ``part`` is executed."""

    waiting = [act]

    def listen(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if part in statement and waiting:
            await_only(waiting.pop()())

    event.listen(engine.sync_engine, "before_cursor_execute", listen)


async def _until_someone_waits(factory: Factory, or_done: asyncio.Task[Any] | None = None) -> None:
    """Return once a backend of this database waits for a lock, or the task has ended without."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(20):
        while or_done is None or not or_done.done():
            async with factory() as session:
                if (await session.execute(waiting)).scalar_one():
                    return
