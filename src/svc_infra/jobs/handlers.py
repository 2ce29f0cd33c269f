"""Handlers: the application's functions, by the name of the jobs they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.clock import Clock, SystemClock
from svc_infra.exceptions import InvalidSettings, NotInTransaction, UnknownJob
from svc_infra.jobs.job import Job
from svc_infra.jobs.kind import DEFAULT_TIMEOUT_SECONDS, JobKind
from svc_infra.jobs.outcome import Outcome
from svc_infra.jobs.retry import RetryPolicy

DEFAULT_BATCH_SIZE = 500
__all__ = ["DEFAULT_TIMEOUT_SECONDS", "HandlerKind", "Handlers", "Registration", "SessionFactory"]

SessionFactory = Callable[[], AsyncSession]
JobHandler = Callable[[Job, AsyncSession], Awaitable[Outcome | None]]
BatchHandler = Callable[[Sequence[Job], AsyncSession], Awaitable[Mapping[str, Outcome] | None]]
PlainHandler = Callable[[Job], Awaitable[Outcome | None]]
H = TypeVar("H", bound=Callable[..., Any])


class HandlerKind(StrEnum):
    """``job`` and ``batch`` run and complete in one transaction; ``plain`` runs with none open."""

    JOB = "job"
    BATCH = "batch"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Registration:
    """A handler and how it is run. ``timeout_seconds`` of wall time end an attempt."""

    name: str
    kind: HandlerKind
    function: Callable[..., Awaitable[Any]]
    policy: RetryPolicy
    timeout_seconds: float
    batch_size: int = 1
    payload_version: int = 1
    is_limited: bool = False

    def timeout_of(self, jobs: Sequence[Job]) -> float:
        """Return how long an attempt may take: a job alone may bring a timeout of its own."""
        own = jobs[0].timeout_seconds if len(jobs) == 1 else None
        return self.timeout_seconds if own is None else own

    async def run_in(self, session: AsyncSession, jobs: Sequence[Job]) -> Mapping[str, Outcome | None]:
        """Run the function in the transaction of ``session``; what is not in the answer is complete.

        Raises:
            TypeError: the function returned what is no outcome.
        """
        if self.kind is HandlerKind.BATCH:
            answer = await self.function(jobs, session)
            if answer is None:
                return {}
            if not (isinstance(answer, Mapping) and answer.keys() <= {job.id for job in jobs}):
                raise TypeError("a batch handler returns None or outcomes by the ids of its own jobs")
            return {job_id: _checked(outcome) for job_id, outcome in answer.items()}
        return {job.id: _checked(await self.function(job, session)) for job in jobs}

    async def run_plain(self, job: Job) -> Outcome | None:
        """Run the function of a plain handler."""
        return _checked(await self.function(job))


def _checked(outcome: Any) -> Outcome | None:
    if outcome is not None and not isinstance(outcome, Outcome):
        raise TypeError(f"the handler returned a {type(outcome).__name__}; return None or an outcome")
    return outcome


class Handlers:
    """The handlers that a worker knows. Itself an async callable, for ``process_one(queue, handlers)``.

    Three kinds, each also as a decorator (``.job``, ``.batch``, ``.plain``)::

        handlers.add("shop.ship", ship)             # async (job, session): one transaction with its end
        handlers.add_batch("shop.count", count)     # async (jobs, session): many jobs in one transaction
        handlers.add_plain("shop.call", call)       # async (job): calls to the world, at least once

    ``session_factory`` makes the sessions; without one the worker gives that of its queue.
    """

    def __init__(
        self,
        session_factory: SessionFactory | None = None,
        *,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        self.session_factory = session_factory
        self._clock: Clock = clock or SystemClock()
        self._rng = rng or Random()
        self._registrations: dict[str, Registration] = {}

    @property
    def names(self) -> frozenset[str]:
        """The names of the jobs that these handlers run."""
        return frozenset(self._registrations)

    @property
    def versions(self) -> dict[str, int]:
        """The newest version of a payload that is read, by name, where it is above 1."""
        return {each.name: each.payload_version for each in self if each.payload_version > 1}

    @property
    def has_limits(self) -> bool:
        """Whether a kind has a limit on how many of its jobs run at once, or start."""
        return any(each.is_limited for each in self)

    def __getitem__(self, name: str) -> Registration:
        try:
            return self._registrations[name]
        except KeyError:
            raise UnknownJob(f"no handler is registered for {name!r}; the job is left as it is") from None

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._registrations.values())

    def add(
        self,
        name: str | JobKind,
        function: JobHandler,
        *,
        policy: RetryPolicy | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        """Run one job in one transaction with its completion.

        Raises:
            InvalidSettings: the name is taken, or the timeout is not positive.
        """
        self._register(name, HandlerKind.JOB, function, policy, timeout_seconds)

    def add_batch(
        self,
        name: str | JobKind,
        function: BatchHandler,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        policy: RetryPolicy | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        """Run up to ``batch_size`` jobs at once in one transaction with their completion.

        The function returns outcomes by job id; a job without one is complete. When it raises, nothing of the
        batch is kept, and the batch is split until the job that fails is alone.

        Raises:
            InvalidSettings: the name is taken, or a number is not positive.
        """
        self._register(name, HandlerKind.BATCH, function, policy, timeout_seconds, batch_size)

    def add_plain(
        self,
        name: str | JobKind,
        function: PlainHandler,
        *,
        policy: RetryPolicy | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        """Run a job with no transaction open, and finish it afterwards: at least once.

        Raises:
            InvalidSettings: the name is taken, or the timeout is not positive.
        """
        self._register(name, HandlerKind.PLAIN, function, policy, timeout_seconds)

    def job(self, name: str | JobKind, **options: Any) -> Callable[[H], H]:
        """Decorate a function to ``add`` it."""
        return lambda function: self._decorated(self.add, name, function, options)

    def batch(self, name: str | JobKind, **options: Any) -> Callable[[H], H]:
        """Decorate a function to ``add_batch`` it."""
        return lambda function: self._decorated(self.add_batch, name, function, options)

    def plain(self, name: str | JobKind, **options: Any) -> Callable[[H], H]:
        """Decorate a function to ``add_plain`` it."""
        return lambda function: self._decorated(self.add_plain, name, function, options)

    def include(self, other: Handlers) -> None:
        """Take over the handlers of ``other``.

        Raises:
            InvalidSettings: both have a handler for the same name.
        """
        for registration in other:
            self._add(registration)

    async def __call__(self, job: Job) -> Outcome | None:
        """Run one job that the caller has claimed.

        A durable job in the handlers' own database is finished in the handler's transaction, and a later
        finish by the caller changes nothing. For any other job the caller finishes it with the outcome that
        is returned.

        Raises:
            UnknownJob: no handler has its name.
            LeaseLost: the claim is outdated; nothing was kept.
            NotInTransaction: the handler needs a session and there is no session factory.
        """
        from svc_infra.jobs.attempt import Boundary, attempt  # which runs registrations, so imports this file

        registration = self[job.name]
        if registration.kind is HandlerKind.PLAIN:
            work = registration.run_plain(job)
            return await Boundary().run(work, timeout_seconds=registration.timeout_of([job]))
        if self.session_factory is None:
            raise NotInTransaction(f"{job.name!r} needs a session; make Handlers(session_factory)")
        result = await attempt(
            registration, [job], self.session_factory, now=self._clock.now(), rng=self._rng
        )
        return result.outcomes.get(job.id)

    def _register(
        self,
        name: str | JobKind,
        handler_kind: HandlerKind,
        function: Callable[..., Awaitable[Any]],
        policy: RetryPolicy | None,
        timeout_seconds: float | None,
        batch_size: int = 1,
    ) -> None:
        kind = name if isinstance(name, JobKind) else JobKind(name)
        registration = Registration(
            kind.name,
            handler_kind,
            function,
            policy or kind.policy,
            kind.timeout_seconds if timeout_seconds is None else timeout_seconds,
            batch_size,
            kind.version,
            kind.limit is not None or kind.rate is not None,
        )
        self._add(registration)

    def _add(self, registration: Registration) -> None:
        if registration.name in self._registrations:
            raise InvalidSettings(f"two handlers for {registration.name!r}; register one of them")
        if registration.timeout_seconds <= 0 or registration.batch_size < 1:
            raise InvalidSettings(f"{registration.name!r}: timeout_seconds and batch_size must be positive")
        self._registrations[registration.name] = registration

    @staticmethod
    def _decorated(add: Callable[..., None], name: str | JobKind, function: H, options: dict[str, Any]) -> H:
        add(name, function, **options)
        return function
