"""Running one due job, whatever handles it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

from svc_infra.clock import Clock
from svc_infra.exceptions import LeaseLost, UnknownJob
from svc_infra.jobs.attempt import transition
from svc_infra.jobs.executor import Executor, plain_ending
from svc_infra.jobs.handlers import DEFAULT_TIMEOUT_SECONDS, HandlerKind, Handlers, Registration
from svc_infra.jobs.heartbeat import Heartbeat
from svc_infra.jobs.job import Job
from svc_infra.jobs.outcome import Outcome
from svc_infra.jobs.queue import DEFAULT_LEASE_SECONDS, Finish, JobQueue
from svc_infra.jobs.retry import RetryPolicy
from svc_infra.jobs.run_log import Run, log_end
from svc_infra.jobs.spans import running
from svc_infra.jobs.stats import ended_as

_UNKNOWN_JOBS_SKIPPED = 100


async def process_one(
    queue: JobQueue,
    handler: Callable[[Job], Awaitable[Outcome | None]],
    *,
    clock: Clock | None = None,
    lease_seconds: float = DEFAULT_LEASE_SECONDS,
) -> bool:
    """Run one due job with ``handler`` and say whether there was one; True also when its attempt failed.

    ``handler`` is a ``Handlers``, of which only the names it knows are claimed, or any async callable that
    takes the job. A job for which the callable raises ``UnknownJob`` is passed over and given back with its
    attempt. When nothing is due, expired leases are rescued first.
    """
    clock = clock or queue.clock
    names = handler.names if isinstance(handler, Handlers) else None
    versions = handler.versions if isinstance(handler, Handlers) else None
    passed_over: list[Job] = []
    async with Heartbeat(queue, lease_seconds=lease_seconds) as heartbeat:
        try:
            while len(passed_over) < _UNKNOWN_JOBS_SKIPPED:
                claimed = await _claim_one(queue, names, versions, clock, lease_seconds)
                heartbeat.hold(claimed)
                if not claimed:
                    return False
                if await _is_run(queue, handler, claimed[0], clock):
                    return True
                passed_over += claimed
            return False
        finally:
            if passed_over:
                await queue.release(passed_over)


async def _claim_one(
    queue: JobQueue,
    names: frozenset[str] | None,
    versions: dict[str, int] | None,
    clock: Clock,
    lease_seconds: float,
) -> list[Job]:
    now = clock.now()
    claim = partial(queue.claim, 1, names=names, versions=versions, now=now, lease_seconds=lease_seconds)
    claimed = await claim()
    if not claimed and any(await queue.rescue(now=now)):
        claimed = await claim()
    return claimed


async def _is_run(
    queue: JobQueue, handler: Callable[[Job], Awaitable[Outcome | None]], job: Job, clock: Clock
) -> bool:
    """Run the job; False if the handler does not know its name."""
    if isinstance(handler, Handlers):
        await Executor(queue, handler, clock=clock).run([job])
        return True
    registration = Registration(job.name, HandlerKind.PLAIN, handler, RetryPolicy(), DEFAULT_TIMEOUT_SECONDS)
    with running([job]) as step:
        run = Run.begin(clock, step)
        ending = await plain_ending(registration, job, step)
        run.end()
    if isinstance(ending, UnknownJob):
        return False
    if isinstance(ending, LeaseLost):
        return True
    # A handler that finished the job in its own transaction has spent the lease: then this changes nothing.
    end = transition(registration.policy, job, ending, clock.now(), Random())
    await queue.finish([Finish(job, end)])
    log_end(job, ended_as(end.state, ending), run, error=ending)
    return True
