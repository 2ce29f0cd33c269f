"""One attempt: a message made into a request for an endpoint and put on the wire."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Protocol

from svc_infra import __version__, failpoints
from svc_infra.exceptions import InvalidSecret
from svc_infra.tracing import TRACE_HEADER, Step
from svc_infra.webhooks.delivery import EndpointTarget, OutgoingRequest, SendFailure, SendResult, prepare
from svc_infra.webhooks.message import Message
from svc_infra.webhooks.spans import delivering, note_result

USER_AGENT = f"svc-infra-webhooks/{__version__}"


class Sender(Protocol):
    """What puts a request on the wire, ``transport.HttpSender`` outside of tests."""

    def send(self, request: OutgoingRequest) -> Awaitable[SendResult]:
        """Send within a deadline shorter than the lease; whatever the endpoint does, raise nothing."""
        ...


async def attempt(sender: Sender, message: Message, target: EndpointTarget) -> tuple[SendResult, datetime]:
    """Make one attempt and return what came of it, and the wall time at which it began."""
    attempted_at = datetime.now(UTC)
    failpoints.reached("before_send")
    with delivering(message) as step:
        result = await _send(sender, message, target, attempted_at, step)
        note_result(step, result)
    return result, attempted_at


async def _send(
    sender: Sender, message: Message, target: EndpointTarget, attempted_at: datetime, step: Step
) -> SendResult:
    try:
        request = prepare(message, target, now=attempted_at, user_agent=USER_AGENT)
    except InvalidSecret as error:
        return SendFailure("protocol_error", f"the message cannot be signed: {error}", 0)
    if step.is_recording and step.traceparent is not None:
        # The receiver's own spans go on from ours. Where nobody sees ours, theirs would hang in the air.
        request.headers[TRACE_HEADER] = step.traceparent
    result = await sender.send(request)
    failpoints.reached("after_send")
    return result
