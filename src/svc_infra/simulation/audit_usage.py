"""The audit's own metering: what raw events come to, by day, by filter and group, and by every kind of meter.

A part of the independent recomputation, so it imports nothing of this package but the other parts.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from math import ceil, floor
from typing import Any, NamedTuple, TypeAlias

from svc_infra.simulation.audit_fees import local
from svc_infra.simulation.audit_records import Span

Group: TypeAlias = tuple[str | None, ...]
Filter: TypeAlias = dict[str, list[str]]
Meter: TypeAlias = dict[str, Any]
"""A meter's definition as it is stored."""

_MICROSECOND = timedelta(microseconds=1)
_PLACES = 12


class Event(NamedTuple):
    """A counted event; ``amount`` is a quantity."""

    at: datetime
    amount: Decimal
    metadata_json: str | None


Read: TypeAlias = Callable[[str, datetime | None, datetime], Iterable[Event]]
"""The events of a metric from an instant (None: from the first) up to another, in time order."""


class Events:
    """The events of one tenant and metric, added up by local day and over any days."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._by_day: dict[date, Fraction] = {}
        self._days: list[date] = []
        self._sums = [Fraction(0)]

    def add(self, at: datetime, amount: Decimal) -> None:
        """Add an event."""
        day = local(at, self._zone)
        self._by_day[day] = self._by_day.get(day, Fraction(0)) + Fraction(amount)

    def total(self, span: Span) -> Fraction:
        """The sum over a half-open span that is bounded by local midnights."""
        if len(self._days) < len(self._by_day):
            self._days = sorted(self._by_day)
            self._sums = [Fraction(0), *accumulate(self._by_day[day] for day in self._days)]
        start, end = (bisect_left(self._days, local(bound, self._zone)) for bound in span)
        return self._sums[end] - self._sums[start]


class Asked(NamedTuple):
    """What a price bills of a metric; ``filters`` share it out, and ``wanted`` is the price's own."""

    metric: str
    span: Span
    filters: Sequence[Filter]
    wanted: Filter
    group_by: Sequence[str]


def quantities(meter: Meter, asked: Asked, read: Read) -> dict[Group, Fraction]:
    """What a meter makes of the events that are asked for, by group; without groups one, 0 without events."""
    kind = meter["meter"]
    tallies: dict[Group, _Tally] = {} if asked.group_by else {(): _Tally(kind, asked.span)}
    keys = {key for each in asked.filters for key in each}
    start = None if kind == "weighted_sum" else asked.span[0]
    for event in read(asked.metric, start, asked.span[1]):
        metadata = _parsed(event.metadata_json)
        values = {key: text_of(metadata.get(key)) for key in (*keys, *asked.group_by)}
        if any(asked.filters) and _filter_of(values, asked.filters) != asked.wanted:
            continue
        group = tuple(values[key] for key in asked.group_by)
        if group not in tallies:
            tallies[group] = _Tally(kind, asked.span)
        tallies[group].add(event, text_of(metadata.get(meter.get("unique_key", ""))))
    return {group: tally.value() for group, tally in tallies.items()}


def day_values(
    meter: Meter, days: Iterable[Span], events: Iterable[Event]
) -> Iterator[tuple[Span, Fraction]]:
    """What a meter makes of each of these days, of a weighted sum its net change; all in time order."""
    waiting = iter(events)
    event = next(waiting, None)
    for day in days:
        tally = _Tally("sum" if meter["meter"] == "weighted_sum" else meter["meter"], day)
        while event is not None and event.at < day[1]:
            if event.at >= day[0]:
                tally.add(event, text_of(_parsed(event.metadata_json).get(meter.get("unique_key", ""))))
            event = next(waiting, None)
        yield day, tally.value()


def billed(meter: Meter, measured: Fraction) -> Fraction:
    """The quantity that is rated for what was measured: converted, then rounded."""
    quantity = measured
    if conversion := meter.get("conversion"):
        factor = Fraction(Decimal(conversion["factor"]))
        quantity = quantity * factor if conversion["operation"] == "multiply" else quantity / factor
        places, mode = conversion["places"], conversion["rounding"]
        if mode is None:
            places, mode = _PLACES, "half_away_from_zero"
        quantity = _to_places(quantity, places, mode)
    if rounding := meter.get("rounding"):
        quantity = _to_places(quantity, rounding["places"], rounding["mode"])
    return quantity


def text_of(value: Any) -> str | None:
    """A metadata value as text: text as it is, anything else as JSON writes it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        text = format(value, "f") if value else "0"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return json.dumps(value, ensure_ascii=False, default=float)


class _Tally:
    """The events of a span, added up as a kind of meter does it, in time order."""

    def __init__(self, kind: str, span: Span) -> None:
        self._kind = kind
        self._span = span
        self.total = Fraction(0)
        self._weighed = Fraction(0)
        self._count = 0
        self._largest: Decimal | None = None
        self._last = Decimal(0)
        self._seen: set[str] = set()

    def add(self, event: Event, unique: str | None) -> None:
        self.total += Fraction(event.amount)
        self._count += 1
        self._last = event.amount
        self._largest = event.amount if self._largest is None else max(self._largest, event.amount)
        if self._kind == "unique_count" and unique is not None:
            self._seen.add(unique)
        if self._kind == "weighted_sum":
            start, end = self._span
            lasts = (end - max(event.at, start)) // _MICROSECOND
            self._weighed += Fraction(event.amount) * Fraction(lasts, (end - start) // _MICROSECOND)

    def value(self) -> Fraction:
        match self._kind:
            case "sum":
                return self.total
            case "count":
                return Fraction(self._count)
            case "maximum":
                return Fraction(self._largest or 0)
            case "latest":
                return Fraction(self._last)
            case "unique_count":
                return Fraction(len(self._seen))
            case "weighted_sum":
                return _to_places(self._weighed, _PLACES, "half_away_from_zero")
            case other:
                raise ValueError(f"a meter of the kind {other!r}")


def _filter_of(values: dict[str, str | None], filters: Iterable[Filter]) -> Filter | None:
    """The most specific filter that these values match, of the rules that prices compete by."""
    matching = [each for each in filters if all(values[key] in allowed for key, allowed in each.items())]
    return min(matching, key=_rank, default=None)


def _rank(each: Filter) -> tuple[int, int, str]:
    pairs = tuple((key, tuple(each[key])) for key in sorted(each))
    return -len(each), sum(map(len, each.values())), repr(pairs)


def _parsed(metadata_json: str | None) -> dict[str, Any]:
    parsed: dict[str, Any] = {} if metadata_json is None else json.loads(metadata_json, parse_float=Decimal)
    return parsed


def _to_places(value: Fraction, places: int, mode: str) -> Fraction:
    scale = Fraction(10) ** places
    return Fraction(_whole(value * scale, mode)) / scale


def _whole(value: Fraction, mode: str) -> int:
    if mode in ("ceil", "floor"):
        return ceil(value) if mode == "ceil" else floor(value)
    size, rest = divmod(abs(value), 1)
    half = Fraction(1, 2)
    match mode:
        case "half_away_from_zero":
            goes_up = rest >= half
        case "half_down":
            goes_up = rest > half
        case "half_even":
            goes_up = rest > half or (rest == half and size % 2 == 1)
        case "up":
            goes_up = rest > 0
        case "down":
            goes_up = False
        case other:
            raise ValueError(f"a rounding named {other!r}")
    return (size + goes_up) * (1 if value >= 0 else -1)
