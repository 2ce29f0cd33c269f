"""Running claimed jobs: the handler boundary, where whatever a handler raises becomes a transition."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from random import Random
from typing import TypeVar

import structlog

from svc_infra.clock import Clock
from svc_infra.db.transient import is_transient
from svc_infra.exceptions import LeaseLost, NotInTransaction
from svc_infra.jobs.attempt import Attempted, Boundary, attempt, attempts_allowed, transition
from svc_infra.jobs.completions import Completions
from svc_infra.jobs.handlers import HandlerKind, Handlers, Registration, SessionFactory
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.metrics import JOB_SECONDS, JOB_WAIT_SECONDS
from svc_infra.jobs.outcome import Cancel, Complete, Discard, Ending
from svc_infra.jobs.queue import Finish, JobQueue
from svc_infra.jobs.retry import RetryPolicy
from svc_infra.jobs.run_log import Run, log_completed, log_end
from svc_infra.jobs.spans import running
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.jobs.stats import Stats
from svc_infra.tracing import Step

log = structlog.get_logger(__name__)
T = TypeVar("T")

REPEAT_DELAYS_SECONDS = (0.05, 0.2, 0.8, 2.0, 4.0)
_ANY = RetryPolicy()


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
        run, boundary = Run.begin(self._clock, step), Boundary()
        try:
            result = await self._repeated(lambda: self._attempt(registration, jobs, boundary), boundary)
        except LeaseLost:
            self._lost(registration.name, len(jobs))
        except Exception as error:
            if error is not boundary.error and is_transient(error):
                raise
            step.fail(type(error).__name__)
            if len(jobs) > 1:
                name, kind = registration.name, type(error).__name__
                log.warning("jobs.batch_split", name=name, jobs=len(jobs), error=kind)
                return False
            await self._finish(registration.policy, jobs[0], error, run)
        else:
            await self._account(registration, jobs, result, run)
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
        self, registration: Registration, jobs: Sequence[Job], result: Attempted, run: Run
    ) -> None:
        """Tell of what was committed, and finish what the transaction itself could not finish."""
        name, completed = registration.name, list(result.jobs)
        JOB_SECONDS.labels(name).observe(run.seconds)
        if not result.is_finished:
            now_finished = [
                self._decide(registration.policy, job, result.outcomes.get(job.id)) for job in result.jobs
            ]
            await self._repeated(lambda: self._queue.finish(now_finished))
        if result.outcomes:
            outcomes = {job.id: result.outcomes.get(job.id) for job in result.jobs}
            completed = [job for job in result.jobs if isinstance(outcomes[job.id], Complete | None)]
            for job in result.jobs:
                if not isinstance(outcome := outcomes[job.id], Complete | None):
                    state = self._decide(registration.policy, job, outcome).transition.state
                    log_end(job, self.stats.count(name, state, outcome=outcome), run)
        self.stats.count(name, JobState.COMPLETED, jobs=len(completed))
        log_completed(completed, run)
        if len(result.jobs) < len(jobs):
            self._lost(name, len(jobs) - len(result.jobs))

    async def _run_plain(
        self, registration: Registration, job: Job, slot: AbstractAsyncContextManager[object]
    ) -> None:
        """Run a job with no transaction open, and finish it afterwards, together with others that end."""
        async with slot:
            with running([job]) as step, JOB_SECONDS.labels(registration.name).time():
                run = Run.begin(self._clock, step)
                ending = await plain_ending(registration, job, step)
                run.end()
        await self._finish(registration.policy, job, ending, run)

    async def _discard_worn_out(self, registration: Registration, jobs: Sequence[Job]) -> Sequence[Job]:
        """Discard jobs whose attempts, fewer than the row allows, were used up by processes that died."""
        policy = registration.policy
        worn_out = [job for job in jobs if job.attempt > 1 and job.attempt > attempts_allowed(policy, job)]
        for job in worn_out:
            await self._finish(policy, job, Discard(job.last_error or "no attempts left"), None)
        return [job for job in jobs if job not in worn_out] if worn_out else jobs

    async def cancel(self, reasons: Mapping[str, str], jobs: Iterable[Job]) -> set[str]:
        """End claimed jobs, whose run was broken off, because somebody wanted that; return their ids."""
        wanted = [job for job in jobs if job.id in reasons]
        ends = [self._decide(_ANY, job, Cancel(reasons[job.id])) for job in wanted]
        cancelled = await self._queue.finish(ends) if ends else set()
        for job in wanted:
            if job.id in cancelled:
                log_end(job, self.stats.count(job.name, JobState.CANCELLED), None)
        return cancelled

    async def _finish(self, policy: RetryPolicy, job: Job, ending: Ending, run: Run | None) -> None:
        """Write one job's transition, fenced, and apart from its work."""
        finish = self._decide(policy, job, ending)
        if await self._completions.finish(finish):
            ended = self.stats.count(job.name, finish.transition.state, outcome=ending)
            log_end(job, ended, run, error=ending)
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
                log.warning("jobs.repeated", error=type(error).__name__, delay_seconds=delay_seconds)
            await asyncio.sleep(delay_seconds * (1 + self._rng.random()))
        return await work()

    def _lost(self, name: str, jobs: int) -> None:
        self.stats.count_lost(name, jobs)
        log.warning("jobs.lease_lost", name=name, jobs=jobs)


async def plain_ending(registration: Registration, job: Job, step: Step) -> Ending:
    """Run a plain handler, and return how that ended."""
    try:
        work = registration.run_plain(job)
        return await Boundary().run(work, timeout_seconds=registration.timeout_of([job]))
    except Exception as error:
        step.fail(type(error).__name__)
        return error


def session_factory_of(queue: JobQueue) -> SessionFactory | None:
    """Return the session factory of a durable queue; a memory queue has none."""
    return queue.session_factory if isinstance(queue, SqlJobQueue) else None
