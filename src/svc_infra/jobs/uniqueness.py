"""Unique jobs: which jobs count as the same one, and for how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from svc_infra.canonical import compact_json
from svc_infra.exceptions import InvalidPayload
from svc_infra.jobs.job import FINISHED, JobState

UNTIL_STARTED = frozenset({JobState.AVAILABLE})
UNTIL_FINISHED = frozenset({JobState.AVAILABLE, JobState.RUNNING})
FOR_EVER = frozenset(JobState)

STATE_BITS = {
    JobState.AVAILABLE: 1,
    JobState.RUNNING: 2,
    JobState.COMPLETED: 4,
    JobState.DISCARDED: 8,
    JobState.CANCELLED: 16,
}
"""The bit of each state in ``jobs.unique_states``; the unique index of the table is written with them."""


@dataclass(frozen=True, slots=True)
class Unique:
    """A job is not enqueued while one of the same name, tenant and key is in one of ``states``.

    Without ``key`` the payload is the key, or those ``fields`` of it. ``period_seconds`` makes it one job in
    each such stretch of business time, counted from 1970. With ``is_replacing`` a duplicate gives its
    payload, priority and run_at to the job that is there, if that has not started yet.

    Raises:
        InvalidPayload: ``states`` leaves out available, or running where it has a terminal state (a job that
            comes back into its states could then meet another one there), or the period is not positive.
    """

    key: str | None = None
    fields: tuple[str, ...] | None = None
    states: frozenset[JobState] = UNTIL_FINISHED
    period_seconds: float | None = None
    is_replacing: bool = False

    def __post_init__(self) -> None:
        if JobState.AVAILABLE not in self.states:
            raise InvalidPayload("the states of a unique job begin with available; add it")
        if self.states & FINISHED and JobState.RUNNING not in self.states:
            raise InvalidPayload("the states of a unique job have a terminal one but not running; add it")
        if self.period_seconds is not None and not 0 < self.period_seconds < math.inf:
            raise InvalidPayload(f"period_seconds of a unique job is {self.period_seconds}; it is positive")
        if self.key is not None and self.fields is not None:
            raise InvalidPayload("a unique job has a key or fields of its payload as one; give one of them")

    @property
    def state_bits(self) -> int:
        """The states as a sum of ``STATE_BITS``."""
        return sum(STATE_BITS[state] for state in self.states)

    def digest(self, name: str, tenant_id: str | None, payload: Mapping[str, Any], *, now: datetime) -> str:
        """Return the key of a job as 64 hexadecimal digits; ``payload`` is plain JSON data."""
        chosen: Any = self.key
        if chosen is None:
            fields = sorted(payload) if self.fields is None else sorted(self.fields)
            chosen = [[field, payload.get(field)] for field in fields]
        period = None if self.period_seconds is None else int(now.timestamp() // self.period_seconds)
        text = compact_json([name, tenant_id, self.key is None, _sorted(chosen), period])
        return sha256(text.encode()).hexdigest()


def _sorted(value: Any) -> Any:
    """Return JSON data with its keys in order, so that equal payloads have equal text."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
