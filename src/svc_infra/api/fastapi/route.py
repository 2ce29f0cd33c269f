"""The route class of the API: errors are problem documents, a trace goes in and out, all of it documented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from svc_infra.api.fastapi.middleware.errors.handlers import Handler, answering_errors
from svc_infra.api.fastapi.middleware.errors.problem import MEDIA_TYPE
from svc_infra.tracing import TRACE_HEADER, carried, continued, continuing, current_trace, is_in_span

_PROBLEM: dict[str, Any] = {
    MEDIA_TYPE: {
        "schema": {
            "type": "object",
            "required": ["type", "title", "status"],
            "properties": {
                "type": {"type": "string", "description": "Names the kind of problem, for programs."},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
            },
        }
    }
}
_REFUSALS = {
    401: "Nobody is known for this request.",
    403: "The caller lacks the scope.",
    422: "The request is not valid.",
    "default": "Any other problem.",
}


def refusals(**more: str) -> dict[int | str, dict[str, Any]]:
    """Document problem answers for ``responses=``: ``refusals(_404="There is no such invoice.")``."""
    return {int(status[1:]): _answer(description) for status, description in more.items()}


class ApiRoute(APIRoute):
    """A route whose errors are problem documents and whose ``traceparent`` reaches the jobs it enqueues.

    The answer's ``traceparent`` names this request in the caller's trace, or in a new one.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        every = {status: _answer(description) for status, description in _REFUSALS.items()}
        options["responses"] = {**every, **(options.get("responses") or {})}
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Handler:
        return _traced(answering_errors(self.make_handler()), self.path_format)

    def make_handler(self) -> Handler:
        """Make what handles a request and may raise."""
        return super().get_route_handler()


def _traced(handle: Handler, path: str) -> Handler:
    async def handle_traced(request: Request) -> Response:
        if is_in_span():  # of the application's own instrumentation, which is this request's then
            response = await handle(request)
            response.headers[TRACE_HEADER] = current_trace() or ""
            return response
        theirs = request.headers.get(TRACE_HEADER)
        attributes = {"http.request.method": request.method, "http.route": path}
        with continuing(theirs, f"{request.method} {path}", "server", attributes) as step:
            trace = (step.traceparent if is_in_span() else None) or continued(theirs)
            with carried(trace):
                response = await handle(request)
            step.note({"http.response.status_code": response.status_code})
            if response.status_code >= 500:
                step.fail(str(response.status_code))
        response.headers[TRACE_HEADER] = trace
        return response

    return handle_traced


def _answer(description: str) -> dict[str, Any]:
    return {"description": description, "content": _PROBLEM}
