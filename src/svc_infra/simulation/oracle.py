"""The independent recomputation: what every invoice must say, worked out from the files alone.

It shares nothing with the product: beside its own prices it imports nothing of this package. It reads
the usage and the catalog with the standard library, and calculates with ``Fraction``. It is slow and simple
on purpose, so that a fault would have to be made twice, in two ways, to stay hidden. It trusts that the files
are valid, because the importer and the catalog parser have refused them otherwise.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tomllib
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from svc_infra.simulation.oracle_prices import (
    amount_minor,
    bills_zero_usage,
    check_catalog,
    prices_of_default_plan,
)

__all__ = ["ExpectedInvoice", "ExpectedLine", "Oracle", "check_catalog"]

# Of a CSV field; the default would refuse metadata that the importer takes.
_MAX_FIELD_LENGTH = 1024 * 1024


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
    metric and key, equal payload) counts once.

    Raises:
        ValueError: the catalog has something that is not known here (``check_catalog``), or a line repeats
            the key of another with a different payload.
    """

    def __init__(self, usage_path: Path, catalog_path: Path) -> None:
        check_catalog(catalog_path)
        self._prices = prices_of_default_plan(tomllib.loads(catalog_path.read_text(encoding="utf-8")))
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
            if quantity != 0 or bills_zero_usage(price):
                lines.append(ExpectedLine(price["key"], quantity, amount_minor(price, quantity)))
        total = sum(line.amount_minor for line in lines)
        return ExpectedInvoice(f"{month // 12:04d}-{month % 12 + 1:02d}", tuple(sorted(lines)), total)

    def _read(self, usage_path: Path) -> None:
        payloads: dict[tuple[str, str, str], tuple[Fraction, datetime, str]] = {}
        for row in _rows(usage_path):
            tenant_id, metric = row["tenant_id"], row["metric"]
            at = datetime.fromisoformat(row["at"].upper()).astimezone(UTC)  # a z and a t count like Z and T
            payload = (Fraction(Decimal(row["amount"])), at, _metadata_text(row.get("metadata")))
            identity = (tenant_id, metric, row["idempotency_key"])
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
        # Lines end at a line feed only: a carriage return alone may stand in a field or between JSON tokens.
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="\n")
        first = next((line for line in text if not line.isspace()), "")
        lines = chain([first] if first else [], text)
        yield from _json_rows(lines) if first.lstrip().startswith("{") else _csv_rows(lines)


def _json_rows(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.isspace():
            yield _parsed(line)


def _csv_rows(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD_LENGTH))
    reader = csv.reader(lines)
    columns = next(reader, [])
    for fields in reader:
        if "".join(fields).strip():
            yield dict(zip(columns, fields, strict=True))


def _parsed(text: str) -> Any:
    """JSON whose whole numbers are integers, however they are written: 1, 1.0 and 1e0 are one value."""
    return json.loads(text, parse_float=_number)


def _number(text: str) -> int | float:
    # By the shortest text of the float: 1e23 is ten to the 23rd and not the nearest binary fraction.
    exact = Fraction(repr(float(text)))
    return exact.numerator if exact.denominator == 1 else float(text)


def _metadata_text(metadata: Any) -> str:
    """Metadata as one text, however its JSON was written; a CSV column holds it as text."""
    value = _parsed(metadata) if isinstance(metadata, str) and metadata else metadata
    return json.dumps(value, sort_keys=True) if value else ""  # an empty object says as much as none


def _month_number(day: date) -> int:
    return day.year * 12 + day.month - 1


def _months(days: dict[tuple[str, date], Fraction]) -> Iterator[int]:
    return (_month_number(day) for _, day in days)
