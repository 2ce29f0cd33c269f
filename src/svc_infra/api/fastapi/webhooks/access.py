"""What the routes of webhooks depend on: a caller with the scope, the rules for endpoints, the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request

from svc_infra.api.fastapi.dependencies import Principal, get_clock, require_scope
from svc_infra.clock import Clock
from svc_infra.webhooks.catalogue import TopicCatalogue
from svc_infra.webhooks.endpoints import EndpointRules


@dataclass(frozen=True, slots=True)
class WebhookParts:
    """What ``add_webhook_routes`` leaves for the dependencies."""

    rules: EndpointRules
    topics: TopicCatalogue


async def get_parts(request: Request) -> WebhookParts:
    """Depend on the rules for endpoints and the catalogue of topics."""
    app: FastAPI = request.app
    parts: WebhookParts = app.state.svc_infra_webhooks
    return parts


Reader = Annotated[Principal, Depends(require_scope("webhooks.read"))]
Writer = Annotated[Principal, Depends(require_scope("webhooks.write"))]
AppClock = Annotated[Clock, Depends(get_clock)]
Parts = Annotated[WebhookParts, Depends(get_parts)]
