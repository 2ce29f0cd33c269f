"""Usage as it comes over HTTP: read event by event, and recorded in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.billing.models import KEY_LENGTH, METRIC_LENGTH, UsageEvent
from svc_infra.billing.usage import NewUsage, RecordedUsage, quantity, record_many
from svc_infra.billing.usage_limits import NO_LIMITS, UsageLimits
from svc_infra.exceptions import IdempotencyConflict, InvalidUsage

_CONFLICT = "this idempotency_key was used for another event; send the first payload again, or a new key"
D = TypeVar("D", bound=date)
_YEARS = range(2, 9_999)


def _exact(value: Any) -> Decimal:
    try:
        return quantity(value)
    except InvalidUsage as error:
        raise ValueError(str(error)) from None


def _instant(value: Any) -> datetime:
    # Left to pydantic, a number would be seconds since 1970, and so would a text of digits.
    if not isinstance(value, str):
        raise ValueError("write the instant as ISO 8601 text with a UTC offset")
    return require_within_calendar(datetime.fromisoformat(value))


def require_within_calendar(value: D) -> D:
    """Refuse what is beyond the calendar somewhere on earth, or would be with a day added or taken.

    Raises:
        ValueError: the year is none of 2 to 9998.
    """
    if value.year not in _YEARS:
        raise ValueError("the year is from 2 to 9998")
    return value


Amount = Annotated[
    Decimal,
    BeforeValidator(_exact),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}], "examples": ["12.5"]}),
]
Instant = Annotated[AwareDatetime, BeforeValidator(_instant)]
Metric = Annotated[str, Field(min_length=1, max_length=METRIC_LENGTH, pattern=r"^[^\x00]*$")]


class UsageIn(BaseModel):
    """A usage event to record. ``amount`` is a quantity: an integer or a decimal string, never a float."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "metric": "tokens",
        "amount": "12.5",
        "at": "2025-01-01T09:30:00Z",
        "idempotency_key": "req-42",
        "metadata": {"model": "gpt"},
    }
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE]})

    metric: Metric
    amount: Amount
    at: Instant | None = None
    idempotency_key: str = Field(min_length=1, max_length=KEY_LENGTH)
    metadata: dict[str, Any] | None = None


class UsageResult(BaseModel):
    """What became of the event at ``index``: with its id, or with why it was not recorded."""

    index: int
    outcome: Literal["inserted", "duplicate", "conflict", "invalid"]
    id: str | None = None
    detail: str | None = None


@dataclass
class Intake:
    """Results in order, and their counts."""

    results: list[UsageResult]
    counts: dict[str, int]

    @classmethod
    def empty(cls) -> Intake:
        """Return one of nothing."""
        return cls([], {"inserted": 0, "duplicate": 0, "conflict": 0, "invalid": 0})

    def add(self, other: Intake) -> None:
        """Add the counts of another; its results are left to it."""
        for outcome, count in other.counts.items():
            self.counts[outcome] += count


def take_one(
    session: Session, usage: UsageIn, tenant_id: str, *, now: datetime, limits: UsageLimits = NO_LIMITS
) -> str:
    """Record one event and return the id of the event that its key was first used for.

    Raises:
        InvalidUsage: it cannot be stored.
        IdempotencyConflict: its key was used for another payload.
    """
    [recorded] = _record(session, [(usage, _event(usage, tenant_id, now))], now=now, limits=limits)
    if recorded.outcome == "conflict":
        raise IdempotencyConflict(_CONFLICT)
    if recorded.outcome == "rejected":
        raise InvalidUsage(recorded.reason)
    return recorded.id


def take_all(
    session: Session,
    events: Sequence[Any],
    tenant_id: str,
    *,
    now: datetime,
    limits: UsageLimits = NO_LIMITS,
) -> Intake:
    """Record those of ``events`` (JSON values) that can be, and say what became of each."""
    intake, read = Intake.empty(), list[tuple[UsageIn, NewUsage]]()
    places: list[int] = []
    for index, value in enumerate(events):
        try:
            usage = UsageIn.model_validate(value)
            read.append((usage, _event(usage, tenant_id, now)))
            places.append(index)
        except ValidationError as error:
            intake.results.append(UsageResult(index=index, outcome="invalid", detail=_why(error)))
        except InvalidUsage as error:
            intake.results.append(UsageResult(index=index, outcome="invalid", detail=str(error)))
    for index, recorded in zip(places, _record(session, read, now=now, limits=limits), strict=True):
        if recorded.outcome == "rejected":  # kept among the rejections, and there is no event of this id
            intake.results.append(UsageResult(index=index, outcome="invalid", detail=recorded.reason))
            continue
        detail = _CONFLICT if recorded.outcome == "conflict" else None
        intake.results.append(
            UsageResult(index=index, outcome=recorded.outcome, id=recorded.id, detail=detail)
        )
    intake.results.sort(key=lambda result: result.index)
    for result in intake.results:
        intake.counts[result.outcome] += 1
    return intake


def _event(usage: UsageIn, tenant_id: str, now: datetime) -> NewUsage:
    return NewUsage(
        tenant_id, usage.metric, usage.amount, usage.at or now, usage.idempotency_key, usage.metadata
    )


def _record(
    session: Session, read: Sequence[tuple[UsageIn, NewUsage]], *, now: datetime, limits: UsageLimits
) -> list[RecordedUsage]:
    recorded = record_many(session, [event for _, event in read], now=now, limits=limits)
    for index, (usage, event) in enumerate(read):
        if usage.at is None and recorded[index].outcome == "conflict":
            recorded[index] = _at_its_first_time(session, event, recorded[index].id, now=now)
    return recorded


def _at_its_first_time(session: Session, event: NewUsage, first_id: str, *, now: datetime) -> RecordedUsage:
    """Compare a repetition that leaves "now" to us at the first's time: only our clock differs."""
    first_at = session.scalars(
        select(UsageEvent.at_ts).where(UsageEvent.tenant_id == event.tenant_id, UsageEvent.id == first_id)
    ).one()
    [recorded] = record_many(session, [replace(event, at=first_at)], now=now)
    return recorded


def _why(error: ValidationError) -> str:
    """Say what is wrong and where, without what was sent."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part)[:100] for part in first["loc"]) or "the event"
    return f"{place}: {first['msg']}"[:300]
