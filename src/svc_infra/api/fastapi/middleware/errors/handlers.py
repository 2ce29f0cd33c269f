"""Every error becomes a problem document that says what the caller may know, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from svc_infra import exceptions
from svc_infra.api.fastapi.middleware.errors.problem import problem
from svc_infra.db.transient import is_transient
from svc_infra.exceptions import SvcInfraError

log = structlog.get_logger(__name__)

RETRY_AFTER_SECONDS = 5
_MAX_ERRORS = 20
_MAX_TEXT_LENGTH = 200


class _Kind(NamedTuple):
    status: int
    slug: str
    title: str


# What the caller can do something about. Any other error of ours is our own fault: 500, without its message.
_KINDS: dict[type[SvcInfraError], _Kind] = {
    exceptions.InvalidUsage: _Kind(422, "invalid-usage", "The usage event cannot be recorded"),
    exceptions.InvalidPayload: _Kind(422, "invalid-payload", "The payload cannot be stored"),
    exceptions.InvalidSchedule: _Kind(422, "invalid-schedule", "The schedule cannot be used"),
    exceptions.InvalidEndpoint: _Kind(422, "invalid-endpoint", "The endpoint cannot be used"),
    exceptions.InvalidTopic: _Kind(422, "invalid-topic", "The topic is not one"),
    exceptions.InvalidSecret: _Kind(422, "invalid-secret", "The secret cannot sign"),
    exceptions.AddressRefused: _Kind(422, "address-refused", "The address may not be dialled"),
    exceptions.InvalidCurrency: _Kind(422, "invalid-currency", "The currency is unknown"),
    exceptions.InvalidPeriod: _Kind(422, "invalid-period", "The period cannot be billed"),
    exceptions.InvalidPrice: _Kind(422, "invalid-price", "The price cannot be rated"),
    exceptions.InvalidCatalog: _Kind(422, "invalid-catalog", "The catalog has an error"),
    exceptions.InvalidSubscription: _Kind(422, "invalid-subscription", "The subscription cannot be stored"),
    exceptions.AmountTooLarge: _Kind(422, "amount-too-large", "The amount is too large"),
    exceptions.VerificationFailed: _Kind(400, "verification-failed", "The signature does not verify"),
    exceptions.NotFound: _Kind(404, "not-found", "There is no such record"),
    exceptions.IdempotencyConflict: _Kind(409, "idempotency-conflict", "The idempotency key is taken"),
    exceptions.PeriodOverlap: _Kind(409, "period-overlap", "The period overlaps an invoiced one"),
    exceptions.AmbiguousPrice: _Kind(409, "ambiguous-price", "Two prices bill the same usage"),
    exceptions.InvalidCursor: _Kind(422, "invalid-cursor", "The cursor is none of ours"),
    exceptions.InvalidApiKey: _Kind(422, "invalid-api-key", "The key cannot be made"),
    exceptions.QuotaExceeded: _Kind(429, "quota-exceeded", "The quota is used up"),
    exceptions.SchemaMissing: _Kind(503, "schema-missing", "The database is not ready"),
}


def register_error_handlers(app: FastAPI) -> None:
    """Answer every error of ``app`` as a problem document.

    Errors of this package by their class, HTTP errors with their status and headers, wrong requests with the
    places that are wrong (never with the values), a database that is away with 503 and ``Retry-After``, and
    everything else with 500 and no detail; the server still logs that one.
    """
    for kind in (SvcInfraError, HTTPException, RequestValidationError, SQLAlchemyError, OSError):
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(Exception, _answer_unexpected)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer an error that is expected; raise any other one again, for the server to log and answer."""
    match error:
        case HTTPException():
            return _from_http(error)
        case RequestValidationError():
            return problem(
                422,
                slug="invalid-request",
                title="The request is not valid",
                errors=_places(error.errors()),
            )
        case SvcInfraError() if (kind := _kind_of(error)) is not None:
            return _from_kind(kind, error)
        case _ if is_transient(error):
            log.warning("api.unavailable", error=type(error).__name__, path=request.url.path)
            return problem(
                503,
                slug="unavailable",
                title="Something this service needs is away",
                detail="Send the same request again.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
    raise error


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def answering_errors(handle: Handler) -> Handler:
    """Return ``handle`` with its errors answered as problems, whatever handlers its application has."""

    async def handle_or_answer(request: Request) -> Response:
        try:
            return await handle(request)
        except (SvcInfraError, HTTPException, RequestValidationError, SQLAlchemyError, OSError) as error:
            return await answer_error(request, error)

    return handle_or_answer


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    return problem(500, slug="internal", title="Something went wrong on our side")


def _kind_of(error: SvcInfraError) -> _Kind | None:
    return next((_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS), None)


def _from_kind(kind: _Kind, error: SvcInfraError) -> Response:
    retry_after = getattr(error, "retry_after_seconds", None)
    if retry_after is None and kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
        retry_after = RETRY_AFTER_SECONDS
    return problem(
        kind.status, slug=kind.slug, title=kind.title, detail=str(error), retry_after_seconds=retry_after
    )


def _from_http(error: HTTPException) -> Response:
    if error.status_code < HTTPStatus.OK or error.status_code in (
        HTTPStatus.NO_CONTENT,
        HTTPStatus.NOT_MODIFIED,
    ):
        return Response(status_code=error.status_code, headers=error.headers)
    # FastAPI lets an application raise any JSON as its detail; the standard's member is a text.
    detail: Any = error.detail
    if isinstance(detail, str):
        return problem(error.status_code, detail=detail, headers=error.headers)
    return problem(error.status_code, headers=error.headers, context=detail)


def _places(errors: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Say where a request is wrong and why, but not what was sent: it may be secret, huge or no JSON."""
    return [
        {
            "loc": [part if isinstance(part, int) else str(part)[:_MAX_TEXT_LENGTH] for part in error["loc"]],
            "detail": str(error["msg"])[:_MAX_TEXT_LENGTH],
        }
        for error in list(errors)[:_MAX_ERRORS]
    ]
