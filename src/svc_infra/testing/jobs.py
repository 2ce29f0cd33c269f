"""For tests of an application's jobs: run everything that is due, and say what was enqueued.

::

    from svc_infra.testing.jobs import FixedClock, assert_enqueued, drain

    async def test_an_order_is_shipped(sessions):
        clock = FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
        queue = SqlJobQueue(sessions, clock=clock)
        await place_order(...)
        await assert_enqueued(queue, "shop.ship", {"order_id": "o1"})
        assert await drain(queue, handlers) == 1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from svc_infra.clock import FixedClock
from svc_infra.jobs import administration
from svc_infra.jobs.handlers import Handlers
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.memory import InMemoryJobQueue
from svc_infra.jobs.queue import StoredJob
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.jobs.worker import Worker

__all__ = ["FixedClock", "assert_enqueued", "drain", "enqueued"]

_PAGE = 10_000


async def drain(queue: SqlJobQueue | InMemoryJobQueue, handlers: Handlers) -> int:
    """Run what is due at the queue's clock, and what that enqueues, until nothing is; return the attempts."""
    return await Worker(queue, handlers).drain()


async def enqueued(queue: SqlJobQueue | InMemoryJobQueue, name: str | None = None) -> list[StoredJob]:
    """Return the jobs in any state, oldest first, all or those of one name."""
    if isinstance(queue, InMemoryJobQueue):
        return [stored for stored in queue.jobs if name in (None, stored.job.name)]
    async with queue.session_factory() as session:
        return await session.run_sync(lambda sync: administration.list_jobs(sync, name=name, limit=_PAGE))


async def assert_enqueued(
    jobs_of: SqlJobQueue | InMemoryJobQueue,
    name: str,
    payload: Mapping[str, Any] | None = None,
    *,
    count: int | None = None,
    state: JobState | None = None,
    **fields: Any,
) -> list[Job]:
    """Assert that jobs of this name were enqueued, and return them.

    ``payload`` is what their payload has to hold, among other things; ``fields`` are attributes of ``Job``
    (``queue="slow"``). Without ``count`` any number but none will do.

    Raises:
        AssertionError: there are none, or not as many; the message shows what there is instead.
    """
    found = await enqueued(jobs_of, name)
    fitting = [
        stored.job
        for stored in found
        if (state is None or stored.state is state)
        and all(item in stored.job.payload.items() for item in (payload or {}).items())
        and all(getattr(stored.job, field) == value for field, value in fields.items())
    ]
    if len(fitting) == count or (count is None and fitting):
        return fitting
    others = ", ".join(f"{stored.job.payload} ({stored.state.value})" for stored in found) or "none"
    wanted = "at least one" if count is None else str(count)
    raise AssertionError(f"{len(fitting)} jobs {name!r} fit, not {wanted}; of this name there are: {others}")
