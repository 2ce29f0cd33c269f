"""Usage as it comes over HTTP: read event by event, and recorded in one statement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.fields import InstantIn
from svc_infra.billing.models import KEY_LENGTH, METRIC_LENGTH
from svc_infra.billing.usage import NewUsage, RecordedUsage, quantity, record_many
from svc_infra.billing.usage_corrections import recorded_event
from svc_infra.billing.usage_limits import NO_LIMITS, UsageLimits
from svc_infra.exceptions import IdempotencyConflict, InvalidUsage

_CONFLICT = "this idempotency_key was used for another event; send the first payload again, or a new key"


def _exact(value: Any) -> Decimal:
    try:
        return quantity(value)
    except InvalidUsage as error:
        raise ValueError(str(error)) from None


Amount = Annotated[
    Decimal,
    BeforeValidator(_exact),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}], "examples": ["12.5"]}),
]
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
    at: InstantIn | None = None
    idempotency_key: str = Field(min_length=1, max_length=KEY_LENGTH)
    metadata: dict[str, Any] | None = None


class UsageResult(BaseModel):
    """What became of the event at ``index``: with its id, or with why it was not recorded."""

    index: int
    outcome: Literal["inserted", "duplicate", "conflict", "invalid"]
    id: str | None = None
    detail: str | None = None


class Transactions(Protocol):
    """Where a tenant's transactions come from: a factory of sessions, or one that holds it to its rows."""

    def begin(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a session whose transaction is committed at the end."""


Read: TypeAlias = tuple[UsageIn, NewUsage]


@dataclass
class Intake:
    """Events as they were read: those that can be recorded, with their places, and why the others cannot."""

    places: list[int] = field(default_factory=list)
    read: list[Read] = field(default_factory=list)
    refused: list[UsageResult] = field(default_factory=list)

    def add(self, place: int, parse: Callable[[], UsageIn], tenant_id: str, now: datetime) -> None:
        """Read the event at ``place``."""
        try:
            usage = parse()
            event = event_of(usage, tenant_id, now)
        except ValidationError as error:
            self.refused.append(UsageResult(index=place, outcome="invalid", detail=_why(error)))
        except InvalidUsage as error:
            self.refused.append(UsageResult(index=place, outcome="invalid", detail=str(error)))
        else:
            self.places.append(place)
            self.read.append((usage, event))

    def refuse(self, recorded: Sequence[RecordedUsage]) -> None:
        """Note which of the events that were read were not recorded after all."""
        for place, each in zip(self.places, recorded, strict=True):
            if each.outcome == "rejected":  # kept among the rejections, and there is no event of this id
                self.refused.append(UsageResult(index=place, outcome="invalid", detail=each.reason))
            elif each.outcome == "conflict":
                self.refused.append(
                    UsageResult(index=place, outcome="conflict", id=each.id, detail=_CONFLICT)
                )
        self.refused.sort(key=lambda result: result.index)


def count(intake: Intake, recorded: Sequence[RecordedUsage]) -> dict[str, int]:
    """How many events became what, after ``intake.refuse(recorded)``."""
    outcomes = Counter(each.outcome for each in recorded)
    invalid = sum(result.outcome == "invalid" for result in intake.refused)
    return {
        "inserted": outcomes["inserted"],
        "duplicate": outcomes["duplicate"],
        "conflict": outcomes["conflict"],
        "invalid": invalid,
    }


def id_of(recorded: RecordedUsage) -> str:
    """The id of the event that a key was first used for.

    Raises:
        InvalidUsage: it was refused.
        IdempotencyConflict: its key was used for another payload.
    """
    if recorded.outcome == "conflict":
        raise IdempotencyConflict(_CONFLICT)
    if recorded.outcome == "rejected":
        raise InvalidUsage(recorded.reason)
    return recorded.id


def event_of(usage: UsageIn, tenant_id: str, now: datetime) -> NewUsage:
    """The event that is to be recorded; InvalidUsage if it cannot be stored."""
    return NewUsage(
        tenant_id, usage.metric, usage.amount, usage.at or now, usage.idempotency_key, usage.metadata
    )


def record_read(
    session: Session, read: Sequence[Read], *, now: datetime, limits: UsageLimits = NO_LIMITS
) -> list[RecordedUsage]:
    """Record events and say, in their order, what became of each."""
    recorded = record_many(session, [event for _, event in read], now=now, limits=limits)
    for index, (usage, event) in enumerate(read):
        if usage.at is None and recorded[index].outcome == "conflict":
            recorded[index] = _at_its_first_time(session, event, recorded[index].id, now=now)
    return recorded


def _at_its_first_time(session: Session, event: NewUsage, first_id: str, *, now: datetime) -> RecordedUsage:
    """Compare a repetition that leaves "now" to us at the first's time: only our clock differs."""
    first = recorded_event(session, event.tenant_id, first_id)
    [recorded] = record_many(session, [replace(event, at=first.at_ts)], now=now)
    return recorded


def _why(error: ValidationError) -> str:
    """Say what is wrong and where, without what was sent."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part)[:100] for part in first["loc"]) or "the event"
    return f"{place}: {first['msg']}"[:300]
