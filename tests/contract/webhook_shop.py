"""A small shop that publishes, delivers through a scripted sender, and lets a test look at the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.clock import FixedClock
from svc_infra.db.outbox import OutboxMessageRow, SqlOutboxStore
from svc_infra.webhooks.delivery import Answer, OutgoingRequest, RetrySchedule, SendResult
from svc_infra.webhooks.endpoints import EndpointRules, SqlWebhookEndpoints, add_endpoint
from svc_infra.webhooks.health import HealthPolicy
from svc_infra.webhooks.models import DeliveryRow, EndpointRow
from svc_infra.webhooks.sealing import KeyRing
from svc_infra.webhooks.service import WebhookService

Factory = async_sessionmaker[AsyncSession]
T = TypeVar("T")
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
TOPIC = "shop.order.paid"
URL = "https://receiver.example/hook"


class FakeSender:
    """Answers what it is told, by URL, and remembers every request."""

    def __init__(self) -> None:
        self.requests: list[OutgoingRequest] = []
        self.answers: dict[str, list[SendResult]] = {}

    async def send(self, request: OutgoingRequest) -> SendResult:
        self.requests.append(request)
        script = self.answers.get(request.url)
        return script.pop(0) if script else Answer(204, None, b"", 1)

    def data(self) -> list[Any]:
        return [json.loads(request.body)["data"] for request in self.requests]


class Shop:
    """A publisher, a deliverer and the clock they share."""

    def __init__(self, factory: Factory, *, keys: KeyRing | None = None, attempts: int = 50) -> None:
        self.factory = factory
        self.clock = FixedClock(NOON)
        self.sender = FakeSender()
        self.rules = EndpointRules(keys=keys)
        self.service = WebhookService(
            outbox=SqlOutboxStore(),
            subs=SqlWebhookEndpoints(factory, rules=self.rules),
            clock=self.clock,
            sender=self.sender,
            schedule=RetrySchedule((0, *[60.0] * (attempts - 1)), jitter=0),
            keys=keys,
            health=HealthPolicy(pause_after=5, disable_after_seconds=3600),
        )

    async def do(self, act: Callable[..., T], *arguments: Any, **named: Any) -> T:
        async with self.factory.begin() as session:
            return await session.run_sync(lambda sync: act(sync, *arguments, **named))

    async def add(self, url: str = URL, **named: Any) -> str:
        arguments = {"topics": [TOPIC], **named}
        return (await self.do(add_endpoint, url=url, rules=self.rules, **arguments)).id

    async def publish(self, *payloads: dict[str, Any], topic: str = TOPIC, **named: Any) -> list[str]:
        async with self.factory.begin() as session:
            return [self.service.publish(topic, one, session=session, **named) for one in payloads]

    async def states(self, endpoint_id: str) -> list[tuple[str, str | None]]:
        async with self.factory() as session:
            query = select(DeliveryRow).where(DeliveryRow.endpoint_id == endpoint_id).order_by(DeliveryRow.id)
            return [(row.state, row.hold_reason) for row in await session.scalars(query)]

    async def row(self, endpoint_id: str) -> EndpointRow:
        async with self.factory() as session:
            return await session.get_one(EndpointRow, endpoint_id)

    async def published(self, topic: str) -> list[dict[str, Any]]:
        async with self.factory() as session:
            query = select(OutboxMessageRow.body).where(OutboxMessageRow.topic == topic)
            return [json.loads(body)["data"] for body in await session.scalars(query)]
