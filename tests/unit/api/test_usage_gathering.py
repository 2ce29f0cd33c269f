"""Usage that comes at once: it shares transactions, and nobody suffers for another's event."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.api.fastapi.billing import usage_gathering
from svc_infra.api.fastapi.billing.usage_gathering import UsageGatherer
from svc_infra.billing import UsageEvent
from svc_infra.exceptions import InvalidUsage
from tests.unit.api.asking import ONE, TWO, client_of

Sessions = async_sessionmaker[AsyncSession]
PATH = "/_billing/usage"


def usage(key: str, amount: int = 1) -> dict[str, Any]:
    return {"metric": "tokens", "amount": amount, "at": "2025-01-01T00:00:00Z", "idempotency_key": key}


async def keys(sessions: Sessions) -> list[tuple[str, str]]:
    async with sessions() as session:
        found = await session.execute(select(UsageEvent.tenant_id, UsageEvent.idempotency_key))
        return sorted(tuple(row) for row in found)


async def test_events_at_once_share_a_commit_and_each_gets_its_own_answer(
    app: FastAPI, engine: AsyncEngine, session_factory: Sessions
) -> None:
    commits: list[object] = []

    def note(connection: object) -> None:
        commits.append(connection)

    async with client_of(app, ONE) as client:
        await client.post(PATH, json=usage("first"))
        event.listen(engine.sync_engine, "commit", note)
        wanted = [*(usage(str(n)) for n in range(30)), usage("first"), usage("first", 2)]
        answers = await asyncio.gather(
            *(client.post(PATH, json=each) for each in wanted),
            *(client.post(PATH, json=usage(str(n)), headers=TWO) for n in range(8)),
        )
        event.remove(engine.sync_engine, "commit", note)
    assert [answer.status_code for answer in answers] == [202] * 31 + [409] + [202] * 8
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 39
    assert len(await keys(session_factory)) == 39
    assert len(commits) <= 10  # of two tenants


async def test_an_event_that_its_transaction_refuses_takes_no_other_along(
    app: FastAPI, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = usage_gathering.record_read

    def refuse_bad(session: Any, read: Sequence[Any], **options: Any) -> Any:
        found = record(session, read, **options)
        if any(sent.idempotency_key == "bad" for sent, _ in read):
            raise InvalidUsage("refused as a whole")
        return found

    monkeypatch.setattr(usage_gathering, "record_read", refuse_bad)
    async with client_of(app, ONE) as client:
        answers = await asyncio.gather(*(client.post(PATH, json=usage(key)) for key in ("a", "bad", "c")))
    assert [answer.status_code for answer in answers] == [202, 422, 202]
    assert await keys(session_factory) == [("t1", "a"), ("t1", "c")]


@pytest.mark.sqlite_only
async def test_a_caller_who_gives_up_takes_no_other_along(
    app: FastAPI, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, entered, go_on = UsageGatherer._commit, asyncio.Event(), asyncio.Event()

    async def slow_commit(self: UsageGatherer, *arguments: Any) -> Any:
        entered.set()
        await go_on.wait()
        return await commit(self, *arguments)

    monkeypatch.setattr(UsageGatherer, "_commit", slow_commit)
    async with client_of(app, ONE) as client:
        first, second = (asyncio.create_task(client.post(PATH, json=usage(key))) for key in "ab")
        await entered.wait()
        first.cancel()
        go_on.set()
        assert (await second).status_code == 202
    assert ("t1", "b") in await keys(session_factory)
