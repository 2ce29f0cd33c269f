"""The audit's own arithmetic: what an invoice must say, worked out from raw events and stored terms.

A part of the independent recomputation: it imports nothing of this package but the oracle's own prices, and
calculates with ``Fraction``. It is slow and simple on purpose, so that a fault would have to be made twice,
in two ways, to stay hidden. What it does not know it says, and passes over nothing silently.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from svc_infra.simulation.oracle_prices import line_amount

Span = tuple[datetime, datetime]


class StoredLine(NamedTuple):
    """A line as it is stored. ``quantity`` is exact, ``amount`` is money in minor units."""

    invoice_id: str
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


class Priced(NamedTuple):
    """A version of a price for a metric, and a span of time in which it may apply to the tenant.

    It applies to what begins on a local day from ``effective_on`` and before ``ended_on``.
    """

    cycle: str
    currency: str
    metric: str
    span: Span
    effective_on: date
    ended_on: date | None


class Finding(NamedTuple):
    """Something that is not as it must be: what kind of thing, of which invoice, and in words."""

    kind: str
    invoice_id: str | None
    text: str


class Events:
    """The events of one tenant and metric, in time order, added up by local day and over any days."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._days: list[date] = []
        self._sums = [Fraction(0)]

    def add(self, at: datetime, amount: Decimal) -> None:
        """Add an event, not earlier than the one before."""
        day = at.astimezone(self._zone).date()
        if not self._days or self._days[-1] != day:
            self._days.append(day)
            self._sums.append(self._sums[-1])
        self._sums[-1] += Fraction(amount)

    def total(self, span: Span) -> Fraction:
        """The sum over a half-open span that is bounded by local midnights."""
        start, end = (bisect_left(self._days, bound.astimezone(self._zone).date()) for bound in span)
        return self._sums[end] - self._sums[start]


class Unsettled:
    """Where, by metric, usage was recorded that is still to be counted or settled."""

    def __init__(self) -> None:
        self._spans: dict[str, list[Span]] = {}

    def add(self, metric: str, span: Span) -> None:
        """Note a span of time."""
        self._spans.setdefault(metric, []).append(span)

    def has(self, metric: str, span: Span) -> bool:
        """Whether any of a span is unsettled."""
        return any(start < span[1] and span[0] < end for start, end in self._spans.get(metric, ()))


class Checked(NamedTuple):
    """What came of the lines of a tenant."""

    findings: list[Finding]
    recomputed: int
    unknown: int
    waiting: int


def check_lines(
    invoices: Iterable[StoredInvoice],
    lines: Iterable[StoredLine],
    events: dict[str, Events],
    unsettled: Unsettled,
    opaque_metrics: set[str],
    zone: tzinfo,
) -> Checked:
    """Hold every line of a tenant's issued invoices against its events and terms.

    What was billed for a price over a span is its line and the adjustments of it since; it must be what the
    events come to now. A difference where usage is
    ``unsettled`` waits and is none. ``opaque_metrics`` are not sums, and not recomputed here.
    """
    known = {invoice.id: invoice for invoice in invoices}
    groups: dict[tuple[Any, ...], list[StoredLine]] = {}
    findings: list[Finding] = []
    recomputed = unknown = waiting = 0
    for line in lines:
        owner = known.get(line.adjusts_invoice_id or line.invoice_id)
        if owner is None or not _is_issued(owner) or line.snapshot is None:
            continue
        if line.metric is None:
            found = _check_fixed(line, _share(line, owner, zone, "ratio"))
            if found is None:
                unknown += 1
            else:
                recomputed += 1
                findings += found
            continue
        key = (owner.id, line.snapshot.get("key"), line.subscription_id, line.span[0], line.metric)
        groups.setdefault(key, []).append(line)
    for (invoice_id, price_key, *_, metric), together in groups.items():
        own = next((line for line in together if line.adjusts_invoice_id is None), together[0])
        share = _share(own, known[invoice_id], zone, "minimum_ratio")
        expected = _expected_usage(own, events.get(metric), share)
        if expected is None or metric in opaque_metrics:
            unknown += len(together)
            continue
        recomputed += len(together)
        quantity = sum((line.quantity for line in together), Fraction(0))
        amount = sum(line.amount for line in together)
        if (quantity, amount) == expected:
            continue
        if unsettled.has(metric, own.span):
            waiting += 1
            continue
        kind = "quantity" if quantity != expected[0] else "amount"
        findings.append(
            Finding(
                kind,
                invoice_id,
                f"price {price_key!r}: billed {float(quantity):g} for {amount}, the events come to "
                f"{float(expected[0]):g} for {expected[1]}",
            )
        )
    return Checked(findings, recomputed, unknown, waiting)


def _expected_usage(
    line: StoredLine, events: Events | None, minimum_ratio: Fraction
) -> tuple[Fraction, int] | None:
    """Quantity and amount of a usage line, or None for one that is not recomputed here."""
    assert line.snapshot is not None
    if line.details.get("group"):
        return None
    quantity = Fraction(0) if events is None else events.total(line.span)
    try:
        amount = line_amount(line.snapshot, quantity, minimum_ratio=minimum_ratio)
    except ValueError:
        return None
    return quantity, amount


def _share(line: StoredLine, owner: StoredInvoice, zone: tzinfo, name: str) -> Fraction:
    """For how many months the line is: as it says, or else by the local days of each calendar month."""
    if name in line.details:
        return Fraction(line.details[name])
    snapshot = line.snapshot or {}
    if owner.cycle != "calendar" or snapshot.get("recurring_interval") == "year":
        return Fraction(1)
    day, last = (bound.astimezone(zone).date() for bound in line.span)
    share = Fraction(0)
    while day < last:
        month = day.replace(day=1)
        following = (month + timedelta(days=31)).replace(day=1)
        until = min(following, last)
        share += Fraction((until - day).days, (following - month).days)
        day = until
    return share


def _check_fixed(line: StoredLine, ratio: Fraction) -> list[Finding] | None:
    """A line without usage; None for one that is not recomputed here."""
    details, snapshot = line.details, line.snapshot
    assert snapshot is not None
    if line.kind == "true_up" and {"commitment", "billed"} <= details.keys():
        expected, tolerance = Fraction(details["commitment"] - details["billed"]), Fraction(0)
    elif line.kind in ("fixed", "unused") and "unit_amount" in snapshot:
        expected = Fraction(Decimal(snapshot["unit_amount"])) * line.quantity * ratio
        expected = -expected if line.kind == "unused" else expected
        # The parts of a month add up to it exactly, so one of them may be rounded the other way.
        tolerance = Fraction(1, 2) if ratio == 1 else Fraction(1)
    else:
        return None
    if abs(line.amount - expected) <= tolerance:
        return []
    return [
        Finding(
            "amount",
            line.invoice_id,
            f"line {line.position} ({line.kind}) is {line.amount}, its terms come to {float(expected):g}",
        )
    ]


def check_invoices(invoices: Iterable[StoredInvoice], lines: Iterable[StoredLine]) -> list[Finding]:
    """Totals are the sums of their lines, numbers have no gaps, and periods do not overlap."""
    findings = []
    sums: dict[str, int] = {}
    for line in lines:
        sums[line.invoice_id] = sums.get(line.invoice_id, 0) + line.amount
    numbers: dict[str, list[int]] = {}
    periods: dict[tuple[str, str, str], list[tuple[Span, str]]] = {}
    for invoice in invoices:
        total = sums.get(invoice.id, 0)
        if invoice.total != total:
            text = f"the total is {invoice.total}, its lines add up to {total}"
            findings.append(Finding("total", invoice.id, text))
        if invoice.number is not None:
            numbers.setdefault(invoice.series, []).append(invoice.number)
        if invoice.status != "void":
            key = (invoice.kind, invoice.cycle, invoice.currency)
            periods.setdefault(key, []).append((invoice.span, invoice.id))
    for series, given in numbers.items():
        if sorted(given) != list(range(1, len(given) + 1)):
            missing = sorted(set(range(1, max(given) + 1)) - set(given))[:5]
            text = f"series {series!r} has {len(given)} numbers up to {max(given)}; missing: {missing}"
            findings.append(Finding("number", None, text))
    for (kind, _, _), spans in periods.items():
        if kind != "period":
            continue
        spans.sort()
        for (first, _), (second, invoice_id) in pairwise(spans):
            if second[0] < first[1]:
                findings.append(Finding("overlap", invoice_id, "its period overlaps another invoice's"))
    return findings


def check_totals(
    days: Iterable[tuple[str, Span, Fraction]],
    events: dict[str, Events],
    unsettled: Unsettled,
    opaque_metrics: set[str],
) -> list[Finding]:
    """Stored day totals, (metric, day, total), are the sums of their events."""
    findings = []
    for metric, span, total in days:
        if unsettled.has(metric, span) or metric in opaque_metrics:
            continue
        expected = events[metric].total(span) if metric in events else Fraction(0)
        if total != expected:
            text = (
                f"the total of {metric!r} on the day from {span[0].isoformat()} is {float(total):g}, its "
                f"events come to {float(expected):g}"
            )
            findings.append(Finding("day total", None, text))
    return findings


def check_coverage(
    invoices: Iterable[StoredInvoice],
    lines: Iterable[StoredLine],
    priced: Iterable[Priced],
    events: dict[str, Events],
    unsettled: Unsettled,
    zone: tzinfo,
) -> list[Finding]:
    """Usage within an issued invoice's period, of a metric that was priced there, has a line."""
    known = {invoice.id: invoice for invoice in invoices}
    issued = [each for each in known.values() if each.kind == "period" and _is_issued(each)]
    billed: dict[tuple[str, str], list[Span]] = {}
    for line in lines:
        owner = known.get(line.adjusts_invoice_id or line.invoice_id)
        if owner is not None and line.metric is not None and _is_issued(owner):
            billed.setdefault((owner.currency, line.metric), []).append(line.span)
    findings = []
    for price in priced:
        if price.metric not in events:
            continue
        for invoice in issued:
            start, end = max(price.span[0], invoice.span[0]), min(price.span[1], invoice.span[1])
            if (invoice.cycle, invoice.currency) != (price.cycle, price.currency) or start >= end:
                continue
            day = start.astimezone(zone).date()
            is_in_force = price.effective_on <= day and (price.ended_on is None or day < price.ended_on)
            if (
                not is_in_force
                or unsettled.has(price.metric, (start, end))
                or not events[price.metric].total((start, end))
            ):
                continue
            spans = billed.get((price.currency, price.metric), [])
            if not any(first <= start and end <= last for first, last in spans):
                text = f"usage of {price.metric!r} in its period, which was priced, is on no line"
                findings.append(Finding("unbilled", invoice.id, text))
    return findings


def _is_issued(invoice: StoredInvoice) -> bool:
    return invoice.status not in ("draft", "void")
