"""What is idle starts soon after a commit, not at the next poll: a worker its job, a relay its message.

And polling alone is correct.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from sqlalchemy import text

from svc_infra.clock import SystemClock
from svc_infra.db.base import new_id
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs import Handlers, Job, JobRequest, JobState, SqlJobQueue, Worker
from svc_infra.jobs.models import JobRow
from svc_infra.jobs.waking import WakeUp, announce
from svc_infra.webhooks.deliverer import Deliverer
from svc_infra.webhooks.relay import Relay
from tests.contract.queue_contract import Sessions, enqueue
from tests.contract.webhook_shop import Shop

# No test waits for it: a job that starts only at the poll shows as a timeout.
NEVER = 3600.0

ELSEWHERE = """
import asyncio, sys
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs import SqlJobQueue

async def main():
    engine = make_engine(sys.argv[1])
    sessions = make_session_factory(engine)
    async with sessions.begin() as session:
        SqlJobQueue(sessions).bind(session).enqueue("n")
    await engine.dispose()

asyncio.run(main())
"""


PUBLISH_ELSEWHERE = """
import asyncio, sys
from sqlalchemy.ext.asyncio import AsyncSession
from svc_infra.clock import SystemClock
from svc_infra.db.outbox import OutboxMessage, SqlOutboxStore
from svc_infra.db.session import make_engine

async def main():
    engine = make_engine(sys.argv[1])
    async with AsyncSession(engine) as session, session.begin():
        message = OutboxMessage("msg_elsewhere", "shop.order.paid", None, b"{}", SystemClock().now())
        SqlOutboxStore().add([message], session=session)
    await engine.dispose()

asyncio.run(main())
"""


class Idle:
    """A worker that runs with nothing to do, and the instants at which it started jobs."""

    def __init__(self, sessions: Sessions, **options: Any) -> None:
        self.queue = SqlJobQueue(sessions)
        self.started: asyncio.Queue[float] = asyncio.Queue()
        handlers = Handlers(sessions)
        handlers.add_plain("n", self._run)
        self.worker = Worker(self.queue, handlers, **{"poll_seconds": NEVER, **options})

    async def _run(self, job: Job) -> None:
        self.started.put_nowait(time.monotonic())

    async def start_of_next(self) -> float:
        async with asyncio.timeout(20):
            return await self.started.get()


@pytest.fixture
async def idle(session_factory: Sessions) -> AsyncIterator[Idle]:
    idle, stop = Idle(session_factory), asyncio.Event()
    running = asyncio.create_task(idle.worker.run(stop))
    await enqueue(idle.queue, session_factory, "n")
    await idle.start_of_next()
    yield idle
    stop.set()
    await running


async def test_a_job_enqueued_in_this_process_starts_without_a_poll(
    idle: Idle, session_factory: Sessions
) -> None:
    for _ in range(5):
        await enqueue(idle.queue, session_factory, "n")
        await idle.start_of_next()
    async with session_factory.begin() as session:
        await idle.queue.enqueue_many(session, [JobRequest("n"), JobRequest("n")])
    await idle.start_of_next()
    await idle.start_of_next()


async def test_a_job_enqueued_by_another_process_starts_without_a_poll(idle: Idle, database_url: str) -> None:
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", ELSEWHERE, database_url)
        assert await process.wait() == 0
        await idle.start_of_next()


async def test_jobs_enqueued_in_a_burst_all_start_although_notifications_are_debounced(
    idle: Idle, database_url: str
) -> None:
    engine = make_engine(database_url)
    sessions = make_session_factory(engine)
    for _ in range(30):
        async with sessions.begin() as session:
            SqlJobQueue(sessions).bind(session).enqueue("n")
    for _ in range(30):
        await idle.start_of_next()
    await engine.dispose()


@pytest.mark.postgres_only
async def test_a_listener_whose_connection_was_ended_listens_again(
    idle: Idle, session_factory: Sessions
) -> None:
    async with session_factory.begin() as session:
        ended = await session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE query LIKE 'LISTEN%' AND datname = current_database()"
            )
        )
        assert ended.scalars().all() == [True]
    # Written without an announcement: only the new connection's first look finds it.
    async with session_factory.begin() as session:
        await session.run_sync(lambda sync: sync.add(job_row()))
    await idle.start_of_next()


def job_row() -> JobRow:
    now = SystemClock().now()
    state = JobState.AVAILABLE.value
    return JobRow(id=new_id(), name="n", payload={}, run_at=now, created_at=now, max_attempts=1, state=state)


async def test_without_listening_polling_alone_is_correct(
    session_factory: Sessions, database_url: str
) -> None:
    idle, stop = Idle(session_factory, is_listening=False, poll_seconds=0.05), asyncio.Event()
    running = asyncio.create_task(idle.worker.run(stop))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", ELSEWHERE, database_url)
    assert await process.wait() == 0
    await idle.start_of_next()
    stop.set()
    await running


@pytest.mark.sqlite_only
async def test_a_file_that_cannot_be_watched_is_looked_at_again_and_again(
    session_factory: Sessions, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svc_infra.db.file_watch._watch", lambda folder: None)
    stop, woken = asyncio.Event(), asyncio.Event()
    waiting = asyncio.create_task(WakeUp(SqlJobQueue(session_factory).url, woken.set).run(stop))
    await asyncio.wait_for(woken.wait(), 20)  # the first look
    woken.clear()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", ELSEWHERE, database_url)
    assert await process.wait() == 0
    await asyncio.wait_for(woken.wait(), 20)
    stop.set()
    await waiting


async def test_a_rolled_back_enqueue_wakes_nobody(session_factory: Sessions) -> None:
    queue, stop, woken = SqlJobQueue(session_factory), asyncio.Event(), asyncio.Event()
    waiting = asyncio.create_task(WakeUp(queue.url, woken.set).run(stop, is_listening=False))
    await asyncio.sleep(0)
    async with session_factory() as session:
        queue.bind(session).enqueue("n")
        await session.rollback()
        await session.execute(text("SELECT 1"))
        await session.commit()
        await asyncio.sleep(0)
        assert not woken.is_set()
        await session.run_sync(announce)
        await session.commit()
    await asyncio.wait_for(woken.wait(), 10)
    stop.set()
    await waiting


async def test_a_message_is_relayed_without_a_poll_whichever_process_publishes_it(
    session_factory: Sessions, database_url: str
) -> None:
    shop, relayed, stop = Shop(session_factory), asyncio.Event(), asyncio.Event()
    endpoint_id = await shop.add()
    deliverer = Deliverer(session_factory, cast(Any, None))
    deliverer.wake = relayed.set  # type: ignore[method-assign]
    relay = Relay(session_factory, poll_seconds=NEVER, deliverer=deliverer)
    running = asyncio.create_task(relay.run(stop))
    for _ in range(3):
        await shop.publish({})
        await asyncio.wait_for(relayed.wait(), 20)
        relayed.clear()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PUBLISH_ELSEWHERE, database_url)
    assert await process.wait() == 0
    await asyncio.wait_for(relayed.wait(), 20)
    assert len(await shop.states(endpoint_id)) == 4
    stop.set()
    await running
