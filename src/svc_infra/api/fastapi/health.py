"""Health at the root: alive is that the process answers, ready that its database can be used."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from svc_infra.api.fastapi.dependencies import context_of
from svc_infra.api.fastapi.middleware.errors.handlers import RETRY_AFTER_SECONDS
from svc_infra.api.fastapi.middleware.errors.kinds import NOT_READY
from svc_infra.api.fastapi.middleware.errors.problem import problem_of
from svc_infra.db.readiness import why_not_ready


class Healthy(BaseModel):
    """All is well."""

    status: Literal["ok"] = "ok"


def health_router() -> APIRouter:
    """Make ``/livez`` and ``/readyz``, the only routes that are open to everybody."""
    router = APIRouter(tags=["health"])
    router.add_api_route("/livez", livez, methods=["GET"], operation_id="livez")
    router.add_api_route(
        "/readyz",
        readyz,
        methods=["GET"],
        operation_id="readyz",
        response_model=Healthy,
        responses={503: {"description": "The database cannot be used now."}},
    )
    return router


async def livez() -> Healthy:
    """Say that this process answers; asks nothing of the database, whose absence no restart would mend."""
    return Healthy()


async def readyz(request: Request) -> Healthy | Response:
    """Say whether requests can be served: the database answers, at the schema of this version."""
    reason = await why_not_ready(context_of(request).database.engine)
    if reason is None:
        return Healthy()
    return problem_of(NOT_READY, detail=reason, retry_after_seconds=RETRY_AFTER_SECONDS)
