"""The ``Idempotency-Key`` header: a repeated request is answered again and not done again."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from svc_infra.api.fastapi.dependencies import find_principal
from svc_infra.api.fastapi.middleware.errors.kinds import (
    IDEMPOTENCY_KEY_IN_PROGRESS,
    IDEMPOTENCY_KEY_REUSED,
    INVALID_IDEMPOTENCY_KEY,
    TOO_LARGE,
)
from svc_infra.api.fastapi.middleware.errors.problem import problem_of

METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
MAX_KEY_LENGTH = 255
# Answers that say "not now" or "not you": the next try may well go otherwise, so they are not kept.
_PASSING = frozenset({401, 403, 408, 425, 429})
_CREDENTIALS = ("authorization", "x-api-key", "cookie")
# What differs between two tries of one caller.
_NOT_THE_CALLER = frozenset(
    "accept accept-encoding baggage cache-control connection content-length content-type date traceparent "
    "tracestate transfer-encoding user-agent x-correlation-id x-request-id".split()
)

Caller = Callable[[Request], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What is kept under a key: the request's fingerprint and, once it has ended, its answer."""

    fingerprint: str
    status: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


class IdempotencyMiddleware:
    """Answers a POST, PUT, PATCH or DELETE that repeats its ``Idempotency-Key`` with the first answer.

    The same bytes and status come back, with ``Idempotency-Replayed: true``. The key with another body or
    query is refused with 422, one whose first request is still running with 409. Answers from 200 to 499
    are kept, except those that pass (401, 403, 408, 425, 429), and so a request that failed may be sent
    again under its key.

    A key belongs to its method, path and caller. Who that is, the application's principal says (see
    ``find_principal``) together with the credentials in the request. Where neither is there, every header
    that could tell callers apart counts. An application that knows its callers by anything else (a client
    certificate) passes ``caller``, an async function that returns who it is, or None for nobody known,
    whose requests are not stored.

    ``store`` is one process's memory unless it is given. It holds at most ``max_entries`` answers, of which
    the oldest go first, each of ``max_body_bytes`` at most; a longer request is refused with 413 when it has
    a key, a longer answer is not kept.
    """

    def __init__(
        self,
        app: ASGIApp,
        store: MutableMapping[str, StoredAnswer] | None = None,
        header_name: str = "Idempotency-Key",
        *,
        caller: Caller | None = None,
        max_entries: int = 10_000,
        max_body_bytes: int = 1024 * 1024,
    ) -> None:
        self._app = app
        # An empty mapping is false and still the caller's own.
        self._store: MutableMapping[str, StoredAnswer] = {} if store is None else store
        self._header = header_name
        self._caller = caller or self._caller_of
        self._max_entries = max_entries
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        keys = Headers(scope=scope).getlist(self._header) if _is_unsafe(scope) else []
        if not keys:
            await self._app(scope, receive, send)
            return
        if not usable_key(keys):
            await refusal_of_key(self._header)(scope, receive, send)
            return
        caller = await self._caller(Request(scope))
        if caller is None:
            await self._app(scope, receive, send)
            return
        messages = await self._read(receive)
        if messages is None:
            await self._refusal_of_size()(scope, receive, send)
            return
        if messages[-1]["type"] == "http.disconnect":
            return  # nobody is there to be answered, and nothing has been done
        slot = request_digest(scope["method"], scope["path"], caller, keys[0])
        # Joined, for the same body may come in other pieces.
        body = b"".join(message.get("body", b"") for message in messages)
        fingerprint = request_digest(scope["query_string"], body)
        stored = self._store.get(slot)
        if stored is None:
            await self._run(slot, fingerprint, scope, _again(messages, receive), send)
        else:
            await _answer(stored, fingerprint)(scope, receive, send)

    async def _run(self, slot: str, fingerprint: str, scope: Scope, receive: Receive, send: Send) -> None:
        status, is_kept, body = 0, False, bytearray()
        headers: tuple[tuple[bytes, bytes], ...] = ()

        async def send_and_keep(message: Message) -> None:
            nonlocal status, headers, is_kept
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = tuple((name, value) for name, value in message.get("headers", ()))
            elif message["type"] == "http.response.body":
                if len(body) <= self._max_body_bytes:
                    body.extend(message.get("body", b""))
                # Before the last bytes leave, or a quick repetition would find it still running.
                if not message.get("more_body") and self._is_worth_keeping(status, body):
                    self._keep(slot, StoredAnswer(fingerprint, status, headers, bytes(body)))
                    is_kept = True
            await send(message)

        self._store[slot] = StoredAnswer(fingerprint)
        try:
            await self._app(scope, receive, send_and_keep)
        finally:
            if not is_kept:
                self._store.pop(slot, None)

    def _is_worth_keeping(self, status: int, body: bytearray) -> bool:
        return 200 <= status < 500 and status not in _PASSING and len(body) <= self._max_body_bytes

    def _keep(self, slot: str, answer: StoredAnswer) -> None:
        # Put at the end again: the order is that of the answers, and those still running stay.
        self._store.pop(slot, None)
        self._store[slot] = answer
        while len(self._store) > self._max_entries:
            oldest = next((key for key, kept in self._store.items() if kept.status is not None), slot)
            del self._store[oldest]
            if oldest == slot:
                return

    async def _read(self, receive: Receive) -> list[Message] | None:
        """Read the whole request, up to its end or the caller's leaving; None if it is too long."""
        messages: list[Message] = []
        size = 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_body_bytes:
                return None
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return messages

    async def _caller_of(self, request: Request) -> str:
        principal = await find_principal(request)
        # Two users of one tenant may see different things, so the credentials count beside the principal.
        credentials = [request.headers.get(name, "") for name in _CREDENTIALS]
        if principal is not None:
            return request_digest(
                "principal", principal.tenant_id, " ".join(sorted(principal.scopes)), *credentials
            )
        if any(credentials):
            return request_digest("credentials", *credentials)
        ignored = {self._header.lower(), *_NOT_THE_CALLER}
        names = sorted({name for name in request.headers if name not in ignored})
        return request_digest("headers", *(f"{name}: {request.headers.getlist(name)}" for name in names))

    def _refusal_of_size(self) -> Response:
        detail = f"With {self._header}, a body has at most {self._max_body_bytes:,} bytes."
        return problem_of(TOO_LARGE, detail=detail)


def usable_key(keys: Sequence[str]) -> bool:
    """Whether the header came once and its value can be stored."""
    return len(keys) == 1 and 0 < len(keys[0]) <= MAX_KEY_LENGTH


def refusal_of_key(header: str) -> Response:
    """Answer a request whose key is none."""
    detail = f"Send {header} once, with 1 to {MAX_KEY_LENGTH} characters."
    return problem_of(INVALID_IDEMPOTENCY_KEY, detail=detail)


def key_reused() -> Response:
    """Answer a key that came before with another request."""
    return problem_of(
        IDEMPOTENCY_KEY_REUSED, detail="Send the first request again unchanged, or this one with a new key."
    )


def in_progress() -> Response:
    """Answer a key whose first request has not ended."""
    return problem_of(
        IDEMPOTENCY_KEY_IN_PROGRESS, detail="Send it again when that one has ended.", retry_after_seconds=1
    )


def _answer(stored: StoredAnswer, fingerprint: str) -> Response:
    if stored.fingerprint != fingerprint:
        return key_reused()
    if stored.status is None:
        return in_progress()
    response = Response(stored.body, stored.status)
    response.raw_headers = [*stored.headers, (b"idempotency-replayed", b"true")]
    return response


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Give the application the messages that were read, and then what else comes."""
    read = iter(messages)

    async def receive_again() -> Message:
        message = next(read, None)
        return await receive() if message is None else message

    return receive_again


def _is_unsafe(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] in METHODS


def request_digest(*parts: str | bytes) -> str:
    """Return the SHA-256 of the parts, in which no two different lists of parts are alike."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
