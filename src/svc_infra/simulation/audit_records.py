"""What the audit compares, as it is stored: invoices, lines, subscriptions, prices and credit notes.

A part of the independent recomputation, so it imports nothing of this package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from fractions import Fraction
from typing import Any, NamedTuple

Span = tuple[datetime, datetime]


class StoredLine(NamedTuple):
    """A line as it is stored; ``invoice_id`` is empty while it waits for one.

    ``quantity`` is exact, ``amount`` is money in minor units.
    """

    id: str
    invoice_id: str
    cycle: str
    currency: str
    position: int
    kind: str
    metric: str | None
    subscription_id: str | None
    span: Span
    quantity: Fraction
    amount: int
    snapshot: dict[str, Any] | None
    details: dict[str, Any]
    adjusts_invoice_id: str | None

    @property
    def price_key(self) -> str:
        """The key of the price that it was rated with."""
        return str((self.snapshot or {}).get("key", ""))


class StoredInvoice(NamedTuple):
    """An invoice as it is stored."""

    id: str
    kind: str
    cycle: str
    currency: str
    span: Span
    status: str
    series: str
    number: int | None
    total: int
    credited: int
    created_at: datetime

    @property
    def is_issued(self) -> bool:
        """Whether it counts: neither a draft nor void."""
        return self.status not in ("draft", "void")


class StoredSubscription(NamedTuple):
    """A tenant on a plan; ``seats`` multiply fixed prices, which cost nothing in a trial."""

    id: str
    plan_id: str
    cycle: str
    effective_at: datetime
    ended_at: datetime | None
    seats: int
    trial_ends_at: datetime | None
    anchor_on: date | None
    created_at: datetime

    @property
    def charged_from(self) -> datetime:
        """When its fixed prices begin to cost something."""
        return self.effective_at if self.trial_ends_at is None else max(self.effective_at, self.trial_ends_at)


class StoredPrice(NamedTuple):
    """A version of a price: for what begins on a local day from ``effective_on`` and before ``ended_on``."""

    plan_id: str | None
    currency: str
    metric: str | None
    snapshot: dict[str, Any]
    effective_on: date
    ended_on: date | None
    created_at: datetime

    def is_in_force(self, day: date) -> bool:
        """Whether what begins on this day is billed with it."""
        return self.effective_on <= day and (self.ended_on is None or day < self.ended_on)


class StoredNote(NamedTuple):
    """A credit note; ``lines`` are the positive amounts by the id of the invoice line."""

    invoice_id: str
    series: str
    number: int
    currency: str
    total: int
    lines: dict[str, int]


class Finding(NamedTuple):
    """Something that is not as it must be: what kind of thing, of which invoice, and in words."""

    kind: str
    invoice_id: str | None
    text: str


@dataclass
class AuditedLines:
    """What came of lines: how many were recomputed, are not known here, or wait for usage to be settled."""

    findings: list[Finding] = field(default_factory=list)
    recomputed: int = 0
    unknown: int = 0
    waiting: int = 0

    def find(self, kind: str, invoice_id: str | None, text: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(kind, invoice_id or None, text))


class Unsettled:
    """Where, by metric, usage was recorded that is still to be counted or settled."""

    def __init__(self) -> None:
        self._spans: dict[str, list[Span]] = {}

    def add(self, metric: str, span: Span) -> None:
        """Note a span of time."""
        self._spans.setdefault(metric, []).append(span)

    def has(self, metric: str, span: Span) -> bool:
        """Whether any of a span is unsettled."""
        return any(share_time(each, span) for each in self._spans.get(metric, ()))


def share_time(first: Span, second: Span) -> bool:
    """Whether two half-open spans overlap."""
    return first[0] < second[1] and second[0] < first[1]
