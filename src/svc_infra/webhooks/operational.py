"""What webhooks tell about themselves, through the same outbox: who subscribes to it gets it signed, too."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel
from sqlalchemy.orm import Session

from svc_infra.canonical import canonical_instant
from svc_infra.db.outbox import OutboxMessage, SqlOutboxStore
from svc_infra.webhooks.catalogue import TopicCatalogue
from svc_infra.webhooks.message import encode_body, new_message_id

ENDPOINT_DISABLED = "webhooks.endpoint.disabled"
DELIVERY_EXHAUSTED = "webhooks.delivery.exhausted"
ENDPOINT_TEST = "webhooks.test"


class EndpointDisabled(BaseModel):
    """Of ``webhooks.endpoint.disabled``: nothing is sent to the endpoint until it is enabled again."""

    endpoint_id: str
    tenant_id: str | None
    reason: str
    disabled_at: str


class DeliveryExhausted(BaseModel):
    """Of ``webhooks.delivery.exhausted``: a message was given up for an endpoint; it can be redelivered."""

    delivery_id: str
    message_id: str
    endpoint_id: str
    tenant_id: str | None
    topic: str
    attempts: int
    last_outcome: str


class EndpointTest(BaseModel):
    """Of ``webhooks.test``: somebody tries an endpoint out."""

    endpoint_id: str
    sent_by: str


def operational_topics() -> TopicCatalogue:
    """Return the topics that webhooks publish themselves."""
    topics = TopicCatalogue()
    endpoint_id = "0194b1e0-0000-7000-8000-000000000001"
    topics.add(
        ENDPOINT_DISABLED,
        EndpointDisabled,
        description="An endpoint was disabled; its messages are held until it is enabled again.",
        example={
            "endpoint_id": endpoint_id,
            "tenant_id": "t1",
            "reason": "the endpoint answered 410 Gone",
            "disabled_at": "2025-01-31T12:00:00Z",
        },
    )
    topics.add(
        DELIVERY_EXHAUSTED,
        DeliveryExhausted,
        description="All attempts to deliver a message to an endpoint failed; it can be redelivered.",
        example={
            "delivery_id": "0194b1e0-0000-7000-8000-000000000002",
            "message_id": "msg_0194b1e0000070008000000000000003",
            "endpoint_id": endpoint_id,
            "tenant_id": "t1",
            "topic": "billing.invoice.created",
            "attempts": 10,
            "last_outcome": "timeout",
        },
    )
    topics.add(
        ENDPOINT_TEST,
        EndpointTest,
        description="A test event that somebody asked for.",
        example={"endpoint_id": endpoint_id, "sent_by": "cli"},
    )
    return topics


def announce(
    session: Session, facts: Iterable[DeliveryExhausted | EndpointDisabled], *, now: datetime
) -> None:
    """Publish ``facts`` with the commit of ``session``, to those who subscribed to their topics."""
    messages = []
    for fact in facts:
        topic = ENDPOINT_DISABLED if isinstance(fact, EndpointDisabled) else DELIVERY_EXHAUSTED
        body = encode_body(topic, now, fact.model_dump())
        messages.append(OutboxMessage(new_message_id(), topic, fact.tenant_id, body, now))
    if messages:
        SqlOutboxStore().add(messages, session=session)


def endpoint_disabled(
    *, endpoint_id: str, tenant_id: str | None, reason: str, now: datetime
) -> EndpointDisabled:
    """Return the fact that an endpoint was disabled ``now``."""
    return EndpointDisabled(
        endpoint_id=endpoint_id, tenant_id=tenant_id, reason=reason, disabled_at=canonical_instant(now)
    )
