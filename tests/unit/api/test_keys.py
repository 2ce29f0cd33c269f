"""API keys: whose they are, what they open, and what is kept of them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.api.fastapi.billing.setup import add_billing
from svc_infra.api.key_cache import KEY_CACHE_SECONDS, KeyCache
from svc_infra.api.keys import create_key, is_key, list_keys, revoke_key
from svc_infra.api.models import ApiKeyRow
from svc_infra.cli import cli
from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidApiKey, NotFound
from svc_infra.jobs.acts import list_acts
from tests.unit.api.asking import client_of

Sessions = async_sessionmaker[AsyncSession]
LIST = "/_billing/usage?metric=tokens"


@pytest.fixture
def keyed_app(session_factory: Sessions, clock: FixedClock) -> FastAPI:
    app = FastAPI()
    add_billing(app, session_factory=session_factory, clock=clock)
    return app


async def new_key(sessions: Sessions, clock: FixedClock, **options: Any) -> tuple[Any, str]:
    chosen = {"tenant_id": "t1", "scopes": ["billing.*"], "actor": "ann", "name": "n", **options}
    async with sessions.begin() as session:
        return await session.run_sync(lambda sync: create_key(sync, now=clock.now(), **chosen))


async def ask(app: FastAPI, text: str, **headers: str) -> int:
    async with client_of(app, {"Authorization": f"Bearer {text}", **headers}) as client:
        return (await client.get(LIST)).status_code


async def test_a_key_opens_its_tenant_s_routes_and_what_is_none_opens_nothing(
    keyed_app: FastAPI, session_factory: Sessions, clock: FixedClock
) -> None:
    _, text = await new_key(session_factory, clock)
    assert is_key(text)
    other = text[:20] + ("a" if text[20] != "a" else "b") + text[21:]
    assert not is_key(other)
    assert await ask(keyed_app, text) == 200
    assert await ask(keyed_app, other) == 401
    _, webhooks_only = await new_key(session_factory, clock, scopes=["webhooks.read"])
    assert await ask(keyed_app, webhooks_only) == 403


async def test_an_operator_s_key_names_its_tenant(
    keyed_app: FastAPI, session_factory: Sessions, clock: FixedClock
) -> None:
    _, text = await new_key(session_factory, clock, tenant_id=None)
    assert await ask(keyed_app, text) == 400
    assert await ask(keyed_app, text, **{"Svc-Tenant": "t9"}) == 200


async def test_expired_and_revoked_keys_open_nothing(session_factory: Sessions, clock: FixedClock) -> None:
    seconds = 0.0
    cache = KeyCache(monotonic=lambda: seconds)

    async def opens(text: str) -> bool:
        return await cache.find(text, session_factory, now=clock.now()) is not None

    _, short = await new_key(session_factory, clock, expires_at=clock.now() + timedelta(hours=1))
    key, text = await new_key(session_factory, clock)
    assert await opens(short)
    assert await opens(text)
    async with session_factory.begin() as session:
        await session.run_sync(lambda sync: revoke_key(sync, key.id, actor="ann", now=clock.now()))
    assert await opens(text)  # for as long as it is remembered, and no longer
    seconds = KEY_CACHE_SECONDS
    assert not await opens(text)
    clock.advance(timedelta(hours=1))
    assert not await opens(short)
    async with session_factory.begin() as session:
        with pytest.raises(NotFound):
            await session.run_sync(lambda sync: revoke_key(sync, key.id, actor="ann", now=clock.now()))


async def test_of_a_key_only_its_digest_is_kept_and_each_act_is_recorded(
    session_factory: Sessions, clock: FixedClock
) -> None:
    key, text = await new_key(session_factory, clock)
    async with session_factory.begin() as session:
        await session.run_sync(lambda sync: revoke_key(sync, key.id, actor="bob", now=clock.now()))
        row = (await session.execute(select(ApiKeyRow.__table__))).one()
        acts = await session.run_sync(lambda sync: list_acts(sync, subject=key.id))
        listed = await session.run_sync(list_keys)
    secret = text.removeprefix(key.prefix)
    assert secret not in repr((row, acts, listed, key))
    assert [(act.actor, act.act) for act in acts] == [("bob", "revoke_api_key"), ("ann", "create_api_key")]


@pytest.mark.parametrize(
    "options",
    [
        {"scopes": []},
        {"scopes": ["billing.delete"]},
        {"scopes": ["jobs.*"]},
        {"scopes": ["*"]},
        {"name": ""},
        {"tenant_id": ""},
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(
    session_factory: Sessions, clock: FixedClock, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidApiKey):
        await new_key(session_factory, clock, **options)


def test_the_command_makes_lists_and_revokes(tmp_path: Path) -> None:
    database = ["--database-url", f"sqlite:///{tmp_path / 'k.db'}"]

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(cli, [*arguments, *database])
        assert result.exit_code == 0, result.output
        return json.loads(result.output) if "--json" in arguments else result.output

    run("migrate")
    made = run("keys", "create", "--name", "shop", "--tenant", "t1", "--scope", "billing.*", "--json")
    assert is_key(made["key"])
    assert made["scopes"] == ["billing.read", "billing.write"]
    run("keys", "revoke", made["id"])
    [listed] = run("keys", "list", "--json")
    assert (listed["id"], listed["state"]) == (made["id"], "revoked")
    assert made["key"] not in json.dumps(listed)
    refused = CliRunner().invoke(cli, ["keys", "create", "--name", "x", "--scope", "billing.*", *database])
    assert refused.exit_code == 2
