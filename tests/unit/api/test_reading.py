"""What only reads neither waits for a writer nor keeps one waiting."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import delete, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.api.fastapi.service import make_app
from svc_infra.api.keys import TENANT_SCOPES
from svc_infra.billing.models import UsageEvent
from svc_infra.db.readiness import why_not_ready
from svc_infra.db.session import begin_reading, make_engine
from tests.unit.api.asking import client_of
from tests.unit.api.route_matrix import OWNER, make_key

Sessions = async_sessionmaker[AsyncSession]


@pytest.mark.sqlite_only
async def test_what_reads_is_answered_while_another_process_writes(
    engine: AsyncEngine, session_factory: Sessions
) -> None:
    key = await make_key(session_factory, OWNER, list(TENANT_SCOPES))
    writer = make_engine(engine.url)
    paths = ["/_billing/invoices", "/_billing/usage?metric=tokens", "/_webhooks/endpoints"]
    async with client_of(make_app(engine), {"Authorization": f"Bearer {key}"}) as client:
        assert (await client.get(paths[0])).status_code == 200  # which notes the use of the key
        async with writer.begin() as writing:
            await writing.execute(text("DELETE FROM jobs"))
            async with asyncio.timeout(20):
                answers = [await client.get(path) for path in paths]
                reason = await why_not_ready(engine)
    await writer.dispose()
    assert "schema" in str(reason)  # this one has no migrations; it was asked and did answer
    assert [answer.status_code for answer in answers] == [200] * len(paths)


@pytest.mark.postgres_only
async def test_a_transaction_that_reads_cannot_write(session_factory: Sessions) -> None:
    async with session_factory() as session:
        await begin_reading(session)
        with pytest.raises(DBAPIError, match="read-only"):
            await session.execute(delete(UsageEvent))
    async with session_factory.begin() as session:  # and the connection is as it was, afterwards
        await session.execute(delete(UsageEvent))
