"""The log of what ended: one line for each job, and one for all of a batch that completed.

A line holds ids, names, times and the class of an error. Its message and the payload may quote what is
secret; the message is with the job (``last_error``). Nothing is written where the application has configured
no logging.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from logging import INFO, WARNING
from typing import Any

import structlog

from svc_infra.clock import Clock
from svc_infra.jobs.job import Job
from svc_infra.logs import is_written
from svc_infra.tracing import Step, trace_id_of

_BAD_ENDS = frozenset({"retried", "discarded"})

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Run:
    """A run of jobs that has begun, at a business time and at an instant of a clock that measures.

    ``traceparent`` is that of its step, if it belongs to a trace.
    """

    began_at: datetime
    began: float
    traceparent: str | None
    ended: float | None = None

    @classmethod
    def begin(cls, clock: Clock, step: Step) -> Run:
        """Note that it begins now."""
        return cls(clock.now(), time.perf_counter(), step.traceparent)

    def end(self) -> None:
        """Note that it ends now, and that what follows is something else."""
        self.ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long it took, or has taken so far."""
        return (self.ended or time.perf_counter()) - self.began


def log_end(job: Job, ended: str, run: Run | None, *, error: object = None) -> None:
    """Write the line of one job, which ended as the metrics name it; ``run`` is None if it did not start."""
    level = WARNING if ended in _BAD_ENDS else INFO
    if not is_written(level):
        return
    line: dict[str, Any] = {"job_id": job.id, "attempt": job.attempt, "outcome": ended}
    if isinstance(error, BaseException):
        line["error"] = type(error).__name__
    log.log(level, "jobs.ended", name=job.name, queue=job.queue, **line, **_times([job], run))


def log_completed(jobs: Sequence[Job], run: Run) -> None:
    """Write the line of jobs that completed together."""
    if len(jobs) == 1:
        log_end(jobs[0], "completed", run)
    elif jobs and is_written(INFO):
        first = jobs[0]
        counts = {"jobs": len(jobs), "outcome": "completed"}
        log.info("jobs.ended", name=first.name, queue=first.queue, **counts, **_times(jobs, run))


def _times(jobs: Sequence[Job], run: Run | None) -> dict[str, Any]:
    """How long it ran; how long the one that was due first had waited; and the trace, if there is one."""
    if run is None:
        return {}
    waited = run.began_at - min(job.run_at for job in jobs)
    times: dict[str, Any] = {
        "ms": round(run.seconds * 1000, 1),
        "wait_ms": round(max(0.0, waited.total_seconds()) * 1000, 1),
    }
    trace_id = trace_id_of(run.traceparent)
    return times if trace_id is None else {**times, "trace_id": trace_id}
