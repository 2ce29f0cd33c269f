"""What the webhook benchmarks publish from: a database with endpoints that lead to the sink."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from _common import check_equal
from _sink import Sink
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.migration import migrate
from svc_infra.db.outbox import SqlOutboxStore
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.webhooks.endpoints import EndpointRules, SqlWebhookEndpoints, add_endpoint
from svc_infra.webhooks.guard import LOOPBACK_NETWORKS, PublicAddresses, UrlPolicy
from svc_infra.webhooks.models import DeliveryAttemptRow
from svc_infra.webhooks.service import Publication, WebhookService

GIVE_UP_SECONDS = 300.0
TOPIC = "billing.invoice.created"
_RULES = EndpointRules(UrlPolicy(allow_http=True, ports=None), PublicAddresses(LOOPBACK_NETWORKS))


class Shop:
    """A publisher on the database of ``url``. Its processes are this one and whatever worker runs beside."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self.session_factory = make_session_factory(self.engine)
        # As many as there are connections: who waits for one has not begun to publish.
        self._publishing = asyncio.Semaphore(8)
        self._webhooks = WebhookService(
            outbox=SqlOutboxStore(), subs=SqlWebhookEndpoints(self.session_factory, rules=_RULES)
        )

    async def open(self, urls: Sequence[str], *, per_tenant: bool = False) -> list[str]:
        """Make the tables and an endpoint for each URL, of a tenant of its own if so; return their ids."""
        await migrate(self.engine)

        def add_all(session: AsyncSession) -> list[str]:
            return [
                add_endpoint(
                    session,  # type: ignore[arg-type]
                    url=url,
                    topics=["*"],
                    tenant_id=f"tenant_{number}" if per_tenant else None,
                    rules=_RULES,
                ).id
                for number, url in enumerate(urls)
            ]

        async with self.session_factory.begin() as session:
            return await session.run_sync(add_all)  # type: ignore[arg-type]

    async def publish(self, number: int = 0) -> tuple[str, float]:
        """Publish one message of a tenant in its own transaction; return its id and when that began."""
        topic, payload, tenant_id = _fact(number)
        async with self._publishing:
            started = time.monotonic()
            async with self.session_factory.begin() as session:
                message_id = self._webhooks.publish(topic, payload, session=session, tenant_id=tenant_id)
        return message_id, started

    async def publish_many(self, count: int, *, tenants: int, at_once: int = 500) -> None:
        """Publish so many messages of so many tenants in turn, so many in a transaction."""
        for first in range(0, count, at_once):
            numbers = [n % tenants for n in range(first, min(first + at_once, count))]
            publications = [
                Publication(topic, payload, tenant_id) for topic, payload, tenant_id in map(_fact, numbers)
            ]
            async with self.session_factory.begin() as session:
                await session.run_sync(
                    lambda sync, batch=publications: self._webhooks.publish_many(sync, batch)
                )

    async def count_attempts(self) -> int:
        """Return how many delivery attempts are recorded."""
        async with self.session_factory() as session:
            return await session.scalar(select(func.count()).select_from(DeliveryAttemptRow)) or 0

    async def execute(self, statement: str, **parameters: object) -> object:
        """Execute a statement in a transaction and return its first value, if it has one."""
        async with self.session_factory.begin() as session:
            result = await session.execute(text(statement), parameters)
            return result.scalar() if result.returns_rows else None

    async def close(self) -> None:
        await self.engine.dispose()


async def received(sink: Sink, count: int) -> None:
    """Wait until the sink has so many receipts."""
    give_up_at = time.monotonic() + GIVE_UP_SECONDS
    while (seen := sink.receipts()) < count:
        if time.monotonic() > give_up_at:
            check_equal("receipts", seen, count)
        await asyncio.sleep(0.01)
    check_equal("receipts", seen, count)


async def recorded(shop: Shop, count: int) -> None:
    """Wait until so many attempts are recorded."""
    give_up_at = time.monotonic() + GIVE_UP_SECONDS
    while (seen := await shop.count_attempts()) < count and time.monotonic() < give_up_at:
        await asyncio.sleep(0.05)
    check_equal("attempts recorded", seen, count)


def _fact(number: int) -> tuple[str, dict[str, str], str]:
    tenant_id = f"tenant_{number}"
    payload = {
        "tenant_id": tenant_id,
        "invoice_id": f"invoice_{number}",
        "period_start": "2025-01-01T00:00:00Z",
        "period_end": "2025-02-01T00:00:00Z",
        "currency": "usd",
    }
    return TOPIC, payload, tenant_id
