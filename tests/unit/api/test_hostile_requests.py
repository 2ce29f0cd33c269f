"""Requests that were never meant well, at every route: refused in order, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.api.fastapi.service import make_app
from svc_infra.api.fastapi.strict_json import MAX_DEPTH, parse_body
from tests.unit.api.asking import client_of
from tests.unit.api.route_matrix import (
    ALL_SCOPES,
    OPERATOR_ONLY,
    OWNER,
    Operation,
    Sessions,
    make_key,
    operations_of,
    rows_in_all_tables,
)
from tests.unit.api.seeds import sow

# These answer event by event: an event that is refused stands in an answer of 200, beside the others.
ITEM_BY_ITEM = {"billing_record_usage_batch", "billing_record_usage_stream"}
LONG = 300_000


@pytest.fixture
def app(engine: AsyncEngine) -> FastAPI:
    return make_app(engine)


def as_text(value: Any) -> str:
    return json.dumps(value)


def hostile_bodies(example: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Bodies that each have one thing wrong, by what that is."""
    inner = as_text(example)[1:-1]
    more = f", {inner}" if inner else ""
    yield "no JSON", "{"
    yield "another type", "[[1]]"
    yield "a text", '"x"'
    yield "NaN", f'{{"{next(iter(example), "x")}x": NaN{more}}}'
    yield "infinite", f'{{"x": 1e400{more}}}'
    yield "unknown", f'{{"unknown_field": 1{more}}}'
    yield "deep", f'{{"x": {"[" * 100_000}{"]" * 100_000}{more}}}'
    yield "no UTF-8", '{"x": "\udcff"}'
    for name, value in example.items():
        rest = {other: kept for other, kept in example.items() if other != name}
        others = f", {as_text(rest)[1:-1]}" if rest else ""
        yield f"{name}: twice", f'{{"{name}": {as_text(value)}, "{name}": {as_text(value)}{others}}}'
        wrong = [("type", "[[1]]"), ("number", "1e400"), ("constant", "-Infinity"), ("long", "9" * 5_000)]
        if isinstance(value, str):
            wrong += [("surrogate", '"\\ud800"'), ("NUL", '"a\\u0000b"'), ("length", as_text("x" * LONG))]
        for what, text in wrong:
            yield f"{name}: {what}", f'{{"{name}": {text}{others}}}'


def example_of(operation: Operation) -> dict[str, Any] | None:
    if operation.body is None or operation.operation_id in ITEM_BY_ITEM:
        return None
    example = json.loads(operation.body)
    assert isinstance(example, dict)
    return example


# Where they would end in an error if they came through; SQLite takes more, and keeps it.
@pytest.mark.postgres_only
async def test_a_hostile_body_is_refused_everywhere_and_writes_nothing(
    app: FastAPI, session_factory: Sessions
) -> None:
    seeds = await sow(session_factory)
    key = await make_key(session_factory, None, ALL_SCOPES)
    before = await rows_in_all_tables(session_factory)
    let_in: dict[str, int] = {}
    async with client_of(
        app, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    ) as client:
        for operation in operations_of(app):
            example = example_of(operation)
            if example is None:
                continue
            url = operation.path.format(**{name: seeds.all_ids[name] for name in operation.parameters})
            headers = operation.for_tenant(OWNER) | dict(operation.headers)
            for what, body in hostile_bodies(example):
                content = body.encode("utf-8", "surrogateescape")
                answer = await client.request(operation.method, url, content=content, headers=headers)
                is_problem = answer.headers["Content-Type"] == "application/problem+json"
                if not 400 <= answer.status_code < 500 or not is_problem or len(answer.content) > 5_000:
                    let_in[f"{operation.operation_id}: {what}"] = answer.status_code
    assert let_in == {}
    assert await rows_in_all_tables(session_factory) == before


@pytest.mark.postgres_only
async def test_a_hostile_path_or_query_is_refused_everywhere(app: FastAPI, session_factory: Sessions) -> None:
    seeds = await sow(session_factory)
    key = await make_key(session_factory, None, ALL_SCOPES)
    before = await rows_in_all_tables(session_factory)
    document, let_in = app.openapi(), dict[str, int]()
    async with client_of(app, {"Authorization": f"Bearer {key}"}) as client:
        for operation in operations_of(app):
            spec = document["paths"][operation.path][operation.method.lower()]
            headers = {"Content-Type": operation.content_type, **operation.for_tenant(OWNER)}
            places = [each for each in spec.get("parameters", ()) if each["in"] in ("path", "query")]
            for place in places:
                for text in hostile_texts(operation):
                    url = with_hostile(operation, seeds.all_ids, place["name"], text)
                    answer = await client.request(
                        operation.method, url, content=operation.body, headers=headers
                    )
                    # A text that is only strange may be a name that nothing has.
                    is_fine = text in STRANGE and answer.status_code == 200
                    if not (is_fine or 400 <= answer.status_code < 500):
                        let_in[f"{operation.operation_id}: {place['name']}={text[:9]}"] = answer.status_code
    assert let_in == {}
    assert await rows_in_all_tables(session_factory) == before


@pytest.mark.postgres_only
async def test_a_tenant_that_none_can_be_is_refused_everywhere(
    app: FastAPI, session_factory: Sessions
) -> None:
    seeds = await sow(session_factory)
    key = await make_key(session_factory, None, ALL_SCOPES)
    before, let_in = await rows_in_all_tables(session_factory), dict[str, int]()
    async with client_of(app) as client:
        for operation in operations_of(app):
            if operation.scope is None or operation.scope in OPERATOR_ONLY:
                continue
            for tenant_id in ("", "x" * 256):
                answer = await operation.ask(client, seeds.all_ids, key, **{"Svc-Tenant": tenant_id})
                if answer.status_code != 400:
                    let_in[f"{operation.operation_id}: {len(tenant_id)}"] = answer.status_code
    assert let_in == {}
    assert await rows_in_all_tables(session_factory) == before


STRANGE = ("%ff%fe", "%ed%a0%80", "..%2f..")


def hostile_texts(operation: Operation) -> tuple[str, ...]:
    return ("a%00b", "x" * 5_000, *(STRANGE if operation.method == "GET" else ()))


def with_hostile(operation: Operation, ids: dict[str, str], name: str, text: str) -> str:
    path = operation.path.format(**{each: (ids | {name: text})[each] for each in operation.parameters})
    query = {str(each): str(value) for each, value in operation.query.items()}
    if name not in operation.parameters:
        query[name] = text
    return path + "?" + "&".join(f"{each}={value}" for each, value in query.items())


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "\\u0061": 2}}]', "[NaN]", "[1e400]", "[-1e400]", "{'a': 1}"],
)
def test_json_that_parsers_read_differently_is_none(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        parse_body(text.encode())


def test_json_is_as_deep_as_it_may_be() -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        assert parse_body((opening * MAX_DEPTH + "1" + closing * MAX_DEPTH).encode())
        with pytest.raises(json.JSONDecodeError, match="deeper"):
            parse_body((opening * (MAX_DEPTH + 1) + "1" + closing * (MAX_DEPTH + 1)).encode())
    assert parse_body(b'{"a": [1, 2.5, "\xc3\xa9", null]}') == {"a": [1, 2.5, "é", None]}
