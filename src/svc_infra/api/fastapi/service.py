"""The HTTP API as a service of its own: what ``worker.py api`` serves."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra import __version__
from svc_infra.api.fastapi.billing.setup import add_billing
from svc_infra.api.fastapi.health import health_router
from svc_infra.api.fastapi.jobs.setup import add_job_routes
from svc_infra.api.fastapi.middleware.errors.handlers import register_error_handlers
from svc_infra.api.fastapi.webhooks.setup import add_webhook_routes
from svc_infra.billing.usage_limits import NO_LIMITS, UsageLimits
from svc_infra.db.session import make_session_factory
from svc_infra.jobs.scheduler import Schedule
from svc_infra.webhooks.catalogue import TopicCatalogue
from svc_infra.webhooks.endpoints import EndpointRules

_DESCRIPTION = """Usage in; daily totals, invoices and webhooks out.

Send an API key as `Authorization: Bearer svck_…`. Every error is a problem document (RFC 9457). A request
that changes something may carry an `Idempotency-Key`; repeated within three days, it gets the first answer.
Money is an integer of minor units, a quantity a decimal string, an instant ISO 8601 in UTC."""


def make_app(
    engine: AsyncEngine,
    limits: UsageLimits = NO_LIMITS,
    *,
    has_provider: bool | None = None,
    rules: EndpointRules | None = None,
    topics: TopicCatalogue | None = None,
    schedules: Sequence[Schedule] = (),
    tenant_role: str = "",
) -> FastAPI:
    """Make the application on ``engine``, which stays the caller's to dispose.

    The rest is as ``add_billing``, ``add_webhook_routes`` and ``add_job_routes`` take it;
    ``tenant_role`` is ``database.tenant_role`` of the settings.
    """
    app = FastAPI(
        title="svc_infra billing",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        # The framework's own spans and log records have URLs and the messages of errors in them.
        telemetry={"tracing": False, "logs": False},
    )
    register_error_handlers(app)
    add_billing(app, session_factory=make_session_factory(engine), limits=limits, has_provider=has_provider)
    app.state.svc_infra.tenant_role = tenant_role
    add_webhook_routes(app, rules=rules, topics=topics)
    add_job_routes(app, schedules=schedules)
    app.include_router(health_router())
    return app
