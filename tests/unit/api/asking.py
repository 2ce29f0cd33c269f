"""Asking an application over ASGI, as different callers."""

from __future__ import annotations

import httpx
from fastapi import Request
from starlette.types import ASGIApp

from svc_infra.api.fastapi.dependencies import Principal

ONE = {"Authorization": "Bearer one"}
TWO = {"Authorization": "Bearer two"}
READER = {"Authorization": "Bearer reader"}
WRITER = {"Authorization": "Bearer writer"}

# What an application's own tokens might stand for.
_PRINCIPALS = {
    "Bearer one": Principal("t1"),
    "Bearer two": Principal("t2"),
    "Bearer reader": Principal("t1", frozenset({"billing.read"})),
    "Bearer writer": Principal("t1", frozenset({"billing.write"})),
}


async def principal_of(request: Request) -> Principal | None:
    return _PRINCIPALS.get(request.headers.get("Authorization", ""))


def client_of(app: ASGIApp, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """A client that gets what a server would answer, also to an error that nobody expected."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://app.test", headers=headers)
