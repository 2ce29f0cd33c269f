"""One request, one transaction: what a route does and the answer under its key commit together.

A route of class ``UnitOfWorkRoute`` takes its session as ``UnitSession``. It never commits: that happens when
it has returned, before the answer is sent. When it raises, everything is rolled back and nothing is kept, so
a refused request may be sent again under its ``Idempotency-Key``. A repeated one gets the first answer, byte
for byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.responses import Response
from starlette.types import Message, Receive

from svc_infra.api.answers import KeptAnswer, claim_slot, find_answer, keep_answer
from svc_infra.api.fastapi.dependencies import CurrentPrincipal, Principal, context_of
from svc_infra.api.fastapi.middleware.errors.handlers import Handler
from svc_infra.api.fastapi.middleware.errors.kinds import ANSWER_SEALED, TOO_LARGE
from svc_infra.api.fastapi.middleware.errors.problem import Refusal
from svc_infra.api.fastapi.middleware.idempotency import (
    MAX_KEY_LENGTH,
    METHODS,
    in_progress,
    key_reused,
    refusal_of_key,
    request_digest,
    usable_key,
)
from svc_infra.api.fastapi.route import ApiRoute
from svc_infra.api.fastapi.strict_json import parse_body
from svc_infra.billing.first_use import ready
from svc_infra.db.session import begin_reading
from svc_infra.exceptions import InvalidSecret
from svc_infra.webhooks.sealing import KeyRing, SecretPlace, is_sealed
from svc_infra.webhooks.stored_secrets import open_text

MAX_BODY_BYTES = 4 * 1024 * 1024
_MAX_KEPT_BYTES = 1024 * 1024
_START_BYTES = 20
_READING_METHODS = frozenset({"GET", "HEAD"})
_ANSWERED_BY_THE_SERVER = (b"content-length",)


class UnitOfWorkRoute(ApiRoute):
    """A route whose handler runs in the transaction of its request, one that only reads for a GET."""

    reads_by_get = True

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if METHODS.intersection(options.get("methods") or ()):
            options["openapi_extra"] = {**_TAKES_KEY, **(options.get("openapi_extra") or {})}
        super().__init__(path, endpoint, **options)

    def make_handler(self) -> Handler:
        handle = super().make_handler()

        async def handle_in_unit(request: Request) -> Response:
            request = _StrictRequest(request.scope, _at_most(MAX_BODY_BYTES, request.receive))
            is_reading = self.reads_by_get and request.method in _READING_METHODS
            unit = request.state.svc_infra_unit = _Unit(request, is_reading=is_reading)
            try:
                response = await handle(request)
                await unit.commit(response)
            except _AnsweredBefore as answered:
                return answered.response
            finally:
                await unit.close()  # which rolls back what was not committed
            return response

        return handle_in_unit


class TryingRoute(UnitOfWorkRoute):
    """A route whose GET tries something that is rolled back, which a transaction that only reads may not."""

    reads_by_get = False


async def unit_session(request: Request, principal: CurrentPrincipal) -> AsyncSession:
    """Depend on the session of this request's transaction, begun for the caller's tenant."""
    unit: _Unit = request.state.svc_infra_unit
    return await unit.begin(principal)


async def keyed_session(request: Request, principal: CurrentPrincipal) -> AsyncSession | None:
    """Depend on that session where the request has an ``Idempotency-Key``, and on None elsewhere.

    It is for a route that is idempotent by itself and may record what it does with others.
    """
    has_key = "idempotency-key" in request.headers
    return await unit_session(request, principal) if has_key else None


UnitSession = Annotated[AsyncSession, Depends(unit_session)]
KeyedSession = Annotated[AsyncSession | None, Depends(keyed_session)]


async def keep_sealed(request: Request) -> None:
    """Depend on this where the answer shows a secret: under an idempotency key it is kept as secrets are."""
    unit: _Unit = request.state.svc_infra_unit
    unit.shows_a_secret = True


def _at_most(max_bytes: int, receive: Receive) -> Receive:
    """Refuse a body that is longer, as it comes: its announced length may be wrong or missing."""
    size = 0

    async def receive_some() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise Refusal(TOO_LARGE, f"A body has at most {max_bytes:,} bytes here.")
        return message

    return receive_some


class _StrictRequest(Request):
    """A request whose JSON has one meaning only."""

    async def json(self) -> Any:
        return parse_body(await self.body())


class _AnsweredBefore(Exception):
    """The answer is known without running the route."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


class _Unit:
    def __init__(self, request: Request, *, is_reading: bool) -> None:
        self._request = request
        self._is_reading = is_reading
        self._context = context_of(request)
        self._session: AsyncSession | None = None
        self._kept_as: tuple[str, str] | None = None
        self.shows_a_secret = False

    async def begin(self, principal: Principal) -> AsyncSession:
        if self._session is None:
            if self._is_reading:
                await self._context.database.know_cursors(self._context.clock.now())
            self._session = self._context.database.session_factory()
            self._context.hold_to_tenant(self._session, principal)
            if self._is_reading:
                await begin_reading(self._session)
            await self._session.run_sync(ready)
            await self._look_for_answer(principal)
        return self._session

    async def commit(self, response: Response) -> None:
        if self._session is None:
            return
        if self._kept_as is not None and 200 <= response.status_code < 400:
            await self._session.run_sync(self._keep, response)
        await self._session.commit()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.rollback()
            await self._session.close()

    async def _look_for_answer(self, principal: Principal) -> None:
        keys = self._request.headers.getlist("idempotency-key")
        if not keys or self._request.method not in METHODS:
            return
        if not usable_key(keys):
            raise _AnsweredBefore(refusal_of_key("Idempotency-Key"))
        scopes = " ".join(sorted(principal.scopes))
        who = (principal.tenant_id, principal.name, scopes)
        slot = request_digest(self._request.method, self._request.url.path, *who, keys[0])
        fingerprint = request_digest(self._request.scope["query_string"], await self._request.body())
        assert self._session is not None
        answer = await self._session.run_sync(_claim, slot, fingerprint, self._context.secret_keys)
        if answer is not None:
            raise _AnsweredBefore(answer)
        self._kept_as = slot, fingerprint

    def _keep(self, session: Session, response: Response) -> None:
        body = getattr(response, "body", None)
        if self._kept_as is None or not isinstance(body, bytes) or len(body) > _MAX_KEPT_BYTES:
            return  # a stream cannot be kept; its route is idempotent by the keys of what it carries
        slot, fingerprint = self._kept_as
        keys = self._context.secret_keys
        if self.shows_a_secret and keys is not None:
            body = keys.seal(body.decode(), _place_of(slot)).encode()
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in response.raw_headers
            if name not in _ANSWERED_BY_THE_SERVER
        ]
        answer = KeptAnswer(fingerprint, response.status_code, headers, body)
        keep_answer(session, slot, answer, now=self._context.clock.now())


def _place_of(slot: str) -> SecretPlace:
    return SecretPlace(None, f"answer:{slot}", 1)


def _opened(body: bytes, slot: str, keys: KeyRing | None) -> bytes:
    # JSON does not begin as a seal does.
    if not is_sealed(body[:_START_BYTES].decode("latin-1")):
        return body
    try:
        return open_text(body.decode(), _place_of(slot), keys).encode()
    except InvalidSecret:
        raise Refusal(ANSWER_SEALED, "The key that it is sealed with is gone.") from None


def _claim(session: Session, slot: str, fingerprint: str, keys: KeyRing | None) -> Response | None:
    """Return the answer that is kept or the refusal; None if the request is to be done, now and by us."""
    if not claim_slot(session, slot):
        return in_progress()
    kept = find_answer(session, slot)
    if kept is None:
        return None
    if kept.fingerprint != fingerprint:
        return key_reused()
    response = Response(_opened(kept.body, slot, keys), kept.status)
    for name, value in kept.headers:
        response.headers[name] = value
    response.headers["Idempotency-Replayed"] = "true"
    return response


_TAKES_KEY: dict[str, Any] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "Repeated with the same request within three days, the first answer comes back.",
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
        }
    ]
}
