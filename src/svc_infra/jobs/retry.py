"""How long a failed job waits before its next attempt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from random import Random

from svc_infra.exceptions import InvalidSettings
from svc_infra.jobs.job import DEFAULT_MAX_ATTEMPTS


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with a cap and upward jitter.

    After attempt n the delay is ``min(base_seconds * factor ** (n - 1), cap_seconds)``, lengthened by a
    random share of up to ``jitter`` of itself. Jitter never shortens a delay, so the cap's greatest value is
    ``cap_seconds * (1 + jitter)``. With the defaults: 2 s, 4 s, 8 s … 34 min, then one hour each, so that
    20 attempts reach over about ten hours.

    Raises:
        InvalidSettings: a value is out of range.
    """

    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    base_seconds: float = 2
    factor: float = 2
    cap_seconds: float = 3600
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise InvalidSettings(f"max_attempts is {self.max_attempts}; the least is 1")
        if not (0 < self.base_seconds <= self.cap_seconds <= 366 * 86_400):
            raise InvalidSettings("a retry policy needs 0 < base_seconds <= cap_seconds <= one year")
        if not (1 <= self.factor <= 1_000 and 0 <= self.jitter <= 1):
            raise InvalidSettings("a retry policy needs a factor from 1 to 1000 and a jitter from 0 to 1")

    def delay(self, attempt: int, rng: Random) -> timedelta:
        """Return the wait after attempt number ``attempt`` (from 1) has failed."""
        return timedelta(seconds=self._backoff_seconds(attempt) * (1 + self.jitter * rng.random()))

    def _backoff_seconds(self, attempt: int) -> float:
        try:
            return min(self.base_seconds * self.factor ** max(attempt - 1, 0), self.cap_seconds)
        except OverflowError:
            return self.cap_seconds
