"""Business time: the one place where "now" comes from, so that tests and simulations can hold it.

Leases, deadlines and signatures do not use this clock: they are governed by the database's or the machine's
own time (docs/job_lifecycle.md, "Two clocks").
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Anything that tells the current instant as an aware UTC datetime."""

    def now(self) -> datetime: ...


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class FixedClock:
    """A clock that stands still until it is moved."""

    def __init__(self, at: datetime) -> None:
        self._now = require_utc(at)

    def now(self) -> datetime:
        return self._now

    def set(self, at: datetime) -> None:
        """Move to ``at``, forwards or backwards."""
        self._now = require_utc(at)

    def advance(self, delta: timedelta) -> datetime:
        """Move by ``delta`` and return the new instant."""
        self._now += delta
        return self._now


def require_utc(instant: datetime) -> datetime:
    """Return ``instant`` in UTC; a naive one is refused because it names no instant.

    Raises:
        ValueError: ``instant`` has no offset.
    """
    if instant.tzinfo is UTC:
        return instant
    if instant.tzinfo is None:
        raise ValueError(f"{instant.isoformat()} has no UTC offset; pass an aware datetime")
    return instant.astimezone(UTC)
