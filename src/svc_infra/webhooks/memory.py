"""Webhook subscriptions and deliveries in this process's memory: for tests and first steps.

They behave like the durable ones (fan-out, retry schedule, attempts, 410) and are gone with the process.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from random import Random

from svc_infra.clock import Clock
from svc_infra.db.base import new_id
from svc_infra.db.outbox import InMemoryOutboxStore
from svc_infra.webhooks.delivery import (
    AttemptOutcome,
    DeliveryState,
    EndpointTarget,
    RetrySchedule,
    SendResult,
    judge,
)
from svc_infra.webhooks.delivery_rows import describe
from svc_infra.webhooks.endpoints import check_url
from svc_infra.webhooks.message import Message
from svc_infra.webhooks.sending import Sender, attempt
from svc_infra.webhooks.signature import check_secret
from svc_infra.webhooks.topic_patterns import check_pattern, is_wanted

_PER_ENDPOINT = 8
_IN_FLIGHT = 200
_FAN_OUT_BATCH = 1_000


@dataclass(slots=True)
class MemoryEndpoint:
    """An endpoint kept in memory; without ``tenant_id`` it gets the messages of every tenant."""

    id: str
    pattern: str
    url: str
    secret: str = field(repr=False)
    tenant_id: str | None = None
    is_enabled: bool = True


@dataclass(frozen=True, slots=True)
class MemoryAttempt:
    """One HTTP try and how it was judged; ``attempted_at`` is wall time."""

    outcome: AttemptOutcome
    detail: str | None
    duration_ms: int
    attempted_at: datetime


@dataclass(slots=True)
class MemoryDelivery:
    """One message for one endpoint, with every attempt that was made."""

    message: Message
    endpoint: MemoryEndpoint
    run_at: datetime
    state: DeliveryState = DeliveryState.PENDING
    attempts: list[MemoryAttempt] = field(default_factory=list)


class InMemoryWebhookSubscriptions:
    """Who wants which topics, in memory. (Everywhere else a subscriber is an *endpoint*.)"""

    def __init__(self) -> None:
        self.endpoints: list[MemoryEndpoint] = []

    def add(self, topic: str, *, url: str, secret: str, tenant_id: str | None = None) -> MemoryEndpoint:
        """Send messages of ``topic`` (``billing.*`` and ``*`` too) to ``url``, signed with ``secret``.

        Raises:
            InvalidEndpoint: the URL cannot be used.
            InvalidTopic: ``topic`` is neither a topic nor one with a trailing wildcard.
            InvalidSecret: the secret cannot sign.
        """
        check_secret(secret)
        endpoint = MemoryEndpoint(new_id(), check_pattern(topic), check_url(url), secret, tenant_id)
        self.endpoints.append(endpoint)
        return endpoint


class InMemoryDeliveries:
    """Makes deliveries of what an ``InMemoryOutboxStore`` holds and sends them when they are due."""

    def __init__(
        self,
        outbox: InMemoryOutboxStore,
        subs: InMemoryWebhookSubscriptions,
        *,
        clock: Clock,
        schedule: RetrySchedule,
    ) -> None:
        self.deliveries: list[MemoryDelivery] = []
        self._outbox = outbox
        self._subs = subs
        self._clock = clock
        self._schedule = schedule
        self._rng = Random()
        self._unfinished: list[MemoryDelivery] = []

    async def deliver_due(self, sender: Sender) -> int:
        """Attempt everything once that is due now; return how many were delivered."""
        now = self._clock.now()
        self._fan_out(now)
        due = [one for one in self._unfinished if one.state is DeliveryState.PENDING and one.run_at <= now]
        slots = asyncio.Semaphore(_IN_FLIGHT)
        lanes = {one.endpoint.id: asyncio.Semaphore(_PER_ENDPOINT) for one in due}

        async def send(one: MemoryDelivery) -> None:
            async with lanes[one.endpoint.id], slots:
                await self._send(sender, one)

        for one in due:
            one.state = DeliveryState.SENDING  # a second call meanwhile sends other ones
        try:
            await asyncio.gather(*(send(one) for one in due))
        finally:
            for one in due:
                if one.state is DeliveryState.SENDING:
                    one.state = DeliveryState.PENDING
            self._unfinished = [one for one in self._unfinished if not _is_finished(one)]
        return sum(one.state is DeliveryState.DELIVERED for one in due)

    def _fan_out(self, now: datetime) -> None:
        while pending := self._outbox.take_pending(_FAN_OUT_BATCH):
            for item in pending:
                message = Message(
                    item.id, item.topic, item.tenant_id, item.body, item.occurred_at, item.trace_context
                )
                for endpoint in self._subs.endpoints:
                    if is_wanted(
                        item.topic,
                        item.tenant_id,
                        patterns=[endpoint.pattern],
                        endpoint_tenant_id=endpoint.tenant_id,
                    ):
                        self._add(MemoryDelivery(message, endpoint, now))

    def _add(self, delivery: MemoryDelivery) -> None:
        if not delivery.endpoint.is_enabled:
            delivery.state = DeliveryState.HELD
        self.deliveries.append(delivery)
        self._unfinished.append(delivery)

    async def _send(self, sender: Sender, one: MemoryDelivery) -> None:
        if not one.endpoint.is_enabled:
            one.state = DeliveryState.HELD
            return
        target = EndpointTarget(one.endpoint.url, (one.endpoint.secret,))
        result, attempted_at = await attempt(sender, one.message, target)
        self._record(one, result, attempted_at)

    def _record(self, one: MemoryDelivery, result: SendResult, attempted_at: datetime) -> None:
        verdict = judge(
            result,
            attempt=len(one.attempts) + 1,
            now=self._clock.now(),
            schedule=self._schedule,
            rng=self._rng,
            wall_now=attempted_at,
        )
        one.attempts.append(
            MemoryAttempt(verdict.outcome, describe(result), result.duration_ms, attempted_at)
        )
        if verdict.state == "retry":
            assert verdict.run_at is not None
            one.state, one.run_at = DeliveryState.PENDING, verdict.run_at
        else:
            one.state = DeliveryState(verdict.state)
        if verdict.disable_endpoint:
            one.endpoint.is_enabled = False


def _is_finished(delivery: MemoryDelivery) -> bool:
    return delivery.state in (DeliveryState.DELIVERED, DeliveryState.DEAD)
