"""A running worker prunes the idempotent answers that nobody can ask for again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.api.answers import ANSWERS_KEPT_FOR, KeptAnswer, keep_answer
from svc_infra.api.models import IdempotentAnswerRow
from svc_infra.config import Settings
from svc_infra.runtime import Runtime
from svc_infra.webhooks.transport import HttpSender

SETTINGS = Settings.model_validate({"scheduler": {"is_enabled": False}})


@pytest.mark.sqlite_only
async def test_a_running_worker_prunes_what_nobody_can_ask_for_again(
    engine: AsyncEngine, session_factory: async_sessionmaker[AsyncSession]
) -> None:
    now = datetime.now(UTC)
    answer = KeptAnswer("fingerprint", 200, [], b"")
    async with session_factory.begin() as session:
        for slot, at in (("old", now - ANSWERS_KEPT_FOR - timedelta(minutes=1)), ("new", now)):
            await session.run_sync(keep_answer, slot, answer, now=at)
    sender, stop = HttpSender(), asyncio.Event()
    running = asyncio.create_task(Runtime(SETTINGS, engine, sender).run(stop))
    try:
        async with asyncio.timeout(60):
            kept = 2
            while kept > 1:
                async with session_factory() as session:
                    kept = await session.scalar(select(func.count()).select_from(IdempotentAnswerRow)) or 0
    finally:
        stop.set()
        await running
        await sender.aclose()
    async with session_factory() as session:
        assert list(await session.scalars(select(IdempotentAnswerRow.slot))) == ["new"]
