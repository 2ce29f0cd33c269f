"""What the routes of jobs depend on: an operator with the scope, and the schedules that are known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from pydantic import Field

from svc_infra.api.fastapi.dependencies import TENANT_HEADER, Principal, get_clock, require_scope
from svc_infra.api.fastapi.fields import Text
from svc_infra.api.fastapi.middleware.errors.kinds import SCOPE_MISSING
from svc_infra.api.fastapi.middleware.errors.problem import Refusal
from svc_infra.clock import Clock
from svc_infra.jobs.job import MAX_QUEUE_LENGTH
from svc_infra.jobs.scheduler import Schedule


@dataclass(frozen=True, slots=True)
class JobParts:
    """What ``add_job_routes`` leaves for the dependencies."""

    schedules: Sequence[Schedule]


async def get_parts(request: Request) -> JobParts:
    """Depend on the schedules that are known without the database."""
    app: FastAPI = request.app
    parts: JobParts = app.state.svc_infra_jobs
    return parts


def require_operator(scope: str) -> Callable[..., Awaitable[Principal]]:
    """Return a dependency on an operator who has ``scope``; one who acts for a tenant is answered 403.

    So a tenant's principal reaches no job, whatever scopes an application gave it by mistake.
    """

    has_scope = Depends(require_scope(scope, needs_tenant=False))

    async def operator(principal: Principal = has_scope) -> Principal:
        if principal.tenant_id:
            raise Refusal(SCOPE_MISSING, f"This is the operator's alone: leave out {TENANT_HEADER}.")
        return principal

    return operator


Reader = Annotated[Principal, Depends(require_operator("jobs.read"))]
Writer = Annotated[Principal, Depends(require_operator("jobs.write"))]
AppClock = Annotated[Clock, Depends(get_clock)]
Parts = Annotated[JobParts, Depends(get_parts)]
Name = Annotated[Text, Field(min_length=1, max_length=200)]
QueueName = Annotated[Text, Field(min_length=1, max_length=MAX_QUEUE_LENGTH)]
