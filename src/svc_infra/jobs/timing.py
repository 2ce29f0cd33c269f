"""When a schedule fires: by a cron expression, at an interval, or once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from svc_infra.canonical import canonical_instant
from svc_infra.clock import require_utc
from svc_infra.exceptions import InvalidSchedule

NEVER = datetime.max.replace(tzinfo=UTC)
"""The next fire of what fires no more."""


class Timing(Protocol):
    """The fires of a schedule; ``CronSchedule`` is one."""

    @property
    def expression(self) -> str: ...

    @property
    def timezone(self) -> str: ...

    def next_fire(self, after: datetime) -> datetime:
        """Return the first fire strictly after the aware instant ``after``, in UTC, or ``NEVER``."""
        ...

    def fires_between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the fires in (``after``, ``until``] in order, in UTC."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """A fire every ``seconds`` of elapsed time, counted from ``anchor_at``, whatever the clocks do.

    Raises:
        InvalidSchedule: the interval is shorter than a second, or the anchor has no UTC offset.
    """

    seconds: int
    anchor_at: datetime = datetime(1970, 1, 1, tzinfo=UTC)

    def __post_init__(self) -> None:
        if self.seconds < 1:
            raise InvalidSchedule(f"an interval of {self.seconds} s is too short; the least is 1 s")
        if self.anchor_at.utcoffset() is None:
            raise InvalidSchedule("anchor_at has no UTC offset; pass an aware datetime")

    @property
    def expression(self) -> str:
        return f"every {self.seconds} s"

    @property
    def timezone(self) -> str:
        return "UTC"

    def next_fire(self, after: datetime) -> datetime:
        """Return the first fire strictly after ``after``."""
        interval = timedelta(seconds=self.seconds)
        anchor_at = require_utc(self.anchor_at)
        return anchor_at + ((require_utc(after) - anchor_at) // interval + 1) * interval

    def fires_between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the fires in (``after``, ``until``] in order."""
        fire_at = self.next_fire(after)
        while fire_at <= until:
            yield fire_at
            fire_at += timedelta(seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class Once:
    """One fire at the instant ``at``; a schedule that is new after it never fires.

    Raises:
        InvalidSchedule: the instant has no UTC offset.
    """

    at: datetime

    def __post_init__(self) -> None:
        if self.at.utcoffset() is None:
            raise InvalidSchedule("the instant of a single fire has no UTC offset; pass an aware datetime")

    @property
    def expression(self) -> str:
        return f"once at {canonical_instant(self.at)}"

    @property
    def timezone(self) -> str:
        return "UTC"

    def next_fire(self, after: datetime) -> datetime:
        """Return the fire if it is still to come after ``after``."""
        at = require_utc(self.at)
        return at if at > after else NEVER

    def fires_between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the fire if it is in (``after``, ``until``]."""
        if after < self.at <= until:
            yield require_utc(self.at)
