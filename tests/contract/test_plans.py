"""What the planner does with the queue's statements on a table of realistic size: none reads all of it.

The plans are those for twenty thousand jobs, most of them finished.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from svc_infra.clock import FixedClock
from svc_infra.db.session import make_session_factory
from svc_infra.jobs import Job, JobKind, JobRequest, JobState, SqlJobQueue, rows
from svc_infra.jobs.limit import Limit
from svc_infra.jobs.limited_claim import claim_limited
from svc_infra.jobs.lines import Place
from svc_infra.jobs.pausing import pause_queue
from tests.contract.queue_contract import NOW, Sessions, clock

__all__ = ["clock"]  # a fixture of the queue contract

FINISHED, WAITING, RUNNING = 15_000, 5_000, 200
LIMITED = JobKind("limited", limit=Limit(2, field="key"))
NEVER = re.compile(r"Seq Scan on jobs|SCAN jobs(?! USING)")
"""PostgreSQL's and SQLite's words for reading the whole table."""


def claim(session: Session, **options: Any) -> list[Job]:
    return rows.claim_jobs(session, 50, rows.ClaimTerms(NOW, **options))


def claim_some_limited(session: Session, **options: Any) -> list[Job]:
    return claim_limited(session, 50, rows.ClaimTerms(NOW, **options), place=Place())


def prune(session: Session) -> int:
    return rows.prune_jobs(session, finished_before=NOW, states=[JobState.COMPLETED], limit=100)


STATEMENTS: dict[str, tuple[Callable[[Session], Any], set[str]]] = {
    "claim": (claim, {"ix_jobs_available"}),
    "claim by name": (lambda session: claim(session, names={"n", "m"}), {"ix_jobs_available"}),
    "claim by queue": (lambda session: claim(session, queues={"default", "slow"}), {"ix_jobs_available"}),
    "claim by version": (
        lambda session: claim(session, names={"n"}, versions={"n": 3}),
        {"ix_jobs_available"},
    ),
    "claim limited": (claim_some_limited, {"ix_jobs_limited", "uq_jobs_slot"}),
    "claim limited by name": (
        lambda session: claim_some_limited(session, names={"limited"}),
        {"ix_jobs_limited", "uq_jobs_slot"},
    ),
    "rescue": (lambda session: rows.rescue_jobs(session, now=NOW, limit=100), {"ix_jobs_running"}),
    "prune": (prune, {"ix_jobs_finished"}),
}


@pytest.fixture
async def filled(session_factory: Sessions, clock: FixedClock, target: str) -> SqlJobQueue:
    """A queue with many finished, some waiting and a few running jobs, and the planner knows of them."""
    queue = SqlJobQueue(session_factory, clock=clock)
    ends = [JobRequest("n", run_at=NOW - timedelta(minutes=n)) for n in range(FINISHED)]
    waits = [
        JobRequest(("n", "m")[n % 2], queue=("default", "slow", "paused")[n % 3]) for n in range(WAITING)
    ]
    keys = [LIMITED.request({"key": n % 20}) for n in range(RUNNING)]
    old = "'2026-01-01 00:00:00.000000'"
    async with session_factory.begin() as session:
        await queue.enqueue_many(session, ends)
        await session.execute(text(f"UPDATE jobs SET state = 'completed', finished_at = {old}"))
        await queue.enqueue_many(session, [*waits, *keys])
        await session.run_sync(lambda sync: pause_queue(sync, "paused", actor="ann", now=NOW))
    await queue.claim(RUNNING, names={"m"})
    await queue.claim(10, names={"limited"}, has_limits=True)
    async with session_factory() as session:
        await session.execute(text("ANALYZE"))
        await session.commit()
    return queue


async def test_no_statement_of_the_queue_reads_the_whole_table(
    filled: SqlJobQueue, engine: AsyncEngine, target: str
) -> None:
    explain = "EXPLAIN QUERY PLAN " if target == "sqlite" else "EXPLAIN "
    for name, (run, indexes) in STATEMENTS.items():
        async with make_session_factory(engine)() as session:
            plans = await _plans(session, run, explain)
            await session.rollback()
        plan = "\n".join(plans)
        assert plans, name
        assert not NEVER.search(plan), f"{name}:\n{plan}"
        assert not {index for index in indexes if index not in plan}, f"{name}:\n{plan}"


async def _plans(session: AsyncSession, run: Callable[[Session], Any], explain: str) -> list[str]:
    """Run, and return the plans of the statements on jobs that it executed."""
    plans: list[str] = []

    def note(connection: Any, cursor: Any, sql: str, parameters: Any, context: Any, *_: Any) -> None:
        # SAVEPOINT and its like have no plan, and nothing but jobs is looked at here.
        if " jobs" in sql and not sql.startswith("EXPLAIN"):
            asked = connection.connection.cursor()
            asked.execute(explain + sql, parameters)
            plans.append("\n".join(str(row[-1]) for row in asked.fetchall()))
            asked.close()

    connection = (await session.connection()).sync_connection
    if explain == "EXPLAIN ":
        # As for a statement that was prepared, whose parameters are not looked at.
        await session.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
    event.listen(connection, "before_cursor_execute", note)
    await session.run_sync(run)
    event.remove(connection, "before_cursor_execute", note)
    return plans
