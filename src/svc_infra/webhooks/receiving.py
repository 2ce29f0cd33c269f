"""The receiving side of an application: a FastAPI dependency that lets only verified webhooks in."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from svc_infra.exceptions import InvalidPayload, InvalidSecret, VerificationFailed
from svc_infra.webhooks.signature import ID_HEADER, TOLERANCE_SECONDS, verify

if TYPE_CHECKING:
    from fastapi import HTTPException, Request

MAX_RECEIVED_BYTES = 1024 * 1024
"""So long may a received body be; senders of Standard Webhooks keep well below."""

_PROBLEM = {"content-type": "application/problem+json"}


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A verified webhook. ``id`` is the same whenever the message is delivered again: process each id once.

    ``topic`` is the envelope's type and ``data`` its data; ``occurred_at`` is when it happened, in business
    time; ``body`` is what was signed, byte for byte.
    """

    id: str
    topic: str
    occurred_at: datetime
    data: Any = field(repr=False)
    body: bytes = field(repr=False)


def read_message(message_id: str, body: bytes) -> ReceivedMessage:
    """Parse a verified body, the envelope of Standard Webhooks or a structured CloudEvent.

    Raises:
        InvalidPayload: it is neither.
    """
    try:
        document = json.loads(body)
        occurred_at = datetime.fromisoformat(document["timestamp" if "timestamp" in document else "time"])
        topic = document["type"]
        data = document["data"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InvalidPayload("the body is no JSON object with type, timestamp and data") from None
    if not isinstance(topic, str) or occurred_at.tzinfo is None:
        raise InvalidPayload("the body's type is text and its timestamp has an offset")
    return ReceivedMessage(message_id, topic, occurred_at, data, body)


def verified_webhook(
    secrets: Sequence[str], *, tolerance_seconds: int = TOLERANCE_SECONDS
) -> Callable[[Request], Awaitable[ReceivedMessage]]:
    """Make a FastAPI dependency that gives the received message, verified with one of ``secrets``::

        Received = Annotated[ReceivedMessage, Depends(verified_webhook([secret]))]

        @app.post("/hooks", status_code=204)
        async def receive(message: Received) -> None: ...

    A request that is not verified is answered with 401 and never reaches the function; one that is too long
    with 413, and one that was signed and is no message with 400; each as a problem document (RFC 9457).
    ``secrets`` may be HMAC secrets and ``whpk_`` public keys, several while they are rotated.

    Raises:
        InvalidSecret: there is no secret.
    """
    from fastapi import Request

    if isinstance(secrets, str) or not secrets:
        raise InvalidSecret("verified_webhook takes a list of at least one secret")
    kept = tuple(secrets)

    async def dependency(request: Request) -> ReceivedMessage:
        body = await _read_body(request)
        try:
            verify(request.headers, body, kept, tolerance_seconds=tolerance_seconds)
        except VerificationFailed as error:
            raise _problem(401, str(error)) from None
        try:
            return read_message(request.headers[ID_HEADER], body)
        except InvalidPayload as error:
            raise _problem(400, str(error)) from None

    # FastAPI looks annotations up in the module, where Request is not: it is imported only when asked for.
    dependency.__annotations__["request"] = Request
    return dependency


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_RECEIVED_BYTES:
            raise _problem(413, f"the body is longer than {MAX_RECEIVED_BYTES:,} bytes")
    return bytes(body)


def _problem(status: int, detail: str) -> HTTPException:
    from fastapi import HTTPException

    # Without handlers of its own FastAPI writes {"detail": …}: a problem document without the other members.
    headers = _PROBLEM if status != 401 else {**_PROBLEM, "www-authenticate": "Webhook-Signature"}
    return HTTPException(status, detail, headers)
