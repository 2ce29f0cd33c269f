"""Invoices and credit notes as they are answered: money is minor units, a quantity decimal text."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from svc_infra.api.fastapi.billing.fields import InstantText, Minor, QuantityText
from svc_infra.billing.explanation import ExplainedLine
from svc_infra.billing.models import CreditNote
from svc_infra.billing.preview import InvoicePreview, PreviewLine

InvoiceStatus = Literal["draft", "finalized", "paid", "void", "uncollectible"]


class InvoiceBody(BaseModel):
    """An invoice. ``total_amount`` is exactly the sum of its lines; a draft has no number yet."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    kind: str
    status: InvoiceStatus
    series: str
    number: int | None
    currency: str
    cycle: str
    period_start: InstantText
    period_end: InstantText
    total_amount: Minor
    credited_amount: Minor
    created_at: InstantText
    finalize_after: InstantText | None
    issued_at: InstantText | None
    due_at: InstantText | None
    closed_at: InstantText | None
    closed_reason: str | None
    provider_invoice_id: str | None


class LineBody(BaseModel):
    """A line of an invoice. ``price`` is what it was rated with, ``details`` what else entered the amount."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    position: int
    kind: str
    metric: str | None
    description: str
    period_start: InstantText
    period_end: InstantText
    quantity: QuantityText
    amount: Minor
    subscription_id: str | None
    adjusts_invoice_id: str | None
    price: dict[str, Any] | None = Field(validation_alias="price_snapshot")
    details: dict[str, Any] | None


class PendingLineBody(BaseModel):
    """A line that waits for the tenant's next invoice: late usage of an earlier one, or a credit."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    kind: str
    metric: str | None
    description: str
    period_start: InstantText
    period_end: InstantText
    quantity: QuantityText
    amount: Minor
    currency: str
    cycle: str
    adjusts_invoice_id: str | None


class TierBody(BaseModel):
    """What one tier of a price charges, exactly, in minor units with their fractions."""

    tier: int
    quantity: QuantityText
    unit_amount: QuantityText
    flat_amount: QuantityText
    amount: QuantityText


class DayBody(BaseModel):
    """The total quantity of a metric on one of the tenant's days."""

    day_start: InstantText
    total: QuantityText


class ExplainedLineBody(BaseModel):
    """A line with its tiers, the days that it stands for, and how many events were recorded in them."""

    line: LineBody
    tiers: list[TierBody]
    days: list[DayBody]
    events: int
    archived_events: int
    first_event_at: InstantText | None
    last_event_at: InstantText | None

    @classmethod
    def of(cls, found: ExplainedLine) -> ExplainedLineBody:
        """Make it of an explained line."""
        return cls(
            line=LineBody.model_validate(found.line),
            tiers=[
                TierBody(
                    tier=tier.position + 1,
                    quantity=tier.quantity,
                    unit_amount=tier.unit_amount,
                    flat_amount=tier.flat_amount,
                    amount=tier.amount,
                )
                for tier in found.tiers
            ],
            days=[DayBody(day_start=day_start, total=total) for day_start, total in found.days],
            events=found.events,
            archived_events=found.archived_events,
            first_event_at=found.first_event_at,
            last_event_at=found.last_event_at,
        )


class ExplanationBody(BaseModel):
    """An invoice with its lines explained."""

    invoice: InvoiceBody
    lines: list[ExplainedLineBody]


class PreviewLineBody(BaseModel):
    """A line as it would be."""

    kind: str
    metric: str | None
    description: str
    period_start: InstantText
    period_end: InstantText
    quantity: QuantityText
    amount: Minor

    @classmethod
    def of(cls, line: PreviewLine) -> PreviewLineBody:
        """Make it of a line of a preview."""
        return cls(
            kind=line.kind,
            metric=line.metric,
            description=line.description,
            period_start=line.period.start,
            period_end=line.period.end,
            quantity=line.quantity,
            amount=line.amount,
        )


class PreviewBody(BaseModel):
    """An invoice as it would be made for the whole period, from the usage recorded so far."""

    currency: str
    period_start: InstantText
    period_end: InstantText
    total_amount: Minor
    lines: list[PreviewLineBody]

    @classmethod
    def of(cls, found: InvoicePreview) -> PreviewBody:
        """Make it of a preview."""
        return cls(
            currency=found.currency,
            period_start=found.period.start,
            period_end=found.period.end,
            total_amount=found.total_amount,
            lines=[PreviewLineBody.of(line) for line in found.lines],
        )


class CreditNoteBody(BaseModel):
    """A credit note. ``total_amount`` is what it takes back, a positive amount."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    invoice_id: str
    series: str
    number: int
    currency: str
    total_amount: Minor
    reason: str
    actor: str
    issued_at: InstantText


class CreditedLineBody(BaseModel):
    """What of one line of the invoice, by its position, is taken back."""

    position: int
    amount: Minor


class CreditNoteWithLines(CreditNoteBody):
    """A credit note with what it takes back of each line."""

    lines: list[CreditedLineBody]

    @classmethod
    def of(cls, note: CreditNote, lines: list[tuple[int, int]]) -> CreditNoteWithLines:
        """Make it of a stored note and (position, amount) of its lines."""
        credited = [CreditedLineBody(position=position, amount=amount) for position, amount in lines]
        return cls(**CreditNoteBody.model_validate(note).__dict__, lines=credited)
