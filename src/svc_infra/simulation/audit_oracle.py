"""The audit's own rules beside lines: totals, numbers, periods, credit notes, and what is missing.

A part of the independent recomputation: it imports nothing of this package but the other parts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import tzinfo
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from svc_infra.simulation.audit_fees import local
from svc_infra.simulation.audit_records import (
    Finding,
    Span,
    StoredInvoice,
    StoredLine,
    StoredNote,
    StoredPrice,
    Unsettled,
)
from svc_infra.simulation.audit_usage import Asked, Events, Meter, Read, day_values, quantities


class Priced(NamedTuple):
    """A version of a price for a metric, and a span of time in which it may apply to the tenant."""

    cycle: str
    span: Span
    price: StoredPrice


def check_invoices(
    invoices: Iterable[StoredInvoice], lines: Iterable[StoredLine], notes: Iterable[StoredNote]
) -> list[Finding]:
    """Totals are the sums of their lines, numbers have no gaps, and periods do not overlap."""
    findings = []
    sums: dict[str, int] = defaultdict(int)
    for line in lines:
        sums[line.invoice_id] += line.amount
    numbers: dict[str, list[int]] = defaultdict(list)
    for note in notes:
        numbers[note.series].append(note.number)
    periods: dict[tuple[str, str], list[tuple[Span, str]]] = defaultdict(list)
    for invoice in invoices:
        if invoice.total != sums[invoice.id]:
            text = f"the total is {invoice.total}, its lines add up to {sums[invoice.id]}"
            findings.append(Finding("total", invoice.id, text))
        if invoice.number is not None:
            numbers[invoice.series].append(invoice.number)
        if invoice.status != "void" and invoice.kind == "period":
            periods[invoice.cycle, invoice.currency].append((invoice.span, invoice.id))
    for series, given in numbers.items():
        if sorted(given) != list(range(1, len(given) + 1)):
            missing = sorted(set(range(1, max(given) + 1)) - set(given))[:5]
            text = f"series {series!r} has {len(given)} numbers up to {max(given)}; missing: {missing}"
            findings.append(Finding("number", None, text))
    for spans in periods.values():
        spans.sort()
        for (first, _), (second, invoice_id) in pairwise(spans):
            if second[0] < first[1]:
                findings.append(Finding("overlap", invoice_id, "its period overlaps another invoice's"))
    return findings


def check_notes(
    invoices: dict[str, StoredInvoice], lines: Iterable[StoredLine], notes: Iterable[StoredNote]
) -> list[Finding]:
    """Credit notes are the sums of their lines, and take back no more than was billed."""
    findings = []
    credited: dict[str, int] = defaultdict(int)
    of_line: dict[str, int] = defaultdict(int)
    for note in notes:
        credited[note.invoice_id] += note.total
        for line_id, amount in note.lines.items():
            of_line[line_id] += amount
        owner, parts = invoices.get(note.invoice_id), sum(note.lines.values())
        if note.total != parts or owner is None or owner.currency != note.currency:
            text = f"credit note {note.series}-{note.number} over {note.total} has lines of {parts}"
            findings.append(Finding("credit note", note.invoice_id, text))
    for line in lines:
        if (taken := of_line.pop(line.id, 0)) > max(0, line.amount):
            text = f"{taken} is credited of line {line.position}, which bills {line.amount}"
            findings.append(Finding("credit note", line.invoice_id, text))
    if of_line:
        findings.append(Finding("credit note", None, f"{len(of_line)} lines are credited that do not exist"))
    for invoice in invoices.values():
        if invoice.credited != credited[invoice.id]:
            text = f"{invoice.credited} counts as credited, its credit notes come to {credited[invoice.id]}"
            findings.append(Finding("credit note", invoice.id, text))
    return findings


def check_totals(
    days: Iterable[tuple[str, Span, Fraction]],
    events: dict[str, Events],
    read: Read,
    unsettled: Unsettled,
    meters: dict[str, Meter],
) -> list[Finding]:
    """Stored day totals, (metric, day, total), are what their metric's meter makes of their events."""
    stored: dict[str, dict[Span, Fraction]] = defaultdict(dict)
    for metric, span, total in days:
        if not unsettled.has(metric, span):
            stored[metric][span] = total
    findings = []
    for metric, totals in stored.items():
        spans = sorted(totals)
        meter = meters.get(metric)
        if meter is not None and meter["meter"] != "sum":
            found = dict(day_values(meter, spans, read(metric, spans[0][0], spans[-1][1])))
        else:
            added = events.get(metric)
            found = {span: Fraction(0) if added is None else added.total(span) for span in spans}
        for span in spans:
            if totals[span] != found[span]:
                text = (
                    f"the total of {metric!r} on the day from {span[0].isoformat()} is "
                    f"{float(totals[span]):g}, its events come to {float(found[span]):g}"
                )
                findings.append(Finding("day total", None, text))
    return findings


def check_coverage(
    invoices: Iterable[StoredInvoice],
    lines: Iterable[StoredLine],
    priced: Iterable[Priced],
    events: dict[str, Events],
    read: Read,
    unsettled: Unsettled,
    zone: tzinfo,
) -> list[Finding]:
    """Usage within an issued invoice's period, of a metric that was priced there, has a line."""
    known = {invoice.id: invoice for invoice in invoices}
    issued = [each for each in known.values() if each.kind == "period" and each.is_issued]
    billed: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for line in lines:
        owner = known.get(line.adjusts_invoice_id or line.invoice_id)
        if owner is not None and line.metric is not None and owner.is_issued:
            billed[owner.currency, line.metric].append(line.span)
    findings = []
    for cycle, span, price in priced:
        metric = price.metric
        if metric is None or metric not in events:
            continue
        for invoice in issued:
            start, end = max(span[0], invoice.span[0]), min(span[1], invoice.span[1])
            if (invoice.cycle, invoice.currency) != (cycle, price.currency) or start >= end:
                continue
            spans = billed[price.currency, metric]
            if (
                not price.is_in_force(local(start, zone))
                or unsettled.has(metric, (start, end))
                or any(first <= start and end <= last for first, last in spans)
                or not events[metric].total((start, end))
            ):
                continue
            wanted = price.snapshot.get("filter", {})
            if wanted:
                asked = Asked(metric, (start, end), [wanted], wanted, ())
                if not quantities({"meter": "sum"}, asked, read)[()]:
                    continue
            text = f"usage of {metric!r} in its period, which was priced, is on no line"
            findings.append(Finding("unbilled", invoice.id, text))
    return findings
