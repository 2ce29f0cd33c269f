"""Publishing messages, and the one call that delivers what was published."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra import failpoints
from svc_infra.canonical import is_storable
from svc_infra.clock import Clock, SystemClock
from svc_infra.db.outbox import (
    MAX_KEY_LENGTH,
    InMemoryOutboxStore,
    OutboxMessage,
    OutboxStore,
    SqlOutboxStore,
)
from svc_infra.exceptions import InvalidPayload, InvalidSettings
from svc_infra.jobs.loop import run_loop
from svc_infra.webhooks.catalogue import TopicCatalogue
from svc_infra.webhooks.deliverer import Deliverer
from svc_infra.webhooks.delivery import RetrySchedule
from svc_infra.webhooks.endpoints import SqlWebhookEndpoints
from svc_infra.webhooks.health import HealthPolicy
from svc_infra.webhooks.memory import InMemoryDeliveries, InMemoryWebhookSubscriptions
from svc_infra.webhooks.message import encode_body, new_message_id
from svc_infra.webhooks.relay import Relay
from svc_infra.webhooks.sealing import KeyRing
from svc_infra.webhooks.sending import Sender
from svc_infra.webhooks.spans import publishing
from svc_infra.webhooks.transport import HttpSender

__all__ = ["InMemoryWebhookSubscriptions", "Publication", "WebhookService"]


@dataclass(frozen=True, slots=True)
class Publication:
    """One message to publish; without ``occurred_at`` it occurred now.

    Messages of one ``key`` (say, an invoice's id) arrive in their order at endpoints that ask for that. Of
    messages with the same tenant, topic and ``idempotency_key`` only the first is published.
    """

    topic: str
    payload: dict[str, Any]
    tenant_id: str | None = None
    occurred_at: datetime | None = None
    key: str | None = None
    idempotency_key: str | None = None


class WebhookService:
    """Publishes messages into an outbox and delivers them to who wants their topic.

    Both stores are in memory (``InMemoryOutboxStore`` with ``InMemoryWebhookSubscriptions``) or both in the
    database (``SqlOutboxStore`` with ``SqlWebhookEndpoints``). Delivering opens connections and closes them;
    as ``async with service:`` they are kept for as long as the block lasts. A ``sender`` of your own is
    yours to close. Given ``topics``, only what is in that catalogue can be published. ``keys`` open the
    secrets of endpoints that were sealed with them.

    Raises:
        InvalidSettings: one store is in memory and the other is not.
    """

    def __init__(
        self,
        *,
        outbox: OutboxStore,
        subs: InMemoryWebhookSubscriptions | SqlWebhookEndpoints,
        clock: Clock | None = None,
        sender: Sender | None = None,
        schedule: RetrySchedule | None = None,
        topics: TopicCatalogue | None = None,
        keys: KeyRing | None = None,
        health: HealthPolicy | None = None,
    ) -> None:
        self._outbox = outbox
        self._clock = clock or SystemClock()
        self._sender = sender
        self._schedule = schedule or RetrySchedule()
        self._topics = topics
        self._keys = keys
        self._health = health
        self._endpoints: SqlWebhookEndpoints | None = None
        self._memory: InMemoryDeliveries | None = None
        self._own_sender: HttpSender | None = None
        self._users = 0
        match outbox, subs:
            case InMemoryOutboxStore(), InMemoryWebhookSubscriptions():
                self._memory = InMemoryDeliveries(outbox, subs, clock=self._clock, schedule=self._schedule)
            case SqlOutboxStore(), SqlWebhookEndpoints():
                self._endpoints = subs
            case _:
                raise InvalidSettings(
                    f"{type(outbox).__name__} and {type(subs).__name__} do not go together; use "
                    "InMemoryOutboxStore with InMemoryWebhookSubscriptions, or SqlOutboxStore with "
                    "SqlWebhookEndpoints"
                )

    def publish(
        self,
        topic: str,
        payload: dict[str, Any],
        *,
        session: Session | AsyncSession | None = None,
        tenant_id: str | None = None,
        occurred_at: datetime | None = None,
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Publish one message with the commit of ``session`` and return its id. Not awaited.

        The body is made here, once. A memory outbox works without a session too, and then at once. ``key``
        and ``idempotency_key`` are as in ``Publication``; a second message under an idempotency key is
        passed over, which ends nobody's transaction, and the id returned for it names no message.

        Raises:
            InvalidTopic: the topic's syntax is wrong, or it is not in the catalogue.
            InvalidPayload: something in the payload has no exact JSON form, it does not fit the topic's
                model, or a key is empty or longer than 255 characters.
            NotInTransaction: a durable outbox was given no session.
        """
        publication = Publication(
            topic, payload, tenant_id, occurred_at, key=key, idempotency_key=idempotency_key
        )
        with publishing(topic) as step:
            message = self._message(publication, step.traceparent)
        self._outbox.add([message], session=session)
        failpoints.reached("after_outbox_row")
        return message.id

    def publish_many(
        self, session: Session | AsyncSession | None, publications: Sequence[Publication]
    ) -> list[str]:
        """Publish many messages with the commit of ``session`` and return their ids, in order.

        Given a ``Session``, many rows are one bulk insert. Raises what ``publish`` raises, and then none of
        them is published.
        """
        if not publications:
            return []
        with publishing(publications[0].topic, len(publications)) as step:
            messages = [self._message(publication, step.traceparent) for publication in publications]
        self._outbox.add(messages, session=session)
        failpoints.reached("after_outbox_row")
        return [message.id for message in messages]

    async def deliver_due(self) -> int:
        """Relay everything that is pending, attempt once everything that is due; return how many arrived."""
        async with self:
            if self._memory is not None:
                return await self._memory.deliver_due(self._open_sender())
            relay, deliverer = self._from_database()
            await relay.drain()
            return await deliverer.run_once()

    async def run(self, stop: asyncio.Event, *, poll_seconds: float = 1.0) -> None:
        """Keep delivering until ``stop`` is set.

        In memory this is ``deliver_due`` again and again; from the database it is a relay and a deliverer,
        which no hanging endpoint holds up.
        """
        async with self:
            if self._memory is None:
                relay, deliverer = self._from_database(poll_seconds)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(relay.run(stop))
                    tasks.create_task(deliverer.run(stop))
                return

            async def step() -> bool:
                await self.deliver_due()
                return False

            wake = asyncio.Event()
            await run_loop("webhooks.deliver_due", step, stop=stop, wake=wake, poll_seconds=poll_seconds)

    async def __aenter__(self) -> WebhookService:
        """Keep connections open until the block ends."""
        self._users += 1
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._users -= 1
        if self._users == 0 and self._own_sender is not None:
            sender, self._own_sender = self._own_sender, None
            await sender.aclose()

    def _open_sender(self) -> Sender:
        if self._sender is not None:
            return self._sender
        if self._own_sender is None:
            self._own_sender = HttpSender()
        return self._own_sender

    def _from_database(self, poll_seconds: float = 1.0) -> tuple[Relay, Deliverer]:
        assert self._endpoints is not None  # the constructor saw to it
        factory = self._endpoints.session_factory
        deliverer = Deliverer(
            factory,
            self._open_sender(),
            self._clock,
            schedule=self._schedule,
            poll_seconds=poll_seconds,
            keys=self._keys,
            health=self._health,
        )
        relay = Relay(factory, self._clock, poll_seconds=poll_seconds, deliverer=deliverer)
        return relay, deliverer

    def _message(self, publication: Publication, trace_context: str | None) -> OutboxMessage:
        occurred_at = publication.occurred_at or self._clock.now()
        body = encode_body(publication.topic, occurred_at, publication.payload)
        if self._topics is not None:
            self._topics.require(publication.topic, publication.payload)
        return OutboxMessage(
            new_message_id(),
            publication.topic,
            publication.tenant_id,
            body,
            occurred_at,
            _checked_key(publication.key),
            _checked_key(publication.idempotency_key),
            trace_context,
        )


def _checked_key(key: str | None) -> str | None:
    # One that the database refuses would end the transaction of the business change.
    if key is not None and (not 0 < len(key) <= MAX_KEY_LENGTH or not is_storable(key)):
        raise InvalidPayload(
            f"the key of a message has 1 to {MAX_KEY_LENGTH} characters, no NUL or lone surrogate among them"
        )
    return key
