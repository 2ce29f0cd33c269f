"""Every route as its own document describes it: the requests that the matrix of routes and roles makes.

A route is known by the OpenAPI document alone: the scope that it needs, its required parameters and its body,
all with the document's own examples. The ids in its path are those of ``Seeds``, by the parameter's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.dependencies import TENANT_HEADER
from svc_infra.api.keys import OPERATOR_SCOPES, TENANT_SCOPES, create_key
from svc_infra.clock import SystemClock
from svc_infra.db.base import new_id
from svc_infra.db.schema import metadata

Sessions = async_sessionmaker[AsyncSession]
OWNER, STRANGER = "t-owner", "t-stranger"
# What reading may write: when a key was used last, and the secret of the cursors.
_NOT_COUNTED = {"api_keys", "installation_secrets"}


@dataclass
class Seeds:
    """What the owner has: the id for each path parameter, and texts that nobody else may ever see.

    A parameter in ``shared`` names what is no tenant's, like a plan. ``hidden`` is for nobody's eyes.
    """

    ids: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    canaries: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    @property
    def all_ids(self) -> dict[str, str]:
        return {**self.ids, **self.shared}

    @property
    def secrets(self) -> list[str]:
        """What no answer to a stranger may show: the owner's name, its texts, and its ids that are random."""
        return [OWNER, *self.canaries, *(value for value in self.ids.values() if len(value) == len(new_id()))]

    def unknown(self) -> dict[str, str]:
        """Ids that never existed, of the same form."""
        return {
            name: new_id() if len(value) == len(new_id()) else value[::-1] for name, value in self.ids.items()
        }


@dataclass(frozen=True)
class Operation:
    """One route and method, with what the document says of it."""

    method: str
    path: str
    operation_id: str
    scope: str | None
    query: Mapping[str, Any]
    headers: Mapping[str, str]
    body: bytes | None
    content_type: str
    parameters: tuple[str, ...]

    def for_tenant(self, tenant_id: str) -> dict[str, str]:
        """The header by which an operator says for whom; jobs are no tenant's, and there it is refused."""
        return {} if self.scope in OPERATOR_ONLY else {TENANT_HEADER: tenant_id}

    def owned(self, seeds: Seeds) -> list[str]:
        """The path parameters that name something of one tenant."""
        return [name for name in self.parameters if name in seeds.ids]

    async def ask(
        self, client: httpx.AsyncClient, ids: Mapping[str, str], key: str | None = None, **headers: str
    ) -> httpx.Response:
        """Make the documented request with these ids, as the holder of ``key``."""
        headers |= {**self.headers, "Content-Type": self.content_type}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        url = self.path.format(**{name: ids[name] for name in self.parameters})
        return await client.request(
            self.method, url, params=dict(self.query), content=self.body, headers=headers
        )


def operations_of(app: FastAPI) -> list[Operation]:
    """Every operation of the application's OpenAPI document."""
    document = json.loads(json.dumps(app.openapi()))
    return list(_operations(document))


def _operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, methods in document["paths"].items():
        for method, spec in methods.items():
            parameters = spec.get("parameters", [])
            scopes = [scope for each in spec.get("security", ()) for scope in each.get("apiKey", ())]
            assert len(scopes) <= 1, f"{method} {path} needs {scopes}; the matrix knows one scope a route"
            content_type, body = _body(document, spec)
            yield Operation(
                method=method.upper(),
                path=path,
                operation_id=spec["operationId"],
                scope=scopes[0] if scopes else None,
                query={
                    p["name"]: _example(document, p)
                    for p in parameters
                    if p["in"] == "query" and p["required"]
                },
                headers={"If-Match": "*"} if any(p["name"] == "If-Match" for p in parameters) else {},
                body=body,
                content_type=content_type,
                parameters=tuple(p["name"] for p in parameters if p["in"] == "path"),
            )


def _body(document: dict[str, Any], spec: dict[str, Any]) -> tuple[str, bytes | None]:
    if "requestBody" not in spec:
        return "application/json", None
    [(content_type, media)] = spec["requestBody"]["content"].items()
    example = _example(document, media)
    return content_type, (example if isinstance(example, str) else json.dumps(example)).encode()


def _example(document: dict[str, Any], described: dict[str, Any]) -> Any:
    """The example of a parameter or a body, wherever the document has it."""
    if "example" in described:
        return described["example"]
    if "$ref" in described:
        return _example(document, document["components"]["schemas"][described["$ref"].rpartition("/")[2]])
    if described.get("examples"):
        return described["examples"][0]
    if "schema" in described:
        return _example(document, described["schema"])
    raise AssertionError(f"the document has no example: {json.dumps(described)[:200]}")


async def make_key(sessions: Sessions, tenant_id: str | None, scopes: list[str]) -> str:
    """A key of a tenant (or, with None, of the operator) with exactly these scopes."""
    async with sessions.begin() as session:
        _, text = await session.run_sync(
            create_key,
            name="matrix",
            tenant_id=tenant_id,
            scopes=scopes,
            actor="test",
            now=SystemClock().now(),
        )
    return text


async def rows_in_all_tables(sessions: Sessions) -> dict[str, int]:
    """How many rows each table has, but for those that reading may touch."""

    def count(session: Session) -> dict[str, int]:
        return {
            table.name: session.scalar(select(func.count()).select_from(table)) or 0
            for table in metadata().sorted_tables
            if table.name not in _NOT_COUNTED
        }

    async with sessions() as session:
        return await session.run_sync(count)


ALL_SCOPES = list(OPERATOR_SCOPES)
OPERATOR_ONLY = set(OPERATOR_SCOPES) - set(TENANT_SCOPES)
