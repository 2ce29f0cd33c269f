"""A job: a named payload that is run, attempt by attempt, until it reaches a terminal state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from svc_infra.canonical import JsonValue, compact_json, plain_json
from svc_infra.exceptions import InvalidPayload, InvalidSettings
from svc_infra.tracing import current_trace

if TYPE_CHECKING:
    from svc_infra.jobs.limit import Limit
    from svc_infra.jobs.rate import Rate
    from svc_infra.jobs.uniqueness import Unique

MAX_NAME_LENGTH = 200
MAX_QUEUE_LENGTH = 100
MAX_TENANT_ID_LENGTH = 255
MAX_TRACE_CONTEXT_LENGTH = 255
MAX_GROUP_LENGTH = 40
MAX_PAYLOAD_BYTES = 256 * 1024
DEFAULT_QUEUE = "default"
DEFAULT_MAX_ATTEMPTS = 20
_MAX_PRIORITY = 2**31 - 1


def is_plain(request: JobRequest) -> bool:
    """Whether the request asks for none of the rarer columns, so that the shorter statement does."""
    return (
        request.unique is None
        and request.payload_version == 1
        and request.metadata is None
        and request.trace_context is None
        and request.timeout_seconds is None
        and request.limit is None
        and request.rate is None
        and request.group_id is None
        and request.waits_for is None
    )


class JobState(StrEnum):
    """Where a job is in its life. "Scheduled" is available with a future ``run_at``."""

    AVAILABLE = "available"
    RUNNING = "running"
    COMPLETED = "completed"
    DISCARDED = "discarded"
    CANCELLED = "cancelled"


FINISHED = frozenset({JobState.COMPLETED, JobState.DISCARDED, JobState.CANCELLED})
"""The terminal states: a job never leaves one by itself."""


# Without slots, so that the many of a claim are made by giving each its dict (rows.job_from_row).
@dataclass(frozen=True, kw_only=True)
class Job:
    """One job as a handler sees it.

    ``attempt`` is the number of the current attempt, counted when the job is claimed and so 0 before the
    first claim. A lower ``priority`` runs first. ``rescues`` counts the leases that expired on this job.
    ``payload_version`` is that of its kind when it was enqueued; ``metadata`` and ``trace_context`` (a W3C
    traceparent) are carried along for whoever reads them; ``timeout_seconds`` come before its handler's.
    It belongs to the group ``group_id`` and is claimed once the group ``waits_for`` has finished.
    ``lease_id`` is the fence of this claim: only its holder may finish the job. ``database`` names where the
    fence can be written; a job of a memory queue has none.
    """

    id: str
    name: str
    payload: dict[str, Any]
    run_at: datetime
    created_at: datetime
    queue: str = DEFAULT_QUEUE
    tenant_id: str | None = None
    priority: int = 0
    attempt: int = 0
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    lease_id: str | None = None
    rescues: int = 0
    last_error: str | None = None
    payload_version: int = 1
    metadata: dict[str, Any] | None = None
    trace_context: str | None = None
    timeout_seconds: float | None = None
    group_id: str | None = None
    waits_for: str | None = None
    database: str | None = None


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What ``enqueue`` is asked for, checked when it is made.

    ``payload`` is replaced by its plain JSON data (decimals and instants as text), a copy that later changes
    of the caller's dict do not reach; ``payload_json`` is its text. Without ``run_at`` the job is due at
    once, without ``max_attempts`` the retry policy of its name decides. With ``unique`` it may be a duplicate
    of a job that is there, which then stands for it. Without a ``trace_context`` it belongs to the trace that
    is being carried (``svc_infra.tracing``).

    Raises:
        InvalidPayload: a field is missing, too long or not storable; the message names it.
        InvalidSettings: limit and rate go by different keys.
    """

    name: str
    payload: dict[str, Any] = field(default_factory=dict)
    queue: str = DEFAULT_QUEUE
    tenant_id: str | None = None
    priority: int = 0
    run_at: datetime | None = None
    max_attempts: int | None = None
    unique: Unique | None = None
    payload_version: int = 1
    metadata: dict[str, Any] | None = None
    trace_context: str | None = None
    timeout_seconds: float | None = None
    limit: Limit | None = None
    rate: Rate | None = None
    group_id: str | None = None
    waits_for: str | None = None
    payload_json: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_text("name", self.name, MAX_NAME_LENGTH)
        _check_text("queue", self.queue, MAX_QUEUE_LENGTH)
        if self.tenant_id is not None:
            _check_text("tenant_id", self.tenant_id, MAX_TENANT_ID_LENGTH)
        if abs(self.priority) > _MAX_PRIORITY:
            raise InvalidPayload(f"the priority {self.priority} of job {self.name!r} does not fit 32 bits")
        if self.run_at is not None and self.run_at.utcoffset() is None:
            raise InvalidPayload(f"run_at of job {self.name!r} has no UTC offset; pass an aware datetime")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise InvalidPayload(f"max_attempts of job {self.name!r} is {self.max_attempts}; the least is 1")
        if self.payload_version < 1:
            raise InvalidPayload(
                f"payload_version of job {self.name!r} is {self.payload_version}; it is from 1"
            )
        if self.timeout_seconds is not None and not 0 < self.timeout_seconds < math.inf:
            raise InvalidPayload(f"timeout_seconds of job {self.name!r} must be positive")
        if self.trace_context is None:
            object.__setattr__(self, "trace_context", current_trace())
        else:
            _check_text("trace_context", self.trace_context, MAX_TRACE_CONTEXT_LENGTH)
        require_one_key(self.name, self.limit, self.rate)
        for group in (self.group_id, self.waits_for):
            if group is not None:
                _check_text("group", group, MAX_GROUP_LENGTH)
        if self.waits_for is not None and self.waits_for == self.group_id:
            raise InvalidPayload(f"job {self.name!r} waits for its own group, and so would never run")
        if self.metadata is not None:
            object.__setattr__(self, "metadata", _encode(self.metadata)[0])
        plain, text = _encode(self.payload)
        object.__setattr__(self, "payload", plain)
        object.__setattr__(self, "payload_json", text)


def require_one_key(name: str, limit: Limit | None, rate: Rate | None) -> None:
    """Refuse a limit and a rate that go by different keys: a job waits its turn in one line.

    Raises:
        InvalidSettings: they do.
    """
    if limit and rate and (limit.field, limit.shared_key) != (rate.field, rate.shared_key):
        raise InvalidSettings(
            f"limit and rate of {name!r} go by different keys; give both the same field and shared_key"
        )


def encode_payload(payload: dict[str, Any]) -> str:
    """Return ``payload`` as compact JSON text.

    Decimals become canonical text and aware datetimes ISO 8601 in UTC ending in ``Z``. Finite floats pass.

    Raises:
        InvalidPayload: not a dict, something in it has no JSON form (the message names its path), or the
            text is longer than 256 KiB.
    """
    return _encode(payload)[1]


def _encode(payload: dict[str, Any]) -> tuple[JsonValue, str]:
    if not isinstance(payload, dict):
        raise InvalidPayload(f"a job payload is a dict, not a {type(payload).__name__}")
    plain = plain_json(payload, floats_allowed=True)
    text = compact_json(plain)
    size = len(text) if text.isascii() else len(text.encode())
    if size > MAX_PAYLOAD_BYTES:
        raise InvalidPayload(
            f"the payload has {size:,} bytes, the limit is {MAX_PAYLOAD_BYTES:,}; store the data in a table "
            "and pass its id"
        )
    return plain, text


def _check_text(what: str, text: str, max_length: int) -> None:
    if type(text) is str and 0 < len(text) <= max_length and text.isascii() and "\x00" not in text:
        return
    if not isinstance(text, str) or not text or len(text) > max_length:
        raise InvalidPayload(f"{what} of a job must be 1 to {max_length} characters, got {text!r:.80}")
    plain_json(text, floats_allowed=False, path=what)
