"""The trace that work belongs to: from a request to its jobs, to what they publish, and to its deliveries.

It goes along as W3C ``traceparent`` text, always. Where the process has set a tracer provider of
OpenTelemetry, each step is a span of it as well. Nothing is imported for that: whoever sets a provider has
loaded its API.
"""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

TRACE_HEADER = "traceparent"

Kind: TypeAlias = Literal["server", "producer", "consumer", "client"]
Attributes: TypeAlias = Mapping[str, str | int]

_current: ContextVar[str | None] = ContextVar("svc_infra_trace", default=None)
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_MAX_LENGTH = 255
_MAX_LINKS = 100
_SCOPE = "svc_infra"


def current_trace() -> str | None:
    """The ``traceparent`` of what is being done now; None outside of any trace."""
    api = _api()
    if api is not None:
        context = api.get_current_span().get_span_context()
        if context.is_valid:
            return _text(context)
    return _current.get()


@contextmanager
def carried(traceparent: str | None) -> Iterator[None]:
    """Let what this task enqueues and publishes meanwhile belong to this trace, unless it names its own."""
    token = _current.set(traceparent)
    try:
        yield
    finally:
        _current.reset(token)


def continued(traceparent: str | None) -> str:
    """The ``traceparent`` of a step of our own in the caller's trace; of a new trace if there is none.

    What is no ``traceparent`` begins a new one, as the recommendation says. The caller's flags stay.
    """
    trace_id, _, flags = _parts(traceparent) or (secrets.token_hex(16), "", "00")
    return f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the id of the trace, 32 hexadecimal digits; None of what is no ``traceparent``."""
    parts = _parts(traceparent)
    return None if parts is None else parts[0]


@dataclass(slots=True)
class Step:
    """A step that is being done. Its ``traceparent`` is what goes on from here, None outside of any trace."""

    traceparent: str | None
    _span: Any = None

    @property
    def is_recording(self) -> bool:
        """Whether somebody will see a span of it."""
        return self._span is not None and self._span.is_recording()

    def note(self, attributes: Attributes) -> None:
        """Add attributes to the span."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def fail(self, error_type: str) -> None:
        """Mark the span as failed, by the class of the error alone: a message may quote what is secret."""
        if self._span is not None:
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(sys.modules["opentelemetry.trace"].StatusCode.ERROR)


def step(name: str, kind: Kind, attributes: Attributes) -> AbstractContextManager[Step]:
    """Do a step of what is being done: a span, where spans are wanted, and nothing elsewhere."""
    api = _api()
    if api is None:
        return nullcontext(Step(_current.get()))
    here = api.get_current_span()
    context = None if here.get_span_context().is_valid else _remote(api, _current.get())
    return _spanned(api, name, kind, attributes, context, ())


def continuing(
    traceparent: str | None, name: str, kind: Kind, attributes: Attributes, *, links: Iterable[str] = ()
) -> AbstractContextManager[Step]:
    """Go on with a trace that came from elsewhere, in a span where spans are wanted.

    Without a ``traceparent`` it is the beginning of a trace, which may be linked to others.
    """
    api = _api()
    if api is None:
        return _carrying(traceparent)
    return _spanned(api, name, kind, attributes, _remote(api, traceparent), links)


def is_in_span() -> bool:
    """Whether a span is open around what is being done, of the application or its instrumentation."""
    api = _api()
    return api is not None and bool(api.get_current_span().get_span_context().is_valid)


@contextmanager
def _carrying(traceparent: str | None) -> Iterator[Step]:
    with carried(traceparent):
        yield Step(traceparent)


@contextmanager
def _spanned(
    api: Any, name: str, kind: Kind, attributes: Attributes, context: Any, links: Iterable[str]
) -> Iterator[Step]:
    linked = [found for link in links if (found := _span_context(api, link)) is not None]
    span = _tracer(api.get_tracer_provider()).start_span(
        name,
        context=context,
        kind=api.SpanKind[kind.upper()],
        attributes=dict(attributes),
        links=[api.Link(found) for found in linked[:_MAX_LINKS]],
    )
    done = Step(_text(span.get_span_context()), span)
    using = api.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False)
    with using, carried(done.traceparent):
        try:
            yield done
        except BaseException as error:
            done.fail(type(error).__name__)
            raise


def _api() -> Any:
    """Return the API of OpenTelemetry where a tracer provider was set, None elsewhere."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        return None
    return api


@lru_cache(maxsize=1)
def _tracer(provider: Any) -> Any:
    return provider.get_tracer(_SCOPE)


def _remote(api: Any, traceparent: str | None) -> Any:
    """Return the context in which a span goes on with a trace from elsewhere, or begins one without it."""
    return api.set_span_in_context(
        api.NonRecordingSpan(_span_context(api, traceparent) or api.INVALID_SPAN_CONTEXT)
    )


def _span_context(api: Any, traceparent: str | None) -> Any:
    parts = _parts(traceparent)
    if parts is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in parts)
    return api.SpanContext(trace_id, span_id, is_remote=True, trace_flags=api.TraceFlags(flags))


def _text(context: Any) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 255:02x}"


def _parts(traceparent: str | None) -> tuple[str, str, str] | None:
    """Return trace id, span id and flags, None if the text is no ``traceparent``."""
    if traceparent is None or len(traceparent) > _MAX_LENGTH:
        return None
    found = _FORM.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    is_usable = version != "ff" and not (version == "00" and more) and int(trace_id, 16) and int(span_id, 16)
    return (trace_id, span_id, flags) if is_usable else None
