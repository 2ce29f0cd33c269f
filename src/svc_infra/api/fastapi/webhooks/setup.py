"""Mounting the routes of webhooks in an application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI

from svc_infra.api.fastapi.dependencies import PrincipalSource, SessionFactory
from svc_infra.api.fastapi.mounting import include, join
from svc_infra.api.fastapi.webhooks import deliveries, endpoints, replays, secrets
from svc_infra.api.fastapi.webhooks import topics as topic_routes
from svc_infra.api.fastapi.webhooks.access import WebhookParts
from svc_infra.billing.topics import billing_topics
from svc_infra.clock import Clock
from svc_infra.webhooks.catalogue import TopicCatalogue
from svc_infra.webhooks.endpoint_rules import endpoint_rules
from svc_infra.webhooks.endpoints import EndpointRules
from svc_infra.webhooks.operational import operational_topics


def add_webhook_routes(
    app: FastAPI,
    *,
    session_factory: SessionFactory | None = None,
    principal: PrincipalSource | None = None,
    prefix: str = "/_webhooks",
    clock: Clock | None = None,
    rules: EndpointRules | None = None,
    topics: TopicCatalogue | None = None,
) -> None:
    """Mount the routes by which tenants look after their endpoints and deliveries under ``prefix``.

    Sessions, principal and clock are those of ``add_billing`` where that was called before; otherwise they
    are given here. ``rules`` say which URLs endpoints may have and what seals their secrets; unless given,
    the settings do (``webhooks.*``). ``topics`` are your own, beside billing's and those of webhooks
    themselves; all of them make the ``webhooks`` section of the application's OpenAPI document.

    Delivering is another matter: that is ``worker.py run``, or ``svc_infra.webhooks.add.add_webhooks``.

    Raises:
        InvalidSettings: called twice for one application, given other sessions than what was added before,
            or the settings cannot be used.
        InvalidTopic: a topic of yours is one of the others.
    """
    context = join(
        app, "add_webhook_routes", session_factory=session_factory, principal=principal, clock=clock
    )
    chosen = rules or endpoint_rules(context.database.settings.webhooks)
    context.secret_keys = chosen.keys
    known = TopicCatalogue()
    for some in (billing_topics(), operational_topics(), topics or TopicCatalogue()):
        known.include(some)
    app.state.svc_infra_webhooks = WebhookParts(chosen, known)
    include(app, _router(), prefix=prefix)
    app.openapi = _with_webhooks(app.openapi, known)  # type: ignore[method-assign]  # as FastAPI documents it


def _router() -> APIRouter:
    router = APIRouter()
    for part in (endpoints, secrets, deliveries, replays, topic_routes):
        router.include_router(part.router)
    return router


def _with_webhooks(openapi: Callable[[], dict[str, Any]], topics: TopicCatalogue) -> Callable[[], Any]:
    def document() -> dict[str, Any]:
        made = openapi()
        made.setdefault("webhooks", {}).update(topics.openapi_webhooks())
        return made

    return document
