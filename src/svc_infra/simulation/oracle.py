"""The independent recomputation: what every invoice must say, worked out from the files alone.

This module shares nothing with the product: it imports nothing of this package, reads the usage and the
catalog with the standard library, and calculates with ``Fraction``. It is slow and simple on purpose, so that
a fault would have to be made twice, in two ways, to stay hidden. It trusts that the files are valid, because
the importer and the catalog parser have refused them otherwise.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tomllib
from collections.abc import Iterator
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple


class ExpectedLine(NamedTuple):
    """One line that an invoice must have; ``quantity`` is exact, ``amount_minor`` is money."""

    price_key: str
    quantity: Fraction
    amount_minor: int


class ExpectedInvoice(NamedTuple):
    """The one invoice that a tenant must have for a UTC month; its lines are sorted."""

    month: str  # YYYY-MM
    lines: tuple[ExpectedLine, ...]
    total_minor: int


class Oracle:
    """What billing a usage file under the default plan of a catalog must come to.

    A tenant is subscribed from the first day of the month of its first event, and has one invoice for every
    UTC month from then to the month of the last event in the file. A line that repeats another (same tenant,
    metric and key, equal payload) counts once; ValueError for one whose payload differs.
    """

    def __init__(self, usage_path: Path, catalog_path: Path) -> None:
        self._prices = _prices_of_default_plan(tomllib.loads(catalog_path.read_text(encoding="utf-8")))
        self._days: dict[str, dict[tuple[str, date], Fraction]] = {}
        self.usage_events = 0
        self.duplicates = 0
        self._read(usage_path)
        self._last_month = max((month for days in self._days.values() for month in _months(days)), default=0)

    @property
    def tenants(self) -> list[str]:
        """Every tenant of the file, in the order of its first line."""
        return list(self._days)

    @property
    def aggregates(self) -> int:
        """How many (tenant, metric, UTC day) have events."""
        return sum(len(days) for days in self._days.values())

    @property
    def unpriced_metrics(self) -> list[str]:
        """The metrics that were used and have no price under the default plan."""
        priced = {price["metric"] for price in self._prices if "metric" in price}
        used = {metric for days in self._days.values() for metric, _ in days}
        return sorted(used - priced)

    def expected_invoices(self, tenant_id: str) -> list[ExpectedInvoice]:
        """The tenant's invoices in the order of their months; none for a tenant without events."""
        days = self._days.get(tenant_id, {})
        if not days:
            return []
        quantities: dict[tuple[str, int], Fraction] = {}
        for (metric, day), quantity in days.items():
            in_month = (metric, _month_number(day))
            quantities[in_month] = quantities.get(in_month, Fraction(0)) + quantity
        months = range(min(_months(days)), self._last_month + 1)
        return [self._invoice(month, quantities) for month in months]

    def all_invoices(self) -> Iterator[tuple[str, list[ExpectedInvoice]]]:
        """Each tenant with its invoices, worked out one tenant at a time."""
        for tenant_id in self._days:
            yield tenant_id, self.expected_invoices(tenant_id)

    def _invoice(self, month: int, quantities: dict[tuple[str, int], Fraction]) -> ExpectedInvoice:
        lines = []
        for price in self._prices:
            metric = price.get("metric")
            quantity = Fraction(1) if metric is None else quantities.get((metric, month), Fraction(0))
            if quantity != 0:
                lines.append(ExpectedLine(price["key"], quantity, _rounded(_cost(price, quantity))))
        total = sum(line.amount_minor for line in lines)
        return ExpectedInvoice(f"{month // 12:04d}-{month % 12 + 1:02d}", tuple(sorted(lines)), total)

    def _read(self, usage_path: Path) -> None:
        payloads: dict[tuple[str, str, str], tuple[Fraction, datetime, str]] = {}
        for row in _rows(usage_path):
            tenant_id, metric = str(row["tenant_id"]), str(row["metric"])
            at = datetime.fromisoformat(row["at"]).astimezone(UTC)
            payload = (Fraction(str(row["amount"])), at, _canonical_metadata(row.get("metadata")))
            identity = (tenant_id, metric, str(row["idempotency_key"]))
            known = payloads.setdefault(identity, payload)
            if known is not payload:
                if known != payload:
                    raise ValueError(f"{usage_path}: the key of {identity} is used for two different events")
                self.duplicates += 1
                continue
            self.usage_events += 1
            days = self._days.setdefault(tenant_id, {})
            days[metric, at.date()] = days.get((metric, at.date()), Fraction(0)) + payload[0]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a CSV or JSON lines file, told apart by the first character; gzip by its first bytes."""
    with path.open("rb") as raw:
        is_zipped = raw.peek(2)[:2] == b"\x1f\x8b"
        binary = gzip.GzipFile(fileobj=raw) if is_zipped else raw
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
        first = text.readline()
        while first and not first.strip():
            first = text.readline()
        if first.startswith("{"):
            for line in _chained(first, text):
                if line.strip():
                    yield json.loads(line)
        else:
            yield from csv.DictReader(_chained(first, text))


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _canonical_metadata(metadata: Any) -> str:
    """Metadata as one text, however its JSON was written; a CSV column holds it as text."""
    value = json.loads(metadata) if isinstance(metadata, str) and metadata else metadata
    return json.dumps(value, sort_keys=True) if value else ""


def _prices_of_default_plan(catalog: dict[str, Any]) -> list[dict[str, Any]]:
    """The prices that bill a tenant of the default plan: that plan's own and those without a plan."""
    default = next((plan["key"] for plan in catalog.get("plans", ()) if plan.get("default")), None)
    prices = (price for price in catalog.get("prices", ()) if price.get("plan", default) == default)
    return [_with_fractions(price) for price in prices]


def _with_fractions(table: dict[str, Any]) -> dict[str, Any]:
    """A price or a tier with its decimal strings read once, exactly."""
    amounts = {key: Fraction(table[key]) for key in ("up_to", "unit_amount", "flat_amount") if key in table}
    tiers = {"tiers": [_with_fractions(tier) for tier in table["tiers"]]} if "tiers" in table else {}
    return table | amounts | tiers


def _cost(price: dict[str, Any], quantity: Fraction) -> Fraction:
    """What a quantity costs in minor units, exactly."""
    if price.get("model") != "graduated":
        unit_amount: Fraction = price["unit_amount"]
        return unit_amount * quantity
    cost, lower = Fraction(0), Fraction(0)
    for tier in price["tiers"]:
        if quantity <= lower:
            break
        upper = tier.get("up_to", quantity)
        cost += tier.get("flat_amount", 0)
        cost += tier["unit_amount"] * (min(quantity, upper) - lower)
        lower = upper
    return cost


def _rounded(value: Fraction) -> int:
    """To the nearest whole minor unit, a half away from zero."""
    whole = int(abs(value) + Fraction(1, 2))
    return whole if value >= 0 else -whole


def _month_number(day: date) -> int:
    return day.year * 12 + day.month - 1


def _months(days: dict[tuple[str, date], Fraction]) -> Iterator[int]:
    return (_month_number(day) for _, day in days)
