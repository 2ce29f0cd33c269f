"""Mounting billing in an application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from svc_infra.api.fastapi.billing.router import make_router
from svc_infra.api.fastapi.dependencies import ApiContext, Database, PrincipalSource, SessionFactory
from svc_infra.api.fastapi.middleware.errors.handlers import answer_error
from svc_infra.billing.usage_limits import NO_LIMITS, UsageLimits
from svc_infra.clock import Clock, SystemClock
from svc_infra.exceptions import InvalidSettings, SvcInfraError


def add_billing(
    app: FastAPI,
    *,
    session_factory: SessionFactory | None = None,
    principal: PrincipalSource | None = None,
    prefix: str = "/_billing",
    clock: Clock | None = None,
    limits: UsageLimits = NO_LIMITS,
    has_provider: bool | None = None,
) -> None:
    """Mount billing's routes under ``prefix``.

    Without a ``session_factory`` the settings say which database it is (a SQLite file unless they name
    another); its engine is made by the first request and disposed when the application shuts down. Sessions
    of your own stay yours.

    ``principal`` tells who is asking: it takes the request and returns a ``Principal``, or None, which is
    refused with 401. It may be async; a sync one must not block. Without it, ``request.state.principal`` is
    read, which your authentication middleware sets::

        add_billing(app, session_factory=sessions, principal=lambda request: tenant_of(request.user))

    ``limits`` say how far from now usage may lie; what lies beyond is refused. ``has_provider`` says whether
    an invoice issued over HTTP is mirrored by ``billing.sync_invoice``; unless given, the settings do.

    Raises:
        InvalidSettings: called twice for one application, or the settings cannot be used.
    """
    if getattr(app.state, "svc_infra", None) is not None:
        raise InvalidSettings("add_billing was called for this application before; call it once")
    database = Database(session_factory)
    if has_provider is None:
        has_provider = database.billing.provider != "none"
    app.state.svc_infra = ApiContext(database, principal, clock or SystemClock(), limits, has_provider)
    # An application without register_error_handlers still answers our own errors for what they are.
    app.exception_handlers.setdefault(SvcInfraError, answer_error)
    app.include_router(make_router(), prefix=prefix)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running_app: Any) -> AsyncIterator[Any]:
        async with inner(running_app) as state:
            try:
                yield state
            finally:
                await database.close()

    app.router.lifespan_context = lifespan
