"""A commit that fails before it reaches the database leaves nothing that anybody could commit later."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.contract.queue_contract import Sessions


async def test_what_a_failed_commit_left_is_not_committed_by_the_next_one(
    engine: AsyncEngine, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver: Any = engine.dialect.loaded_dbapi

    def fail(_connection: Any) -> None:
        raise driver.Error("cannot perform operation: another operation is in progress")

    insert = "INSERT INTO queues (name, updated_at) VALUES (:name, '2026-03-01 12:00:00.000000')"

    async def write(name: str) -> None:
        async with session_factory() as session:
            await session.execute(text(insert), {"name": name})
            await session.commit()

    with monkeypatch.context() as patch:
        patch.setattr(engine.sync_engine.dialect, "do_commit", fail)
        with pytest.raises(DBAPIError):
            await write("failed")
    await write("next")
    async with session_factory() as session:
        assert (await session.execute(text("SELECT name FROM queues"))).scalars().all() == ["next"]
