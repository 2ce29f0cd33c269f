"""What every outbox store promises: messages live and die with the transaction they were added in."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.db.outbox import (
    InMemoryOutboxStore,
    OutboxMessage,
    OutboxMessageRow,
    OutboxState,
    OutboxStore,
    SqlOutboxStore,
)
from svc_infra.exceptions import NotInTransaction

Factory = async_sessionmaker[AsyncSession]
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(params=[InMemoryOutboxStore, SqlOutboxStore])
def outbox(request: pytest.FixtureRequest) -> OutboxStore:
    store: OutboxStore = request.param()
    return store


def message(name: str) -> OutboxMessage:
    return OutboxMessage(f"msg_{name}", "billing.usage_aggregated", "t1", b'{"n":"%s"}' % name.encode(), NOON)


async def stored(outbox: OutboxStore, factory: Factory) -> list[str]:
    if isinstance(outbox, InMemoryOutboxStore):
        return sorted(one.id.removeprefix("msg_") for one in outbox.messages)
    async with factory() as session:
        ids = await session.scalars(select(OutboxMessageRow.id).order_by(OutboxMessageRow.id))
        return [one.removeprefix("msg_") for one in ids]


async def test_a_message_appears_with_the_commit_and_not_before(
    outbox: OutboxStore, session_factory: Factory
) -> None:
    async with session_factory() as session:
        outbox.add([message("a")], session=session)
        if isinstance(outbox, InMemoryOutboxStore):
            assert outbox.messages == []
        await session.commit()
    assert await stored(outbox, session_factory) == ["a"]


async def test_a_synchronous_session_works_the_same(outbox: OutboxStore, session_factory: Factory) -> None:
    def publish(session: Session) -> None:
        outbox.add([message("a")], session=session)
        outbox.add([message(f"b{n:02}") for n in range(40)], session=session)

    async with session_factory.begin() as session:
        await session.run_sync(publish)
    assert len(await stored(outbox, session_factory)) == 41


async def test_a_rolled_back_message_never_existed(outbox: OutboxStore, session_factory: Factory) -> None:
    def publish_many(session: Session) -> None:
        outbox.add([message(f"b{n:02}") for n in range(40)], session=session)

    async with session_factory() as session:
        outbox.add([message("a")], session=session)
        await session.run_sync(publish_many)
        await session.rollback()
        outbox.add([message("c")], session=session)
        await session.commit()
    assert await stored(outbox, session_factory) == ["c"]


async def test_a_session_that_is_closed_without_a_commit_forgets(
    outbox: OutboxStore, session_factory: Factory
) -> None:
    session = session_factory()
    outbox.add([message("a")], session=session)
    await session.close()
    outbox.add([message("b")], session=session)
    await session.commit()
    await session.close()
    assert await stored(outbox, session_factory) == ["b"]


async def test_a_savepoint_that_rolls_back_forgets_only_its_own(
    outbox: OutboxStore, session_factory: Factory
) -> None:
    async with session_factory.begin() as session:
        outbox.add([message("before")], session=session)
        savepoint = await session.begin_nested()
        outbox.add([message("lost")], session=session)
        inner = await session.begin_nested()
        outbox.add([message("lost_too")], session=session)
        await inner.commit()
        await savepoint.rollback()
        async with session.begin_nested():
            outbox.add([message("kept")], session=session)
    assert await stored(outbox, session_factory) == ["before", "kept"]


async def test_the_body_is_stored_byte_for_byte(session_factory: Factory) -> None:
    body = bytes(range(256))
    async with session_factory.begin() as session:
        SqlOutboxStore().add([OutboxMessage("msg_1", "a.b", None, body, NOON)], session=session)
    async with session_factory() as session:
        row = await session.get_one(OutboxMessageRow, "msg_1")
    assert (row.body, row.occurred_at, row.tenant_id, row.state) == (body, NOON, None, OutboxState.PENDING)


def test_a_durable_outbox_without_a_session_says_what_to_do() -> None:
    with pytest.raises(NotInTransaction, match="pass session="):
        SqlOutboxStore().add([message("a")])


def test_a_memory_outbox_without_a_session_stores_at_once_and_hands_out_once() -> None:
    outbox = InMemoryOutboxStore()
    added: list[Any] = [message("a"), message("b")]
    outbox.add(added)
    assert outbox.messages == added
    assert outbox.take_pending(1) + outbox.take_pending(5) + outbox.take_pending(5) == added


async def test_one_fact_is_published_once_and_a_duplicate_ends_nobodys_transaction(
    outbox: OutboxStore, session_factory: Factory
) -> None:
    def fact(name: str, key: str | None, tenant_id: str | None = None) -> OutboxMessage:
        return OutboxMessage(f"msg_{name}", "a.b", tenant_id, b"{}", NOON, idempotency_key=key)

    def publish_many(session: Session) -> None:
        outbox.add([fact(f"m{n:02}", f"bulk{n % 25}") for n in range(50)], session=session)

    async with session_factory.begin() as session:
        outbox.add([fact("a", "k1"), fact("b", "k1"), fact("c", "k2")], session=session)
        outbox.add([fact("d", "k1", "t1"), fact("e", None), fact("f", None)], session=session)
    async with session_factory.begin() as session:
        outbox.add([fact("g", "k1")], session=session)
        outbox.add([fact("h", "k1", "t2")], session=session)
        await session.run_sync(publish_many)
    expected = ["a", "c", "d", "e", "f", "h"]
    found = await stored(outbox, session_factory)
    assert [name for name in found if not name.startswith("m")] == expected
    assert len(found) == len(expected) + 25


async def test_a_fact_that_was_rolled_back_can_be_published_again(
    outbox: OutboxStore, session_factory: Factory
) -> None:
    fact = OutboxMessage("msg_a", "a.b", None, b"{}", NOON, idempotency_key="k1")
    async with session_factory() as session:
        outbox.add([fact], session=session)
        if isinstance(outbox, SqlOutboxStore):
            await session.flush()
        await session.rollback()
        outbox.add([fact], session=session)
        await session.commit()
    assert await stored(outbox, session_factory) == ["a"]


@pytest.mark.postgres_only
async def test_two_transactions_that_publish_one_fact_at_once_both_commit(session_factory: Factory) -> None:
    async def publish(name: str) -> None:
        async with session_factory.begin() as session:
            fact = OutboxMessage(f"msg_{name}", "a.b", None, b"{}", NOON, idempotency_key="k1")
            SqlOutboxStore().add([fact], session=session)

    await asyncio.gather(*(publish(f"m{n}") for n in range(6)))
    assert len(await stored(SqlOutboxStore(), session_factory)) == 1
