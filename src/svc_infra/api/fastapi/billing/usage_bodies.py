"""Recorded usage as it is answered, and its corrections as they are sent; here ``amount`` is a quantity."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from svc_infra.api.fastapi.billing.fields import InstantText, Minor, QuantityText, Reason
from svc_infra.api.fastapi.billing.usage_intake import Amount
from svc_infra.api.fastapi.fields import InstantIn
from svc_infra.billing.models import ArchivedUsage, UsageCorrection, UsageEvent
from svc_infra.billing.usage_state import State, UsageState


class EventBody(BaseModel):
    """A recorded event as it was given; ``amount`` is a quantity."""

    id: str
    metric: str
    amount: QuantityText
    at: InstantText
    idempotency_key: str
    metadata: dict[str, Any] | None
    recorded_at: InstantText

    @classmethod
    def of(cls, row: UsageEvent | ArchivedUsage) -> EventBody:
        """Make it of a stored event."""
        return cls(
            id=row.id,
            metric=row.metric,
            amount=row.amount,
            at=row.at_ts,
            idempotency_key=row.idempotency_key,
            metadata=None if row.metadata_json is None else json.loads(row.metadata_json),
            recorded_at=row.created_at,
        )


class CorrectionBody(BaseModel):
    """Who took an event out of what is counted, why, and which event counts instead."""

    model_config = ConfigDict(from_attributes=True)

    kind: Literal["void", "amend"]
    replacement_id: str | None
    reason: str
    actor: str
    created_at: InstantText


class BilledOn(BaseModel):
    """A line that the event is on. ``amount`` is that of the whole line."""

    model_config = ConfigDict(from_attributes=True)

    invoice_id: str
    invoice_status: str = Field(validation_alias="status")
    line_id: str
    position: int
    kind: str
    quantity: QuantityText
    amount: Minor
    currency: str


class TraceBody(EventBody):
    """An event and what became of it: its day, its state, the lines that bill it, its correction.

    ``archived_at`` is when it was moved to the archive; that changes nothing about what it counts for.
    """

    archived_at: InstantText | None
    day_start: InstantText
    day_end: InstantText
    state: State
    lines: list[BilledOn]
    correction: CorrectionBody | None

    @classmethod
    def of_state(cls, found: UsageState) -> TraceBody:
        """Make it of what was found out."""
        event = found.event
        return cls(
            id=found.event_id,
            metric=event.metric,
            amount=event.amount,
            at=event.at,
            idempotency_key=event.idempotency_key,
            metadata=None if event.metadata is None else dict(event.metadata),
            recorded_at=found.recorded_at,
            archived_at=found.archived_at,
            day_start=found.day.start,
            day_end=found.day.end,
            state=found.state,
            lines=[BilledOn.model_validate(line) for line in found.lines],
            correction=_correction(found.correction),
        )


class AggregateBody(BaseModel):
    """The total quantity of a metric over one of the tenant's days, as it was last aggregated."""

    model_config = ConfigDict(from_attributes=True)

    metric: str
    granularity: str
    period_start: InstantText
    period_end: InstantText
    total: QuantityText
    updated_at: InstantText


class RejectionBody(BaseModel):
    """An event that was refused, and why."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    metric: str
    amount: str
    at: InstantText = Field(validation_alias="at_ts")
    idempotency_key: str
    reason: str
    refused_at: InstantText = Field(validation_alias="created_at")


class VoidUsage(BaseModel):
    """Why the event is taken out."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "metered twice"}]})

    reason: Reason


class AmendUsage(BaseModel):
    """What is right instead; what is not given stays as it was recorded."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "a wrong unit", "amount": "1.25"}]}
    )

    reason: Reason
    amount: Amount | None = None
    at: InstantIn | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _something(self) -> AmendUsage:
        if self.amount is None and self.at is None and self.metadata is None:
            raise ValueError("give an amount, an instant or metadata")
        return self


class Amended(BaseModel):
    """The id of the event that counts instead."""

    replacement_id: str


def _correction(row: UsageCorrection | None) -> CorrectionBody | None:
    return None if row is None else CorrectionBody.model_validate(row)
