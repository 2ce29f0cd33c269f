"""Every error becomes a problem document that says what the caller may know, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from svc_infra.api.fastapi.middleware.errors.kinds import (
    INTERNAL,
    INVALID_REQUEST,
    UNAVAILABLE,
    ProblemKind,
    kind_of,
)
from svc_infra.api.fastapi.middleware.errors.problem import Refusal, problem, problem_of
from svc_infra.billing.entitlements import Quota
from svc_infra.billing.quota_headers import rate_limit_headers
from svc_infra.db.transient import is_transient
from svc_infra.exceptions import QuotaExceeded, SvcInfraError

log = structlog.get_logger(__name__)

RETRY_AFTER_SECONDS = 5
_MAX_ERRORS = 20
_MAX_TEXT_LENGTH = 200


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
            return problem_of(INVALID_REQUEST, errors=_places(error.errors()))
        case SvcInfraError() if (kind := kind_of(error)) is not None:
            return _from_kind(kind, error)
        case _ if is_transient(error):
            log.warning("api.unavailable", error=type(error).__name__, path=request.url.path)
            return problem_of(
                UNAVAILABLE,
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
    return problem_of(INTERNAL)


def _from_kind(kind: ProblemKind, error: SvcInfraError) -> Response:
    retry_after = getattr(error, "retry_after_seconds", None)
    if retry_after is None and kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
        retry_after = RETRY_AFTER_SECONDS
    headers = None
    if isinstance(error, QuotaExceeded) and isinstance(error.quota, Quota):
        headers = rate_limit_headers(error.quota, reset_seconds=error.retry_after_seconds or 0.0)
    return problem_of(kind, detail=str(error), headers=headers, retry_after_seconds=retry_after)


def _from_http(error: HTTPException) -> Response:
    if error.status_code < HTTPStatus.OK or error.status_code in (
        HTTPStatus.NO_CONTENT,
        HTTPStatus.NOT_MODIFIED,
    ):
        return Response(status_code=error.status_code, headers=error.headers)
    if isinstance(error, Refusal):
        return problem_of(error.kind, detail=error.detail, headers=error.headers)
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
            "detail": str(_why(error))[:_MAX_TEXT_LENGTH],
        }
        for error in list(errors)[:_MAX_ERRORS]
    ]


def _why(error: Mapping[str, Any]) -> Any:
    # Why a body is no JSON stands beside the message, and holds nothing of it.
    return error["ctx"]["error"] if error["type"] == "json_invalid" else error["msg"]
