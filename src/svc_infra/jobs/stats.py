"""What a worker has done so far, counted."""

from __future__ import annotations

from dataclasses import dataclass, field

from svc_infra.jobs.job import JobState
from svc_infra.jobs.metrics import JOBS_ENDED
from svc_infra.jobs.outcome import Outcome, Snooze


def ended_as(state: JobState, outcome: Outcome | object) -> str:
    """Return how an attempt ended, as counters, metrics and log lines name it."""
    if state is not JobState.AVAILABLE:
        return state.value
    return "snoozed" if isinstance(outcome, Snooze) else "retried"


@dataclass
class Stats:
    """Counters of ended attempts. ``lost`` counts claims whose lease was gone: they changed nothing."""

    completed: int = 0
    retried: int = 0
    snoozed: int = 0
    discarded: int = 0
    cancelled: int = 0
    rescued: int = 0
    lost: int = 0
    by_name: dict[str, int] = field(default_factory=dict)

    @property
    def attempts(self) -> int:
        """How many attempts ended with a transition that was written."""
        return self.completed + self.retried + self.snoozed + self.discarded + self.cancelled

    def count(self, name: str, state: JobState, *, outcome: Outcome | object = None, jobs: int = 1) -> str:
        """Count ``jobs`` of this name that went to ``state``, here and in the metrics; return as what."""
        ended = ended_as(state, outcome)
        setattr(self, ended, getattr(self, ended) + jobs)
        if state is JobState.COMPLETED:
            self.by_name[name] = self.by_name.get(name, 0) + jobs
        JOBS_ENDED.labels(name, ended).inc(jobs)
        return ended

    def count_lost(self, name: str, jobs: int) -> None:
        """Count ``jobs`` whose lease was gone when they ended: nothing of them was written."""
        self.lost += jobs
        JOBS_ENDED.labels(name, "lost").inc(jobs)
