"""A message: one fact to tell subscribers, in bytes that are made once and never again."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from svc_infra.canonical import canonical_instant, compact_json, plain_json
from svc_infra.exceptions import InvalidPayload, InvalidTopic
from svc_infra.ids import new_hex

MAX_TOPIC_LENGTH = 200
MAX_BODY_BYTES = 256 * 1024
CLOUDEVENT_SOURCE = "/webhooks"

ContentMode = Literal["standard", "cloudevents"]

_TOPIC = re.compile(r"[a-zA-Z0-9_]+(?:\.[a-zA-Z0-9_]+)*")


@dataclass(frozen=True, slots=True)
class Message:
    """One published message.

    ``id`` is what subscribers deduplicate by, the same for every endpoint and attempt. ``body`` is what is
    signed and sent, byte for byte. ``occurred_at`` is business time. Without ``tenant_id`` the message
    belongs to the operator. ``trace_context`` is the W3C traceparent of where it was published.
    """

    id: str
    topic: str
    tenant_id: str | None
    body: bytes = field(repr=False)
    occurred_at: datetime
    trace_context: str | None = None


def new_message_id() -> str:
    """Make a new id: ``msg_`` and a UUIDv7 (RFC 9562) in hex, 36 characters.

    It has no dot, because dots separate id, timestamp and body in the signed content.
    """
    return f"msg_{new_hex()}"


def check_topic(topic: str) -> str:
    """Return ``topic`` if it is ``part.part`` of ASCII letters, digits and underscores (Standard Webhooks).

    Raises:
        InvalidTopic: it is not, or it is longer than 200 characters.
    """
    if not isinstance(topic, str) or len(topic) > MAX_TOPIC_LENGTH or not _TOPIC.fullmatch(topic):
        raise InvalidTopic(
            f"{topic!r:.80} is no topic: join parts of letters, digits and underscores by dots, "
            f"like 'billing.invoice.created', {MAX_TOPIC_LENGTH} characters at most"
        )
    return topic


def encode_body(topic: str, occurred_at: datetime, payload: dict[str, Any]) -> bytes:
    """Return the Standard Webhooks envelope ``{"type", "timestamp", "data"}`` as compact UTF-8 JSON.

    In ``payload``, the ``data`` of the envelope, decimals become canonical text and aware datetimes ISO 8601
    in UTC ending in ``Z``. Floats are refused: a subscriber must get the very number that was billed.

    Raises:
        InvalidTopic: the topic's syntax is wrong.
        InvalidPayload: something in the payload has no exact JSON form (the message names its path), the
            instant is naive, or the body is longer than 256 KiB.
    """
    check_topic(topic)
    if not isinstance(payload, dict):
        raise InvalidPayload(f"the payload of {topic} is a dict, not a {type(payload).__name__}")
    data = plain_json(payload, floats_allowed=False)
    body = compact_json({"type": topic, "timestamp": canonical_instant(occurred_at), "data": data}).encode()
    if len(body) > MAX_BODY_BYTES:
        raise InvalidPayload(
            f"the body of {topic} has {len(body):,} bytes, the limit is {MAX_BODY_BYTES:,}; send an id to "
            "look the data up by"
        )
    return body


def as_cloudevent(message: Message) -> bytes:
    """Return the message as a structured CloudEvent 1.0, the same bytes whenever it is asked for.

    It says what the envelope says: id, type, time and data, and the tenant as ``subject``.
    """
    envelope = json.loads(message.body)
    event = {
        "specversion": "1.0",
        "id": message.id,
        "source": CLOUDEVENT_SOURCE,
        "type": envelope["type"],
        "time": envelope["timestamp"],
        **({} if message.tenant_id is None else {"subject": message.tenant_id}),
        "datacontenttype": "application/json",
        "data": envelope["data"],
    }
    return compact_json(event).encode()
