"""Mounting the routes of jobs, queues and schedules in an application."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI

from svc_infra.api.fastapi.dependencies import PrincipalSource, SessionFactory
from svc_infra.api.fastapi.jobs import jobs, queues
from svc_infra.api.fastapi.jobs import schedules as schedule_routes
from svc_infra.api.fastapi.jobs.access import JobParts
from svc_infra.api.fastapi.mounting import include, join
from svc_infra.clock import Clock
from svc_infra.jobs.scheduler import Schedule


def add_job_routes(
    app: FastAPI,
    *,
    session_factory: SessionFactory | None = None,
    principal: PrincipalSource | None = None,
    prefix: str = "/_jobs",
    clock: Clock | None = None,
    schedules: Sequence[Schedule] = (),
) -> None:
    """Mount the routes by which an operator looks after jobs, queues and schedules under ``prefix``.

    They are open to a principal without a tenant that has the scopes ``jobs.read`` or ``jobs.write``, and to
    nobody else. Sessions, principal and clock are those of ``add_billing`` where that was called before;
    otherwise they are given here. ``schedules`` are those that the workers run, beside the ones that are
    added by hand: ``svc_infra.runtime.default_schedules(settings)`` and your application's.

    Raises:
        InvalidSettings: called twice for one application, given other sessions than what was added before,
            or the settings cannot be used.
    """
    join(app, "add_job_routes", session_factory=session_factory, principal=principal, clock=clock)
    app.state.svc_infra_jobs = JobParts(tuple(schedules))
    router = APIRouter()
    for part in (jobs, queues, schedule_routes):
        router.include_router(part.router)
    include(app, router, prefix=prefix)
