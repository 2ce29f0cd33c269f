"""How an attempt ends, and what becomes of its job: the only place that branches on it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import TypeAlias

from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.retry import RetryPolicy

MAX_ERROR_BYTES = 4_096
# A handler may ask for any delay; this keeps run_at inside what a timestamp column holds.
_MAX_DELAY = timedelta(days=36_525)


@dataclass(frozen=True, slots=True)
class Complete:
    """The work is done."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed: try again after ``delay``, or after the policy's backoff; uses up the attempt."""

    delay: timedelta | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Snooze:
    """Not yet: run again after ``delay``; the attempt is given back."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class Discard:
    """The work can never succeed: end as discarded (a dead letter) whatever attempts are left."""

    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """The work is no longer wanted: end as cancelled."""

    reason: str


Outcome: TypeAlias = Complete | Retry | Snooze | Discard | Cancel
"""What a handler may return."""

Ending: TypeAlias = Outcome | BaseException | None
"""How an attempt ended: what the handler returned (None is ``Complete``) or what it raised."""


@dataclass(frozen=True, slots=True)
class Transition:
    """The job's next state.

    ``run_at`` is set only for ``available``, ``finished_at`` only for a terminal state. ``attempt`` is the
    count to store. An ``error`` of None leaves the job's last error as it was.
    """

    state: JobState
    run_at: datetime | None
    attempt: int
    error: str | None
    finished_at: datetime | None


def decide(
    job: Job, ending: Ending | object, *, now: datetime, policy: RetryPolicy, rng: Random
) -> Transition:
    """Decide what becomes of ``job`` after its current attempt ended with ``ending``.

    ``now`` is business time; ``policy`` gives the backoff, ``job.max_attempts`` the limit. It never raises:
    a handler that returned something that is no outcome has failed its attempt.
    """
    match ending:
        case None | Complete():
            return _finished(job, JobState.COMPLETED, None, now)
        case Snooze(delay):
            return Transition(JobState.AVAILABLE, _after(now, delay), max(job.attempt - 1, 0), None, None)
        case Discard(reason):
            return _finished(job, JobState.DISCARDED, reason, now)
        case Cancel(reason):
            return _finished(job, JobState.CANCELLED, reason, now)
        case Retry(delay, error):
            return _failed(job, error or "the handler asked for a retry", delay, now, policy, rng)
        case BaseException():
            return _failed(job, render_error(ending), None, now, policy, rng)
        case _:
            wrong = f"the handler returned a {type(ending).__name__}; return None or an outcome"
            return _failed(job, wrong, None, now, policy, rng)


def render_error(error: BaseException) -> str:
    """Return ``"Type: message"`` without a traceback; safe to store, and for a ``str`` that raises."""
    # The standard library's renderer survives an exception whose __str__ raises; its module prefix is noise.
    text = "".join(traceback.format_exception_only(error)).strip()
    return _storable(text.removeprefix(f"{type(error).__module__}."))


def _failed(
    job: Job, error: str, delay: timedelta | None, now: datetime, policy: RetryPolicy, rng: Random
) -> Transition:
    if job.attempt >= job.max_attempts:
        return _finished(job, JobState.DISCARDED, error, now)
    if delay is None:
        delay = policy.delay(job.attempt, rng)
    return Transition(JobState.AVAILABLE, _after(now, delay), job.attempt, _storable(error), None)


def _finished(job: Job, state: JobState, error: str | None, now: datetime) -> Transition:
    return Transition(state, None, job.attempt, None if error is None else _storable(error), now)


def _after(now: datetime, delay: timedelta) -> datetime:
    return now + min(max(delay, timedelta(0)), _MAX_DELAY)


def _storable(text: str) -> str:
    encoded = text.replace("\x00", "\ufffd").encode("utf-8", "replace")
    return encoded[:MAX_ERROR_BYTES].decode("utf-8", "ignore")
