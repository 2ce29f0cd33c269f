"""A queue and a scheduler in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.clock import Clock
from svc_infra.jobs.memory import InMemoryJobQueue
from svc_infra.jobs.schedule_store import InMemoryScheduleStore, SqlScheduleStore
from svc_infra.jobs.scheduler import Scheduler
from svc_infra.jobs.sql import SqlJobQueue


@overload
def easy_jobs(
    session_factory: None = None, *, clock: Clock | None = None
) -> tuple[InMemoryJobQueue, Scheduler]: ...


@overload
def easy_jobs(
    session_factory: Callable[[], AsyncSession], *, clock: Clock | None = None
) -> tuple[SqlJobQueue, Scheduler]: ...


def easy_jobs(
    session_factory: Callable[[], AsyncSession] | None = None, *, clock: Clock | None = None
) -> tuple[InMemoryJobQueue | SqlJobQueue, Scheduler]:
    """Return a queue and its scheduler: in memory, or with a session factory the durable ones.

    The durable queue takes jobs in the caller's transaction: ``queue.bind(session)``.
    """
    if session_factory is None:
        memory = InMemoryJobQueue(clock=clock)
        return memory, Scheduler(InMemoryScheduleStore(memory), clock=clock)
    return (
        SqlJobQueue(session_factory, clock=clock),
        Scheduler(SqlScheduleStore(session_factory), clock=clock),
    )
