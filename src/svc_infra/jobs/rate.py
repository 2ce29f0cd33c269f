"""How many jobs of a kind may start in a stretch of time, decided without I/O.

What started is remembered in slices of a hundredth of the stretch, each as if all of it had started at the
slice's end. So no stretch of time, wherever it begins, ever has more starts than allowed; a start is allowed
again at most a hundredth of the stretch late; and however many are allowed, a hundred numbers remember them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from svc_infra.exceptions import InvalidSettings
from svc_infra.jobs.limit import shared_by

_SLICES = 100
_MOST_SECONDS = 366 * 86_400.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Starts: TypeAlias = Sequence[Sequence[int]]
"""What started: [end of the slice in microseconds since 1970, how many], by time."""


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``starts`` jobs of a kind start in any ``per_seconds``, or of each key of ``field``.

    ``field`` names what of the payload is the key. With ``shared_key`` it is the jobs of all kinds that share
    it. The seconds are business time. An attempt counts from its claim, whatever becomes of it.

    Raises:
        InvalidSettings: a number is not positive, or ``per_seconds`` is more than a year.
    """

    starts: int
    per_seconds: float
    field: str | None = None
    shared_key: str | None = None

    def __post_init__(self) -> None:
        if self.starts < 1:
            raise InvalidSettings(f"a rate of {self.starts} jobs lets none start; the least is 1")
        if not 0.001 <= self.per_seconds <= _MOST_SECONDS:
            raise InvalidSettings(f"a rate per {self.per_seconds} s; it is from 0.001 s to a year")

    def key(self, name: str, payload: Mapping[str, Any]) -> str:
        """Return what the jobs that share this rate have in common."""
        return shared_by(name, payload, field=self.field, shared_key=self.shared_key)


def starts_left(started: Starts, starts: int, per_seconds: float, *, now: datetime) -> int:
    """Return how many of ``starts`` may start at ``now``."""
    since = _micros(now) - _stretch(per_seconds)
    return max(0, starts - sum(count for ends, count in started if ends > since))


def with_starts(
    started: Starts, count: int, per_seconds: float, *, now: datetime, kept_seconds: float
) -> list[list[int]]:
    """Return what started with ``count`` more at ``now``, without what is older than ``kept_seconds``."""
    at = _micros(now)
    width = max(1, _stretch(per_seconds) // _SLICES)
    ends = -(-at // width) * width
    counts = {each: n for each, n in started if each > at - _stretch(kept_seconds)}
    if count:
        counts[ends] = counts.get(ends, 0) + count
    return [[each, counts[each]] for each in sorted(counts)]


def next_start_at(started: Starts, starts: int, per_seconds: float, *, now: datetime) -> datetime:
    """Return when the next one may start: ``now``, or when the first of a full stretch is past."""
    since = _micros(now) - _stretch(per_seconds)
    in_stretch = [(ends, count) for ends, count in started if ends > since]
    total = sum(count for _, count in in_stretch)
    at = now
    for ends, count in in_stretch:
        if total < starts:
            break
        total -= count
        at = _EPOCH + timedelta(microseconds=ends + _stretch(per_seconds))
    return at


def _micros(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _stretch(per_seconds: float) -> int:
    return math.ceil(per_seconds * 1_000_000)
