"""One error as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


def problem_type(slug: str) -> str:
    """Return the ``type`` that names a kind of problem: stable, for programs to compare."""
    return f"urn:svc-infra:problem:{slug}"


def problem(
    status: int,
    *,
    slug: str | None = None,
    title: str | None = None,
    detail: str | None = None,
    headers: Mapping[str, str] | None = None,
    retry_after_seconds: float | None = None,
    **members: Any,
) -> Response:
    """Make the answer. Without ``slug`` the type is ``about:blank``: the status says it all.

    ``members`` are further JSON members; what is there must be safe to show to the caller.
    """
    body = {
        "type": "about:blank" if slug is None else problem_type(slug),
        "title": title or _phrase(status),
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
