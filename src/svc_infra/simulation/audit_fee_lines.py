"""The audit of fixed prices: fees, what is given back of them, and what makes up for a commitment.

A part of the independent recomputation, so it imports nothing of this package but the other parts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import tzinfo
from fractions import Fraction
from itertools import pairwise
from typing import TypeAlias

from svc_infra.simulation.audit_fees import Grid, fee, grid_of, local
from svc_infra.simulation.audit_records import (
    AuditedLines,
    Span,
    StoredInvoice,
    StoredLine,
    StoredPrice,
    StoredSubscription,
    Unsettled,
    share_time,
)

# An invoice, a price's key, a subscription and the time that is charged.
_Due: TypeAlias = tuple[str, str, str | None, Span]


class FeeAudit:
    """The fixed lines of one tenant's issued invoices; what comes of them is told to ``audited``."""

    def __init__(
        self,
        audited: AuditedLines,
        invoices: dict[str, StoredInvoice],
        subscriptions: dict[str, StoredSubscription],
        unsettled: Unsettled,
        zone: tzinfo,
    ) -> None:
        self.audited = audited
        self.invoices = invoices
        self.subscriptions = subscriptions
        self.unsettled = unsettled
        self.zone = zone

    def check(self, lines: list[StoredLine], prices: Iterable[StoredPrice]) -> None:
        """Recompute the lines of fixed prices among ``lines``; ``prices`` say which there should be."""
        priced = [line for line in lines if line.snapshot is not None and line.metric is None]
        true_ups = [line for line in priced if (line.snapshot or {}).get("is_commitment")]
        fixed = [line for line in priced if line.kind == "fixed"]
        for line in fixed:
            self._check_fixed(line)
        self._check_once(fixed)
        self._check_unused(fixed, [line for line in priced if line.kind == "unused"])
        self._check_true_ups(true_ups, self._check_missing(fixed, prices), lines)

    def _check_fixed(self, line: StoredLine) -> None:
        held = self.subscriptions.get(line.subscription_id or "")
        grid = self._grid(line, held)
        if grid is None or (line.subscription_id is not None and held is None):
            self.audited.unknown += 1
            return
        self.audited.recomputed += 1
        assert line.snapshot is not None
        expected = fee(line.snapshot, line.quantity, line.span, grid, self.zone)
        if line.amount != expected:
            self._differs(line, expected)
        if line.quantity != (1 if held is None else held.seats):
            self.audited.find(
                "quantity", line.invoice_id, f"line {line.position} is for {float(line.quantity):g}"
            )
        if held is not None and line.span[0] < held.charged_from:
            text = f"line {line.position} charges before its subscription begins to cost something"
            self.audited.find("amount", line.invoice_id, text)

    def _check_once(self, fixed: Iterable[StoredLine]) -> None:
        """No time of a subscription is charged twice for one price."""
        charged: dict[tuple[str | None, str, str, str], list[StoredLine]] = defaultdict(list)
        for line in fixed:
            charged[line.subscription_id, line.price_key, line.currency, line.cycle].append(line)
        for lines in charged.values():
            lines.sort(key=lambda line: line.span)
            for before, line in pairwise(lines):
                if share_time(before.span, line.span):
                    text = f"line {line.position} charges time that another line of this price charges"
                    self.audited.find("amount", line.invoice_id, text)

    def _check_unused(self, fixed: list[StoredLine], unused: list[StoredLine]) -> None:
        """What was paid in advance beyond a subscription's end is given back, once and as it was charged."""
        due: dict[tuple[str, str, Span], StoredLine] = {}
        for line in fixed:
            held = self.subscriptions.get(line.subscription_id or "")
            if held is not None and held.ended_at is not None and line.span[1] > held.ended_at:
                span = (max(line.span[0], held.ended_at), line.span[1])
                due[held.id, line.price_key, span] = line
        for line in unused:
            charge = due.pop((line.subscription_id or "", line.price_key, line.span), None)
            grid = self._grid(line, self.subscriptions.get(line.subscription_id or ""))
            self.audited.recomputed += 1
            expected = 0
            if charge is not None and charge.snapshot is not None and grid is not None:
                expected = -fee(charge.snapshot, charge.quantity, line.span, grid, self.zone)
            if line.amount != expected:
                self._differs(line, expected)
        for (subscription_id, key, _), charge in due.items():
            held = self.subscriptions[subscription_id]
            assert held.ended_at is not None
            if any(each.span[0] <= held.ended_at < each.span[1] for each in self._periods(held, charge)):
                text = f"what price {key!r} charged beyond the end of its subscription was not given back"
                self.audited.find("unbilled", charge.invoice_id, text)

    def _periods(self, held: StoredSubscription, line: StoredLine) -> Iterator[StoredInvoice]:
        """The issued invoices of a subscription's own periods, in the currency of a line."""
        for each in self.invoices.values():
            if (
                each.kind == "period"
                and each.is_issued
                and (each.cycle, each.currency) == (held.cycle, line.currency)
            ):
                yield each

    def _check_missing(
        self, fixed: Iterable[StoredLine], prices: Iterable[StoredPrice]
    ) -> dict[_Due, StoredPrice]:
        """Each monthly price of a period that costs something has its line; returns the commitments due."""
        there = {(line.invoice_id, line.price_key, line.subscription_id, line.span) for line in fixed}
        promised = {}
        for invoice in self.invoices.values():
            if invoice.kind != "period" or not invoice.is_issued:
                continue
            for price in prices:
                if price.currency != invoice.currency or price.created_at > invoice.created_at:
                    continue
                if price.snapshot.get("is_advance") or price.snapshot.get("recurring_interval") == "year":
                    continue
                for subscription_id, span in self._parts(invoice, price):
                    key = (invoice.id, str(price.snapshot["key"]), subscription_id, span)
                    if price.snapshot.get("is_commitment"):
                        promised[key] = price
                    elif key not in there:
                        text = f"price {key[1]!r} of its period is on no line"
                        self.audited.find("unbilled", invoice.id, text)
        return promised

    def _parts(self, invoice: StoredInvoice, price: StoredPrice) -> Iterator[tuple[str | None, Span]]:
        """The subscriptions that owe a fixed price in a period, each with the time that it is for."""
        start, end = invoice.span
        if price.plan_id is None:
            if invoice.cycle == "calendar" and price.is_in_force(local(start, self.zone)):
                yield None, invoice.span
            return
        for held in self.subscriptions.values():
            span = (max(start, held.charged_from), end if held.ended_at is None else min(end, held.ended_at))
            if (
                (held.plan_id, held.cycle) == (price.plan_id, invoice.cycle)
                and held.created_at <= invoice.created_at
                and span[0] < span[1]
                and price.is_in_force(local(span[0], self.zone))
            ):
                yield held.id, span

    def _check_true_ups(
        self,
        true_ups: Iterable[StoredLine],
        promised: dict[_Due, StoredPrice],
        all_lines: list[StoredLine],
    ) -> None:
        """A commitment's lines are what its subscription's other lines of the period leave open."""
        found: dict[_Due, list[StoredLine]] = {key: [] for key in promised}
        for line in true_ups:
            key = (
                line.adjusts_invoice_id or line.invoice_id,
                line.price_key,
                line.subscription_id,
                line.span,
            )
            found.setdefault(key, []).append(line)
        for (invoice_id, price_key, subscription_id, span), lines in found.items():
            owner = self.invoices[invoice_id]
            key = (invoice_id, price_key, subscription_id, span)
            snapshot = lines[0].snapshot if lines else promised[key].snapshot
            assert snapshot is not None
            held = self.subscriptions.get(subscription_id or "")
            grid = grid_of(owner.cycle, snapshot, held, self.zone)
            others = [
                line
                for line in all_lines
                if (line.adjusts_invoice_id or line.invoice_id, line.subscription_id)
                == (invoice_id, subscription_id)
                and line.snapshot is not None
                and not line.snapshot.get("is_commitment")
                and share_time(line.span, span)
            ]
            due = fee(snapshot, Fraction(1), span, grid, self.zone)
            expected = max(0, due - sum(line.amount for line in others))
            amount = sum(line.amount for line in lines)
            self.audited.recomputed += len(lines)
            if amount == expected:
                continue
            if any(line.metric is not None and self.unsettled.has(line.metric, span) for line in others):
                self.audited.waiting += 1
                continue
            text = f"commitment {price_key!r}: {amount} makes up for what is missing, which is {expected}"
            self.audited.find("amount", invoice_id, text)

    def _grid(self, line: StoredLine, held: StoredSubscription | None) -> Grid | None:
        try:
            return grid_of(line.cycle, line.snapshot or {}, held, self.zone)
        except ValueError:
            return None

    def _differs(self, line: StoredLine, expected: int) -> None:
        text = f"line {line.position} ({line.kind}) is {line.amount}, its terms come to {expected}"
        self.audited.find("amount", line.invoice_id, text)
