"""The trace that work belongs to, as W3C ``traceparent`` text: from a request into the jobs it enqueues."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[str | None] = ContextVar("svc_infra_trace", default=None)
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_MAX_LENGTH = 255


def current_trace() -> str | None:
    """The ``traceparent`` of what is being done now; None outside of any trace."""
    return _current.get()


@contextmanager
def carried(traceparent: str | None) -> Iterator[None]:
    """Let every job that this task enqueues meanwhile belong to this trace, unless it names its own."""
    token = _current.set(traceparent)
    try:
        yield
    finally:
        _current.reset(token)


def continued(traceparent: str | None) -> str:
    """The ``traceparent`` of a step of our own in the caller's trace; of a new trace if there is none.

    What is no ``traceparent`` begins a new one, as the recommendation says. The caller's flags stay.
    """
    trace_id, flags = secrets.token_hex(16), "00"
    found = _FORM.fullmatch(traceparent or "") if len(traceparent or "") <= _MAX_LENGTH else None
    if found is not None:
        version, theirs, parent_id, their_flags, more = found.groups()
        is_usable = (
            version != "ff" and not (version == "00" and more) and int(theirs, 16) and int(parent_id, 16)
        )
        if is_usable:
            trace_id, flags = theirs, their_flags
    return f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"
