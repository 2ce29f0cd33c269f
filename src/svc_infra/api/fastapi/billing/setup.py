"""Mounting billing in an application."""

from __future__ import annotations

from fastapi import FastAPI

from svc_infra.api.fastapi.billing.router import make_router
from svc_infra.api.fastapi.billing.usage_gathering import UsageGatherer
from svc_infra.api.fastapi.dependencies import PrincipalSource, SessionFactory
from svc_infra.api.fastapi.mounting import include, join
from svc_infra.billing.usage_limits import NO_LIMITS, UsageLimits
from svc_infra.clock import Clock


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
        InvalidSettings: called twice for one application, given other sessions than what was added before,
            or the settings cannot be used.
    """
    context = join(app, "add_billing", session_factory=session_factory, principal=principal, clock=clock)
    context.limits = limits
    app.state.svc_infra_usage = UsageGatherer(context.clock, limits)
    has_default_provider = context.database.settings.billing.provider != "none"
    context.has_provider = has_default_provider if has_provider is None else has_provider
    include(app, make_router(), prefix=prefix)
