"""Requests made up from the document of the API: whatever is asked, it is answered as the document says."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.api.fastapi.service import make_app
from tests.unit.api.asking import client_of
from tests.unit.api.route_matrix import ALL_SCOPES, OWNER, Sessions, make_key, operations_of
from tests.unit.api.seeds import sow

# So many for each operation, of which each database gets every other one. Raise it to look for more.
REQUESTS = 6
load_all_checks()
# No answer of ours is a fault, and each has a status, a media type and a body that the document promises.
PROMISES = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    )
]


@pytest.fixture
def app(engine: AsyncEngine) -> FastAPI:
    return make_app(engine)


async def test_whatever_is_asked_is_answered_as_the_document_says(
    app: FastAPI, session_factory: Sessions, target: str
) -> None:
    seeds = await sow(session_factory)
    key = await make_key(session_factory, None, ALL_SCOPES)
    failures: dict[str, str] = {}
    asked = cases(json.dumps(app.openapi()))[target == "postgres" :: 2]
    async with client_of(app) as client:
        for number, (operation, case) in enumerate(asked):
            for name in case.path_parameters or {}:
                if number % 2 and name in seeds.all_ids:  # else it is made up
                    case.path_parameters[name] = seeds.all_ids[name]
            answer = await client.send(request_of(case, operation, key))
            try:
                case.validate_response(answer, checks=PROMISES)
            except FailureGroup as group:
                failures.setdefault(f"{operation}: {group.exceptions[0]}"[:600], case.as_curl_command())
    assert failures == {}
    assert len(asked) > len(operations_of(app))


@schemathesis.serializer("application/x-ndjson")
def as_it_is(_: Any, value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


@cache
def cases(document: str) -> list[tuple[str, Any]]:
    """Requests to every operation, valid and not; the same ones each time."""
    found = []
    schema: Any = schemathesis.openapi.from_dict(json.loads(document))
    for operation in (result.ok() for result in schema.get_all_operations()):
        # Which is 503 here, as the tables were not made by the migrations.
        if operation.path != "/readyz":
            found += [(operation.label, case) for case in drawn(operation.as_strategy())]
    return found


def drawn(strategy: Any) -> list[Any]:
    found: list[Any] = []

    @settings(
        max_examples=REQUESTS,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def collect(case: Any) -> None:
        found.append(case)

    collect()
    return found


def request_of(case: Any, operation: str, key: str) -> httpx.Request:
    """The request of a case as the operator's, for the owner unless the route is no tenant's."""
    prepared: Any = requests.Request(**case.as_transport_kwargs(base_url="http://app.test")).prepare()
    headers = {name: str(value) for name, value in prepared.headers.items() if name.lower() != "svc-tenant"}
    headers["Authorization"] = f"Bearer {key}"
    if "/_jobs/" not in operation:
        headers["Svc-Tenant"] = OWNER
    return httpx.Request(prepared.method, prepared.url, headers=headers, content=prepared.body)
