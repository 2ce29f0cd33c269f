"""Running claimed jobs: the handler boundary, where whatever a handler raises becomes a transition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from random import Random
from typing import TypeVar

import structlog

from svc_infra.clock import Clock
from svc_infra.db.transient import is_transient
from svc_infra.exceptions import LeaseLost, NotInTransaction, UnknownJob
from svc_infra.jobs.attempt import Attempted, Boundary, attempt, attempts_allowed, transition
from svc_infra.jobs.completions import Completions
from svc_infra.jobs.handlers import (
    DEFAULT_TIMEOUT_SECONDS,
    HandlerKind,
    Handlers,
    Registration,
    SessionFactory,
)
from svc_infra.jobs.heartbeat import Heartbeat
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.metrics import JOB_SECONDS, JOB_WAIT_SECONDS
from svc_infra.jobs.outcome import Complete, Discard, Ending, Outcome
from svc_infra.jobs.queue import DEFAULT_LEASE_SECONDS, Finish, JobQueue
from svc_infra.jobs.retry import RetryPolicy
from svc_infra.jobs.spans import running
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.jobs.stats import Stats
from svc_infra.tracing import Step

log = structlog.get_logger(__name__)
T = TypeVar("T")

REPEAT_DELAYS_SECONDS = (0.05, 0.2, 0.8, 2.0, 4.0)
_UNKNOWN_JOBS_SKIPPED = 100


class Executor:
    """Runs claimed jobs of one name to their transitions.

    ``repeat_delays_seconds`` are the waits, each lengthened by jitter, between repeats after a deadlock or a
    lost connection. They use no attempt.
    """

    def __init__(
        self,
        queue: JobQueue,
        handlers: Handlers,
        *,
        session_factory: SessionFactory | None = None,
        clock: Clock | None = None,
        stats: Stats | None = None,
        rng: Random | None = None,
        repeat_delays_seconds: Sequence[float] = REPEAT_DELAYS_SECONDS,
    ) -> None:
        self._queue = queue
        self._handlers = handlers
        self._session_factory = session_factory or handlers.session_factory or session_factory_of(queue)
        self._clock = clock or queue.clock
        self.stats = stats if stats is not None else Stats()
        self._rng = rng or Random()
        self._repeat_delays_seconds = repeat_delays_seconds
        self._completions = Completions(self._write)

    async def run(
        self, jobs: Sequence[Job], *, slot: AbstractAsyncContextManager[object] | None = None
    ) -> None:
        """Run jobs of one name that the queue has leased, each until its transition is written.

        ``slot`` is held while a transaction is open or, for plain handlers, while one runs.

        Raises:
            Exception: the database stayed away; nothing more was written, and the leases will be rescued.
            UnknownJob: no handler has the name.
        """
        registration, slot = self._handlers[jobs[0].name], slot or nullcontext()
        runnable = await self._discard_worn_out(registration, jobs)
        if runnable:
            waited = self._clock.now() - min(job.run_at for job in runnable)
            JOB_WAIT_SECONDS.labels(registration.name).observe(max(0.0, waited.total_seconds()))
        if registration.kind is HandlerKind.PLAIN:
            for job in runnable:
                await self._run_plain(registration, job, slot)
            return
        async with slot:
            if registration.kind is HandlerKind.BATCH and runnable:
                await self._run_together(registration, runnable)
            elif registration.kind is HandlerKind.JOB:
                for job in runnable:
                    await self._run_together(registration, [job])

    async def settle(self) -> None:
        """Wait until no finish is being written any more, for jobs whose run was cancelled too."""
        await self._completions.settle()

    async def _run_together(self, registration: Registration, jobs: Sequence[Job]) -> None:
        """Run jobs in one transaction; when it fails, in halves, until the job that fails is alone."""
        with running(jobs) as step:
            if await self._is_done(registration, jobs, step):
                return
        middle = len(jobs) // 2
        await self._run_together(registration, jobs[:middle])
        await self._run_together(registration, jobs[middle:])

    async def _is_done(self, registration: Registration, jobs: Sequence[Job], step: Step) -> bool:
        """Run jobs in one transaction and see to their ends; False if a batch failed, to be split."""
        started = time.perf_counter()
        boundary = Boundary()
        try:
            result = await self._repeated(lambda: self._attempt(registration, jobs, boundary), boundary)
        except LeaseLost:
            self._lost(registration.name, len(jobs))
        except Exception as error:
            if error is not boundary.error and is_transient(error):
                raise
            step.fail(type(error).__name__)
            if len(jobs) > 1:
                log.warning(
                    "jobs.batch_split", name=registration.name, jobs=len(jobs), error=repr(error)[:200]
                )
                return False
            await self._finish(registration.policy, jobs[0], error)
        else:
            await self._account(registration, jobs, result, time.perf_counter() - started)
        return True

    async def _attempt(
        self, registration: Registration, jobs: Sequence[Job], boundary: Boundary
    ) -> Attempted:
        if self._session_factory is None:
            raise NotInTransaction(f"{registration.name!r} needs a session; give Handlers a session_factory")
        return await attempt(
            registration,
            jobs,
            self._session_factory,
            now=self._clock.now(),
            rng=self._rng,
            boundary=boundary,
        )

    async def _account(
        self, registration: Registration, jobs: Sequence[Job], result: Attempted, seconds: float
    ) -> None:
        """Count what was committed, and finish what the transaction itself could not finish."""
        name, others = registration.name, 0
        for job in result.jobs if result.outcomes else ():
            outcome = result.outcomes.get(job.id)
            if outcome is not None and not isinstance(outcome, Complete):
                others += 1
                state = self._decide(registration.policy, job, outcome).transition.state
                self.stats.count(name, state, outcome=outcome)
        if not result.is_finished:
            now_finished = [
                self._decide(registration.policy, job, result.outcomes.get(job.id)) for job in result.jobs
            ]
            await self._repeated(lambda: self._queue.finish(now_finished))
        JOB_SECONDS.labels(name).observe(seconds)
        self.stats.count(name, JobState.COMPLETED, jobs=len(result.jobs) - others)
        if len(result.jobs) < len(jobs):
            self._lost(name, len(jobs) - len(result.jobs))
        if len(jobs) > 1:
            log.debug(
                "jobs.ran", name=name, jobs=len(result.jobs), not_completed=others, seconds=round(seconds, 4)
            )

    async def _run_plain(
        self, registration: Registration, job: Job, slot: AbstractAsyncContextManager[object]
    ) -> None:
        """Run a job with no transaction open, and finish it afterwards, together with others that end."""
        async with slot:
            with running([job]) as step, JOB_SECONDS.labels(registration.name).time():
                ending = await _plain_ending(registration, job, step)
        await self._finish(registration.policy, job, ending)

    async def _discard_worn_out(self, registration: Registration, jobs: Sequence[Job]) -> Sequence[Job]:
        """Discard jobs whose attempts, fewer than the row allows, were used up by processes that died."""
        policy = registration.policy
        worn_out = [job for job in jobs if job.attempt > 1 and job.attempt > attempts_allowed(policy, job)]
        for job in worn_out:
            await self._finish(policy, job, Discard(job.last_error or "no attempts left"))
        return [job for job in jobs if job not in worn_out] if worn_out else jobs

    async def _finish(self, policy: RetryPolicy, job: Job, ending: Ending) -> None:
        """Write one job's transition, fenced, and apart from its work."""
        finish = self._decide(policy, job, ending)
        if isinstance(ending, BaseException):
            log.warning(
                "jobs.failed",
                name=job.name,
                job_id=job.id,
                attempt=job.attempt,
                state=finish.transition.state.value,
                error=finish.transition.error,
            )
        if await self._completions.finish(finish):
            self.stats.count(job.name, finish.transition.state, outcome=ending)
        else:
            self._lost(job.name, 1)

    def _decide(self, policy: RetryPolicy, job: Job, ending: Ending) -> Finish:
        return Finish(job, transition(policy, job, ending, self._clock.now(), self._rng))

    async def _write(self, finishes: Sequence[Finish]) -> set[str]:
        return await self._repeated(lambda: self._queue.finish(finishes))

    async def _repeated(self, work: Callable[[], Awaitable[T]], boundary: Boundary | None = None) -> T:
        """Repeat ``work`` while the database could not do it now, a bounded number of times."""
        for delay_seconds in self._repeat_delays_seconds:
            try:
                return await work()
            except Exception as error:
                is_own_timeout = boundary and error is boundary.error and isinstance(error, TimeoutError)
                if is_own_timeout or not is_transient(error):
                    raise
                log.warning("jobs.repeated", error=repr(error)[:200], delay_seconds=delay_seconds)
            await asyncio.sleep(delay_seconds * (1 + self._rng.random()))
        return await work()

    def _lost(self, name: str, jobs: int) -> None:
        self.stats.count_lost(name, jobs)
        log.warning("jobs.lease_lost", name=name, jobs=jobs)


async def _plain_ending(registration: Registration, job: Job, step: Step) -> Ending:
    try:
        work = registration.run_plain(job)
        return await Boundary().run(work, timeout_seconds=registration.timeout_of([job]))
    except Exception as error:
        step.fail(type(error).__name__)
        return error


def session_factory_of(queue: JobQueue) -> SessionFactory | None:
    """Return the session factory of a durable queue; a memory queue has none."""
    return queue.session_factory if isinstance(queue, SqlJobQueue) else None


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
        ending = await _plain_ending(registration, job, step)
    if isinstance(ending, UnknownJob):
        return False
    if isinstance(ending, LeaseLost):
        return True
    if isinstance(ending, BaseException):
        log.warning(
            "jobs.failed", name=job.name, job_id=job.id, attempt=job.attempt, error=repr(ending)[:300]
        )
    # A handler that finished the job in its own transaction has spent the lease: then this changes nothing.
    end = transition(registration.policy, job, ending, clock.now(), Random())
    await queue.finish([Finish(job, end)])
    return True
