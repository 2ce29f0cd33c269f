"""A delivery attempt without its I/O: build the request, and judge what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from random import Random
from typing import Literal, TypeAlias

from svc_infra.clock import require_utc
from svc_infra.exceptions import InvalidSecret, InvalidSettings
from svc_infra.webhooks.message import ContentMode, Message, as_cloudevent
from svc_infra.webhooks.signature import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign

MAX_RETRY_AFTER = timedelta(hours=24)
_OVERLOAD = frozenset({429, 502, 504})
_ASKS_TO_WAIT = frozenset({429, 503})


class DeliveryState(StrEnum):
    """Where a delivery is in its life. Held: the endpoint is disabled and the message waits for it."""

    PENDING = "pending"
    SENDING = "sending"
    DELIVERED = "delivered"
    DEAD = "dead"
    HELD = "held"


class AttemptOutcome(StrEnum):
    """The class of what came of one attempt; stored with it and counted by it."""

    SUCCESS = "success"
    REDIRECT = "redirect"
    CLIENT_ERROR = "client_error"
    GONE = "gone"
    THROTTLED = "throttled"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECT_ERROR = "connect_error"
    REFUSED_ADDRESS = "refused_address"
    TLS_ERROR = "tls_error"
    PROTOCOL_ERROR = "protocol_error"
    INVALID_REQUEST = "invalid_request"


_SEND_FAILURES = frozenset(
    {
        AttemptOutcome.TIMEOUT,
        AttemptOutcome.CONNECT_ERROR,
        AttemptOutcome.REFUSED_ADDRESS,
        AttemptOutcome.TLS_ERROR,
        AttemptOutcome.PROTOCOL_ERROR,
        AttemptOutcome.INVALID_REQUEST,
    }
)

# What an endpoint's own headers never set: the framing and the identity of the request are ours, and who asks
# for it is not to be made up. Cloud metadata services answer only to headers that no stranger's request has.
RESERVED_HEADERS = frozenset(
    "connection content-encoding content-length content-type cookie expect forwarded host http2-settings "
    "keep-alive metadata metadata-flavor proxy-authorization proxy-connection te trailer transfer-encoding "
    "upgrade user-agent via x-http-method-override x-method-override x-real-ip".split()
)
RESERVED_PREFIXES = ("webhook-", "proxy-", "x-forwarded-", "x-aws-ec2-metadata-")


@dataclass(frozen=True, slots=True)
class EndpointTarget:
    """Where to send and how to sign, read at send time. ``secrets`` are all valid ones, newest first.

    ``fault`` says why there are none that can be used."""

    url: str
    secrets: tuple[str, ...] = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content_mode: ContentMode = "standard"
    fault: str = ""


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """One POST, ready to send. The headers hold a signature and are kept out of its repr."""

    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """The endpoint answered. ``excerpt`` is the capped start of the body, untrusted."""

    status: int
    retry_after: str | None
    excerpt: bytes
    duration_ms: int


@dataclass(frozen=True, slots=True)
class SendFailure:
    """There was no answer. ``reason`` is one of timeout, connect_error, refused_address, tls_error,
    protocol_error and invalid_request (the endpoint's URL or headers may not be sent); ``detail`` is for
    people and names no internal address."""

    reason: str
    detail: str
    duration_ms: int


SendResult: TypeAlias = Answer | SendFailure


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the delivery: ``run_at`` is set for ``retry`` only."""

    state: Literal["delivered", "retry", "dead"]
    run_at: datetime | None
    outcome: AttemptOutcome
    disable_endpoint: bool = False


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """The wait before each attempt, the first included; as many attempts as there are waits.

    The default is the example of Standard Webhooks: 10 attempts over 75 hours and 35 minutes. A wait is
    lengthened by a random share of up to ``jitter`` of itself and never shortened.

    Raises:
        InvalidSettings: no attempt at all, a negative wait, or a jitter outside 0 to 0.2.
    """

    delays_seconds: tuple[float, ...] = (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if not self.delays_seconds or not all(0 <= delay <= 31_622_400 for delay in self.delays_seconds):
            raise InvalidSettings("a retry schedule needs at least one wait, each from 0 s to one year")
        if not 0 <= self.jitter <= 0.2:
            raise InvalidSettings("the jitter of a retry schedule is from 0 to 0.2")

    @property
    def max_attempts(self) -> int:
        """How many attempts there are."""
        return len(self.delays_seconds)

    def delay_before(self, attempt: int) -> timedelta:
        """Return the wait before attempt number ``attempt`` (from 1), without jitter."""
        return timedelta(seconds=self.delays_seconds[attempt - 1])


def prepare(message: Message, target: EndpointTarget, *, now: datetime, user_agent: str) -> OutgoingRequest:
    """Build the request of one attempt.

    ``now`` is the wall clock's: a verifier refuses an old timestamp, so each attempt is stamped and signed
    anew, while id and body stay the same. Reserved headers of the endpoint are left out.

    Raises:
        InvalidSecret: the endpoint has no usable secret.
    """
    if target.fault:
        raise InvalidSecret(target.fault)
    timestamp = int(require_utc(now).timestamp())
    headers = {name.lower(): value for name, value in target.headers.items() if not is_reserved_header(name)}
    is_cloudevent = target.content_mode == "cloudevents"
    body = as_cloudevent(message) if is_cloudevent else message.body
    headers |= {
        "content-type": "application/cloudevents+json" if is_cloudevent else "application/json",
        "user-agent": user_agent,
        ID_HEADER: message.id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: sign(message.id, timestamp, body, target.secrets),
    }
    return OutgoingRequest(target.url, headers, body)


def is_reserved_header(name: str) -> bool:
    """Tell whether an endpoint's own headers may not contain ``name``."""
    lowered = name.lower()
    return lowered in RESERVED_HEADERS or lowered.startswith(RESERVED_PREFIXES)


def judge(
    result: SendResult,
    *,
    attempt: int,
    now: datetime,
    schedule: RetrySchedule,
    rng: Random,
    wall_now: datetime | None = None,
) -> Verdict:
    """Decide what becomes of a delivery after attempt number ``attempt`` (from 1) ended with ``result``.

    Only 2xx is success; a redirect is a failure and never followed; 410 ends the delivery and disables the
    endpoint; all else is tried again until the schedule is used up. That goes for what never left the process
    too (``invalid_request``, ``refused_address``): the endpoint is read anew for each attempt, so that a
    corrected URL or an opened network delivers what waits, and until then the outcome tells what to correct.
    Retry-After, as seconds or as a date, is a floor for the wait, counted up to 24 hours. ``now`` is the time
    that ``run_at`` is in; a Retry-After date is compared with ``wall_now`` where that is another clock.
    """
    outcome = _classify(result)
    if outcome is AttemptOutcome.SUCCESS:
        return Verdict("delivered", None, outcome)
    if outcome is AttemptOutcome.GONE:
        return Verdict("dead", None, outcome, disable_endpoint=True)
    if attempt >= schedule.max_attempts:
        return Verdict("dead", None, outcome)
    wait = schedule.delay_before(attempt + 1)
    if isinstance(result, Answer) and result.retry_after is not None:
        wait = max(wait, _retry_after(result.retry_after, wall_now or now))
    return Verdict("retry", now + wait * (1 + schedule.jitter * rng.random()), outcome)


def is_overload(result: SendResult) -> bool:
    """Tell whether an endpoint shows that it gets too much: 429, 502, 504 or no answer in time."""
    if isinstance(result, Answer):
        return result.status in _OVERLOAD
    return result.reason == AttemptOutcome.TIMEOUT


def asks_to_wait(result: SendResult) -> bool:
    """Tell whether an endpoint says that nothing should be sent to it for a while: 429 or 503 with a time."""
    return isinstance(result, Answer) and result.status in _ASKS_TO_WAIT and result.retry_after is not None


def _classify(result: SendResult) -> AttemptOutcome:
    if isinstance(result, SendFailure):
        known = result.reason in _SEND_FAILURES
        return AttemptOutcome(result.reason) if known else AttemptOutcome.PROTOCOL_ERROR
    match result.status:
        case 410:
            return AttemptOutcome.GONE
        case 429:
            return AttemptOutcome.THROTTLED
    by_hundreds = {
        2: AttemptOutcome.SUCCESS,
        3: AttemptOutcome.REDIRECT,
        4: AttemptOutcome.CLIENT_ERROR,
        5: AttemptOutcome.SERVER_ERROR,
    }
    return by_hundreds.get(result.status // 100, AttemptOutcome.PROTOCOL_ERROR)


def _retry_after(value: str, wall_now: datetime) -> timedelta:
    """Return the wait that a Retry-After header asks for, from 0 to 24 hours; 0 if it cannot be read."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(timedelta(seconds=int(text)), MAX_RETRY_AFTER) if len(text) <= 9 else MAX_RETRY_AFTER
    try:
        asked_at = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return timedelta(0)
    if asked_at.tzinfo is None:
        asked_at = asked_at.replace(tzinfo=UTC)
    return min(max(asked_at - wall_now, timedelta(0)), MAX_RETRY_AFTER)
