"""Webhooks in an application: published in its transactions, delivered in the background of its life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from svc_infra.db.outbox import InMemoryOutboxStore, OutboxStore
from svc_infra.webhooks.endpoints import SqlWebhookEndpoints
from svc_infra.webhooks.service import InMemoryWebhookSubscriptions, WebhookService


def add_webhooks(
    app: Any,
    *,
    service: WebhookService | None = None,
    outbox: OutboxStore | None = None,
    subs: InMemoryWebhookSubscriptions | SqlWebhookEndpoints | None = None,
    poll_seconds: float = 1.0,
) -> WebhookService:
    """Deliver webhooks in the background for as long as the FastAPI or Starlette ``app`` runs.

    Give it the service that the application publishes with, or the two stores to make one from (in memory
    unless given). The service is returned and kept as ``app.state.webhooks``::

        webhooks = add_webhooks(app, outbox=SqlOutboxStore(), subs=SqlWebhookEndpoints(session_factory))

    Delivery starts and stops with the application's lifespan; what is under way then is finished first.
    Where ``worker.py run`` delivers, the application needs no delivery of its own: publish with a
    ``WebhookService`` and leave this out.
    """
    if service is None:
        service = WebhookService(
            outbox=InMemoryOutboxStore() if outbox is None else outbox,
            subs=InMemoryWebhookSubscriptions() if subs is None else subs,
        )
    webhooks = service
    app.state.webhooks = webhooks
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running_app: Any) -> AsyncIterator[Any]:
        async with inner(running_app) as state:
            stop = asyncio.Event()
            delivering = asyncio.create_task(webhooks.run(stop, poll_seconds=poll_seconds))
            try:
                yield state
            finally:
                stop.set()
                await delivering

    app.router.lifespan_context = lifespan
    return webhooks
