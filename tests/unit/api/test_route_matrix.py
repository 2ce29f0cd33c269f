"""Every route, every role, two tenants: generated from the document of the API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import NoReturn

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.api.fastapi.service import make_app
from svc_infra.api.keys import TENANT_SCOPES
from svc_infra.db.tenant_isolation import isolate
from tests.unit.api.asking import client_of
from tests.unit.api.route_matrix import (
    ALL_SCOPES,
    OWNER,
    STRANGER,
    Operation,
    Sessions,
    make_key,
    operations_of,
    rows_in_all_tables,
)
from tests.unit.api.seeds import sow

OPEN = {"livez", "readyz"}


@pytest.fixture
async def app(engine: AsyncEngine) -> FastAPI:
    """The service; on PostgreSQL behind its second wall, row-level security."""
    if engine.dialect.name == "sqlite":
        return make_app(engine)
    async with engine.begin() as connection:
        await connection.run_sync(isolate, "svc_infra_tenant_test")
    return make_app(engine, tenant_role="svc_infra_tenant_test")


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def guarded(app: FastAPI) -> list[Operation]:
    return [operation for operation in operations_of(app) if operation.operation_id not in OPEN]


@pytest.mark.sqlite_only
async def test_every_route_says_what_it_needs(app: FastAPI, session_factory: Sessions) -> None:
    operations, seeds = operations_of(app), await sow(session_factory)
    names = [operation.operation_id for operation in operations]
    assert len(names) == len(set(names))
    assert {operation.operation_id for operation in operations if operation.scope is None} == OPEN
    assert {operation.scope for operation in guarded(app)} <= set(ALL_SCOPES)
    parameters = {name for operation in operations for name in operation.parameters}
    assert parameters - seeds.all_ids.keys() == set(), "give them ids in tests/unit/api/seeds.py"


async def test_nobody_is_let_in(app: FastAPI, client: httpx.AsyncClient, session_factory: Sessions) -> None:
    seeds = await sow(session_factory)
    before = await rows_in_all_tables(session_factory)
    let_in = {}
    for operation in guarded(app):
        answer = await operation.ask(client, seeds.all_ids)
        if (answer.status_code, answer.json()["type"]) != (401, "urn:svc-infra:problem:not-authenticated"):
            let_in[operation.operation_id] = answer.status_code
    assert let_in == {}
    assert await rows_in_all_tables(session_factory) == before


async def test_every_other_scope_is_not_enough(
    app: FastAPI, client: httpx.AsyncClient, session_factory: Sessions
) -> None:
    seeds = await sow(session_factory)
    before = await rows_in_all_tables(session_factory)
    let_in = {}
    for scope in sorted({operation.scope or "" for operation in guarded(app)}):
        others = [each for each in ALL_SCOPES if each != scope]
        key = await make_key(session_factory, None, others)
        for operation in guarded(app):
            if operation.scope == scope:
                answer = await operation.ask(client, seeds.all_ids, key, **operation.for_tenant(OWNER))
                if (answer.status_code, answer.json()["type"]) != (
                    403,
                    "urn:svc-infra:problem:scope-missing",
                ):
                    let_in[operation.operation_id] = answer.status_code
    assert let_in == {}
    after = await rows_in_all_tables(session_factory)
    assert {name for name in after if after[name] != before[name]} <= {"admin_acts"}, (
        "the keys that were made"
    )


async def test_what_another_tenant_has_answers_as_if_it_had_never_been(
    app: FastAPI, client: httpx.AsyncClient, session_factory: Sessions
) -> None:
    seeds = await sow(session_factory)
    key = await make_key(session_factory, STRANGER, list(TENANT_SCOPES))
    operator = await make_key(session_factory, None, ALL_SCOPES)
    before = await rows_in_all_tables(session_factory)
    different = {}
    for operation in guarded(app):
        owned = operation.owned(seeds)
        if not owned:
            continue
        for who in ({"key": key}, {"key": operator, "Svc-Tenant": STRANGER}):
            theirs, unknown = seeds.all_ids, {**seeds.all_ids, **seeds.unknown()}
            answers = [await operation.ask(client, ids, **who) for ids in (theirs, unknown)]
            texts = [
                masked(answer, [ids[name] for name in owned])
                for answer, ids in zip(answers, (theirs, unknown), strict=True)
            ]
            if texts[0] != texts[1] or {answer.status_code for answer in answers} != {404}:
                different[operation.operation_id] = [answer.text for answer in answers]
    assert different == {}
    assert await rows_in_all_tables(session_factory) == before


def masked(answer: httpx.Response, ids: list[str]) -> tuple[int, bytes, list[tuple[str, str]]]:
    """The answer without the ids that the caller has sent, and without the trace, which is new each time."""
    content = answer.content
    for each in ids:
        content = content.replace(each.encode(), b"ID")
    headers = [(name, value) for name, value in answer.headers.items() if name != "traceparent"]
    return answer.status_code, content, sorted(headers)


async def test_no_list_shows_what_another_tenant_has(
    app: FastAPI, client: httpx.AsyncClient, session_factory: Sessions
) -> None:
    seeds = await sow(session_factory)
    key = await make_key(session_factory, STRANGER, list(TENANT_SCOPES))
    seen = {}
    for operation in guarded(app):
        if operation.method == "GET" and not operation.owned(seeds) and operation.scope in TENANT_SCOPES:
            answer = await operation.ask(client, seeds.all_ids, key)
            shown = [text for text in seeds.secrets if text in answer.text]
            if answer.status_code != 200 or shown:
                seen[operation.operation_id] = (answer.status_code, shown)
    assert seen == {}


async def test_the_examples_of_the_document_work(
    app: FastAPI, client: httpx.AsyncClient, session_factory: Sessions
) -> None:
    seeds = await sow(session_factory)
    key = await make_key(session_factory, None, ALL_SCOPES)
    failed = {}
    # What removes something comes last, the part before the whole.
    for operation in sorted(guarded(app), key=lambda one: (one.method == "DELETE", -len(one.path))):
        answer = await operation.ask(client, seeds.all_ids, key, **operation.for_tenant(OWNER))
        assert [secret for secret in seeds.hidden if secret in answer.text] == [], operation.operation_id
        # An act may come too late for its state, as the acts before it have changed that.
        expected = {200} if operation.method == "GET" else {200, 201, 202, 204, 409}
        if operation.path.startswith("/_billing/"):
            json.loads(answer.content or b"{}", parse_float=refuse_float)
        if answer.status_code not in expected:
            failed[operation.operation_id] = (answer.status_code, answer.text)
    assert failed == {}, failed


def refuse_float(text: str) -> NoReturn:
    raise AssertionError(f"{text} is a float, and no amount of money or quantity is")
