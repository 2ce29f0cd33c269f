"""One error as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from svc_infra.api.fastapi.middleware.errors.kinds import ProblemKind

MEDIA_TYPE = "application/problem+json"


class Refusal(HTTPException):
    """Ends a request with a problem of a kind; ``detail`` is for whoever asked."""

    def __init__(
        self, kind: ProblemKind, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(kind.status, detail or kind.title, None if headers is None else dict(headers))
        self.kind = kind


def problem_of(kind: ProblemKind, **more: Any) -> Response:
    """Make the answer of a kind; ``more`` are the arguments of ``problem``."""
    return problem(kind.status, kind=kind, **more)


def problem(
    status: int,
    *,
    kind: ProblemKind | None = None,
    detail: str | None = None,
    headers: Mapping[str, str] | None = None,
    retry_after_seconds: float | None = None,
    **members: Any,
) -> Response:
    """Make the answer. Without ``kind`` the type is ``about:blank``: the status says it all.

    ``members`` are further JSON members; what is there must be safe to show to the caller.
    """
    body = {
        "type": "about:blank" if kind is None else kind.type,
        "title": _phrase(status) if kind is None else kind.title,
        "status": status,
        **({} if detail is None else {"detail": detail}),
        **members,
    }
    answer_headers = dict(headers or {})
    if retry_after_seconds is not None:
        # Whole seconds, rounded up: a caller that comes back in time is not refused again.
        answer_headers["Retry-After"] = str(max(0, -int(-retry_after_seconds // 1)))
    # ASCII escapes, because a name that a caller sent may hold a lone surrogate, which no UTF-8 has.
    content = json.dumps(body, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Response(content, status, answer_headers, media_type=MEDIA_TYPE)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
