"""One attempt at jobs in one transaction: effects and completion commit together or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from random import Random
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.db.session import commit
from svc_infra.exceptions import LeaseLost
from svc_infra.failpoints import reached
from svc_infra.jobs.handlers import Registration
from svc_infra.jobs.job import DEFAULT_MAX_ATTEMPTS, Job
from svc_infra.jobs.outcome import Complete, Ending, Outcome, Transition, decide
from svc_infra.jobs.queue import Finish
from svc_infra.jobs.retry import RetryPolicy
from svc_infra.jobs.rows import complete_jobs, rewrite_completed
from svc_infra.jobs.sql import database_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attempted:
    """What was committed: the jobs that were still held, and their outcomes where they are not complete.

    ``is_finished`` says whether the jobs were finished in the transaction too.
    """

    jobs: Sequence[Job]
    outcomes: Mapping[str, Outcome | None]
    is_finished: bool


class Boundary:
    """Runs a handler within its timeout, and remembers the error that came from it and from nowhere else."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def run(self, work: Awaitable[T], *, timeout_seconds: float) -> T:
        """Return the result of ``work``.

        Raises:
            TimeoutError: it took longer than ``timeout_seconds``.
            Exception: whatever it raised.
        """
        try:
            return await self._until_deadline(work, timeout_seconds)
        except Exception as error:
            self.error = error
            raise

    async def _until_deadline(self, work: Awaitable[T], timeout_seconds: float) -> T:
        deadline = asyncio.timeout(timeout_seconds)
        try:
            async with deadline:
                return await work
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("the handler was cancelled by something that it awaited") from error
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise TimeoutError(f"the handler took longer than its {timeout_seconds:g} s") from error


async def attempt(
    registration: Registration,
    jobs: Sequence[Job],
    session_factory: Callable[[], AsyncSession],
    *,
    now: datetime,
    rng: Random,
    boundary: Boundary | None = None,
) -> Attempted:
    """Fence ``jobs``, run their handler and commit, all in one transaction.

    The fence is the first statement: it completes the rows that are still held under their leases and locks
    them until the commit. Rows that were lost leave the batch before its work is done. ``now`` is business
    time.

    Raises:
        LeaseLost: not one of the jobs is still held.
        TimeoutError: the handler took longer than its timeout.
        Exception: whatever the handler or the database raised. Nothing was kept, except that after an error
            of the commit itself the outcome is unknown: repeat the attempt, and the fence knows.
    """
    async with _opened(session_factory) as session:
        is_fenced = jobs[0].database is not None and jobs[0].database == database_of(session)
        held = await _fence(session, jobs, now) if is_fenced else jobs
        reached("handler_before_writes")
        outcomes = await (boundary or Boundary()).run(
            _run_handler(registration, session, held), timeout_seconds=registration.timeout_of(held)
        )
        reached("handler_after_writes")
        others = [
            Finish(job, transition(registration.policy, job, outcome, now, rng))
            for job in (held if outcomes else ())
            if not isinstance(outcome := outcomes.get(job.id), Complete | None)
        ]
        if is_fenced and others:
            await session.run_sync(lambda sync: rewrite_completed(sync, others))
        reached("before_commit")
        await commit(session)
        reached("after_commit")
        return Attempted(held, outcomes, is_fenced)


@asynccontextmanager
async def _opened(session_factory: Callable[[], AsyncSession]) -> AsyncIterator[AsyncSession]:
    """Open a session and close it; without a task and a switch where its transaction has ended already."""
    session = session_factory()
    try:
        yield session
    finally:
        if session.in_transaction():
            await asyncio.shield(session.close())
        else:
            session.sync_session.close()


def transition(policy: RetryPolicy, job: Job, ending: Ending, now: datetime, rng: Random) -> Transition:
    """Decide what becomes of ``job``, under the attempts that its request or else its policy allows."""
    allowed = attempts_allowed(policy, job)
    if allowed != job.max_attempts:
        job = replace(job, max_attempts=allowed)
    return decide(job, ending, now=now, policy=policy, rng=rng)


def attempts_allowed(policy: RetryPolicy, job: Job) -> int:
    """Return the greatest number of attempts: the job's own, or the policy's where it is the default."""
    return policy.max_attempts if job.max_attempts == DEFAULT_MAX_ATTEMPTS else job.max_attempts


async def _fence(session: AsyncSession, jobs: Sequence[Job], now: datetime) -> Sequence[Job]:
    held = await session.run_sync(lambda sync: complete_jobs(sync, jobs, now=now))
    reached("after_finish_statement")
    if not held:
        raise LeaseLost(f"the leases of {len(jobs)} {jobs[0].name!r} jobs are gone; nothing was kept")
    return jobs if len(held) == len(jobs) else [job for job in jobs if job.id in held]


async def _run_handler(
    registration: Registration, session: AsyncSession, jobs: Sequence[Job]
) -> Mapping[str, Outcome | None]:
    outcomes = await registration.run_in(session, jobs)
    # Here and not in the commit, so that an error of the handler's own rows is the handler's error.
    if session.new or session.dirty or session.deleted:
        await session.flush()
    return outcomes
