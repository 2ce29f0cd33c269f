"""Mounting a part of the API in an application: all parts share one database, one clock, one principal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from svc_infra.api.fastapi.answer_examples import with_examples
from svc_infra.api.fastapi.dependencies import ApiContext, Database, PrincipalSource, SessionFactory
from svc_infra.api.fastapi.middleware.errors.handlers import answer_error
from svc_infra.clock import Clock, SystemClock
from svc_infra.exceptions import InvalidSettings, SvcInfraError


def join(
    app: FastAPI,
    part: str,
    *,
    session_factory: SessionFactory | None = None,
    principal: PrincipalSource | None = None,
    clock: Clock | None = None,
) -> ApiContext:
    """Return what the parts of ``app`` share; the first part that joins makes it.

    Without a ``session_factory`` the settings say which database it is (a SQLite file unless they name
    another); its engine is made by the first request and disposed when the application shuts down. Sessions
    of the caller's own stay its own.

    Raises:
        InvalidSettings: ``part`` was added before, a later part gives something else than the first, or the
            settings cannot be used.
    """
    context = getattr(app.state, "svc_infra", None)
    if context is None:
        context = _begin(app, session_factory, principal, clock or SystemClock())
    elif part in context.mounted:
        raise InvalidSettings(f"{part} was called for this application before; call it once")
    elif (
        not context.database.is_of(session_factory)
        or principal not in (None, context.principal)
        or clock not in (None, context.clock)
    ):
        raise InvalidSettings(
            f"{part} gives another session_factory, principal or clock than the part before"
        )
    context.mounted.add(part)
    return context


def include(app: FastAPI, router: APIRouter, *, prefix: str) -> None:
    """Mount ``router``; our own errors are answered for what they are, whoever registered handlers."""
    app.exception_handlers.setdefault(SvcInfraError, answer_error)
    app.include_router(router, prefix=prefix)


def _begin(
    app: FastAPI, session_factory: SessionFactory | None, principal: PrincipalSource | None, clock: Clock
) -> ApiContext:
    database = Database(session_factory)
    context = app.state.svc_infra = ApiContext(database, principal, clock)
    context.tenant_role = database.settings.database.tenant_role
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running_app: Any) -> AsyncIterator[Any]:
        async with inner(running_app) as state:
            try:
                yield state
            finally:
                await database.close()

    app.router.lifespan_context = lifespan
    app.openapi = with_examples(app.openapi)  # type: ignore[method-assign]  # as FastAPI documents it
    return context
