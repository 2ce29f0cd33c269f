"""The steps of messages in their traces: published, and sent to an endpoint.

No attribute names a tenant, a URL or any of a body. A URL may hold a secret, and its host names a customer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from svc_infra.jobs.spans import SYSTEM
from svc_infra.tracing import Step, continuing, step
from svc_infra.webhooks.delivery import Answer, SendResult
from svc_infra.webhooks.message import Message


def publishing(topic: str, messages: int = 1) -> AbstractContextManager[Step]:
    """Publish messages, which belong to this step if they are made within."""
    attributes: dict[str, str | int] = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic,
    }
    if messages > 1:
        attributes["messaging.batch.message_count"] = messages
    return step(f"publish {topic}", "producer", attributes)


def delivering(message: Message) -> AbstractContextManager[Step]:
    """Make one attempt to deliver a message, in the trace that it was published in."""
    attributes: dict[str, str | int] = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "process",
        "messaging.destination.name": message.topic,
        "messaging.message.id": message.id,
        "messaging.message.body.size": len(message.body),
        "http.request.method": "POST",
    }
    return continuing(message.trace_context, f"deliver {message.topic}", "client", attributes)


def note_result(sent: Step, result: SendResult) -> None:
    """Say in the span what came of an attempt: the status, or the class of what prevented an answer."""
    if not isinstance(result, Answer):
        sent.fail(result.reason)
        return
    sent.note({"http.response.status_code": result.status})
    if not 200 <= result.status < 300:
        sent.fail(str(result.status))
