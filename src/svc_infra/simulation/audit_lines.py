"""The audit of lines: every kind of line of an issued invoice held against events, subscriptions and terms.

A part of the independent recomputation: it imports nothing of this package but the other parts, and
calculates with ``Fraction``. It is slow and simple on purpose, so that a fault would have to be made twice,
in two ways, to stay hidden. What it does not know it counts, and passes over nothing silently.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime, tzinfo
from fractions import Fraction

from svc_infra.simulation.audit_fee_lines import FeeAudit
from svc_infra.simulation.audit_fees import grid_of, share
from svc_infra.simulation.audit_records import (
    AuditedLines,
    StoredInvoice,
    StoredLine,
    StoredPrice,
    StoredSubscription,
    Unsettled,
    share_time,
)
from svc_infra.simulation.audit_usage import Asked, Events, Group, Meter, Read, billed, quantities
from svc_infra.simulation.oracle_prices import event_line_amount, line_amount

_PLAIN: Meter = {"meter": "sum"}
_UsageKey = tuple[str, str, str | None, datetime, str]
_Billed = tuple[Fraction, int]


class LineAudit:
    """The lines of one tenant's issued invoices; what comes of them is told to ``audited``."""

    def __init__(
        self,
        invoices: dict[str, StoredInvoice],
        subscriptions: dict[str, StoredSubscription],
        events: dict[str, Events],
        read: Read,
        unsettled: Unsettled,
        meters: dict[str, Meter],
        zone: tzinfo,
    ) -> None:
        self.audited = AuditedLines()
        self.invoices = invoices
        self.events = events
        self.read = read
        self.unsettled = unsettled
        self.meters = meters
        self.zone = zone
        self._fees = FeeAudit(self.audited, invoices, subscriptions, unsettled, zone)

    def check(self, lines: Iterable[StoredLine], prices: Iterable[StoredPrice]) -> AuditedLines:
        """Recompute every line that counts; ``prices`` say which fixed ones there should be."""
        usage: dict[_UsageKey, list[StoredLine]] = defaultdict(list)
        standing, carried, offsets = [], [], []
        for line in filter(self._counts, lines):
            owner = self.invoices.get(line.adjusts_invoice_id or line.invoice_id)
            if line.kind == "credit":
                carried.append(line)
            elif owner is None or line.snapshot is None:
                self.audited.unknown += 1
            elif owner.status == "void":
                offsets.append(line)
            else:
                standing.append(line)
                if line.metric is not None:
                    key = (owner.id, line.price_key, line.subscription_id, line.span[0], line.metric)
                    usage[key].append(line)
        for (invoice_id, *_), together in usage.items():
            self._check_usage(self.invoices[invoice_id], together, usage)
        self._fees.check(standing, prices)
        self._check_cancelling("credit", carried, lambda line: (line.cycle, line.currency))
        self._check_cancelling(
            "adjustment", offsets, lambda line: (line.adjusts_invoice_id, line.price_key, line.span[0])
        )
        return self.audited

    def _counts(self, line: StoredLine) -> bool:
        """A line that waits, or stands on an issued invoice."""
        return not line.invoice_id or (
            line.invoice_id in self.invoices and self.invoices[line.invoice_id].is_issued
        )

    def _check_usage(
        self, owner: StoredInvoice, together: list[StoredLine], usage: dict[_UsageKey, list[StoredLine]]
    ) -> None:
        """A price's lines over a span, and the adjustments since, are what the events come to now."""
        own = next((line for line in together if line.adjusts_invoice_id is None), together[0])
        assert own.metric is not None
        stored: dict[Group, list[_Billed]] = defaultdict(list)
        for line in together:
            stored[tuple(line.details.get("group", ()))].append((line.quantity, line.amount))
        found = {group: _sum(parts) for group, parts in stored.items()}
        try:
            expected = self._expected_usage(owner, own, together, usage)
        except ValueError:
            self.audited.unknown += len(together)
            return
        self.audited.recomputed += len(together)
        differing = [
            group
            for group in {*found, *expected}
            if found.get(group, (Fraction(0), 0)) not in expected.get(group, [(Fraction(0), 0)])
        ]
        if differing and self.unsettled.has(own.metric, own.span):
            self.audited.waiting += 1
            return
        for group in sorted(differing, key=repr):
            quantity, amount = found.get(group, (Fraction(0), 0))
            due, cost = expected.get(group, [(Fraction(0), 0)])[0]
            name = f"price {own.price_key!r}" + (f" of {'/'.join(map(str, group))}" if group else "")
            text = f"{name}: billed {float(quantity):g} for {amount}, the events come to {float(due):g} for "
            self.audited.find("quantity" if quantity != due else "amount", owner.id, f"{text}{cost}")

    def _expected_usage(
        self,
        owner: StoredInvoice,
        own: StoredLine,
        together: list[StoredLine],
        usage: dict[_UsageKey, list[StoredLine]],
    ) -> dict[Group, list[_Billed]]:
        """Quantity and amount by group. Two are possible where the conversion of units was changed since."""
        assert own.snapshot is not None
        assert own.metric is not None
        meter = self.meters.get(own.metric, _PLAIN)
        asked = self._asked(owner, own, usage)
        if meter["meter"] == "sum" and not any(asked.filters) and not asked.group_by:
            events = self.events.get(own.metric)
            measured: dict[Group, Fraction] = {(): Fraction(0) if events is None else events.total(own.span)}
        else:
            measured = quantities(meter, asked, self.read)
        minimum = share(own.span, grid_of(owner.cycle, {}, None, self.zone), self.zone)
        units = [line.details["units"] for line in together if "units" in line.details]
        expected = {}
        for group, value in measured.items():
            amounts = dict.fromkeys([billed(each, value) for each in (*units, meter)])
            if not any("measured" in line.details for line in together):
                amounts[value] = None
            expected[group] = [(each, self._cost(own, each, minimum)) for each in amounts]
        return expected

    def _asked(
        self, owner: StoredInvoice, own: StoredLine, usage: dict[_UsageKey, list[StoredLine]]
    ) -> Asked:
        """What of the metric the price bills; prices without usage have no line, and take nothing away."""
        filters = [
            dict((lines[0].snapshot or {}).get("filter", {}))
            for (invoice_id, _, _, _, metric), lines in usage.items()
            if (invoice_id, metric) == (owner.id, own.metric) and share_time(lines[0].span, own.span)
        ]
        assert own.snapshot is not None
        assert own.metric is not None
        wanted, group_by = own.snapshot.get("filter", {}), own.snapshot.get("group_by", ())
        return Asked(own.metric, own.span, filters, wanted, group_by)

    def _cost(self, own: StoredLine, quantity: Fraction, minimum: Fraction) -> int:
        assert own.snapshot is not None
        assert own.metric is not None
        terms = {key: value for key, value in own.snapshot.items() if key not in ("filter", "group_by")}
        if "per_event" in terms:
            amounts = (event.amount for event in self.read(own.metric, *own.span))
            return event_line_amount(terms, amounts, minimum_ratio=minimum)
        return line_amount(terms, quantity, minimum_ratio=minimum)

    def _check_cancelling(
        self, kind: str, lines: Iterable[StoredLine], key: Callable[[StoredLine], object]
    ) -> None:
        """What one invoice carries to another, or takes back of a void one, comes to nothing in all."""
        sums: dict[object, int] = defaultdict(int)
        last: dict[object, StoredLine] = {}
        for line in lines:
            self.audited.recomputed += 1
            sums[key(line)] += line.amount
            last[key(line)] = line
        for each, total in sums.items():
            if total:
                text = f"its {kind} lines and those that mirror them differ by {total}"
                self.audited.find(kind, last[each].invoice_id or None, text)


def _sum(parts: Iterable[_Billed]) -> _Billed:
    return sum((quantity for quantity, _ in parts), Fraction(0)), sum(amount for _, amount in parts)
