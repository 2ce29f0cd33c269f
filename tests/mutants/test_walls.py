"""Each wall of the queue, taken away alone: the contract test that is named beside it then fails.

A test here runs the body of that contract test on a queue without the wall and expects it to fail. That the
same test passes with the wall is shown where it stands.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Subquery, and_, desc, literal_column, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import Select

from svc_infra.clock import FixedClock
from svc_infra.db import leases
from svc_infra.db import session as db_session
from svc_infra.exceptions import LeaseLost
from svc_infra.jobs import (
    Handlers,
    Job,
    SqlJobQueue,
    Worker,
    lane,
    limited_claim,
    lines,
    schedule_store,
    sql,
    statements,
)
from svc_infra.jobs import attempt as attempts
from svc_infra.jobs.claimer import Claimer
from svc_infra.jobs.completions import Completions
from svc_infra.jobs.executor import Executor
from svc_infra.jobs.queue import Finish
from tests.contract import (
    test_executor,
    test_fairness,
    test_job_groups,
    test_job_limits,
    test_scheduler,
    test_unique_jobs,
)
from tests.contract.queue_contract import QueueContract, Sessions, clock, ended
from tests.contract.test_executor import executor, handlers, queue
from tests.contract.test_queues import TestSqlQueue as SqlQueueContract

__all__ = ["clock", "executor", "handlers", "queue"]  # fixtures of the contract tests

CONTRACT = QueueContract()
SQL_CONTRACT = SqlQueueContract()


@pytest.fixture(autouse=True)
def _statements_of_our_own() -> Iterator[None]:
    """Statements are built once and kept: build them anew without the wall, and with it afterwards."""
    _forget_statements()
    yield
    _forget_statements()


def _forget_statements() -> None:
    for module in (statements, limited_claim, lines, schedule_store):
        for built in vars(module).values():
            if hasattr(built, "cache_clear"):
                built.cache_clear()


async def fails(body: Awaitable[None]) -> None:
    """Run a contract test and expect that it does not hold, and not that it cannot be run."""
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        await body


def by_id_alone(table: Any, claims: Any, *, running: str) -> Any:
    """The fence of a queue that looks at the state and not at the lease."""
    return and_(table.c.id == claims.c.id, leases.in_state(table, running))


@pytest.fixture
def no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "is_held", by_id_alone)
    monkeypatch.setattr(statements, "is_held", by_id_alone)


@pytest.mark.usefixtures("no_fence")
@pytest.mark.parametrize(
    "write",
    [
        lambda queue, job: queue.finish([ended(job)]),
        lambda queue, job: queue.extend([job], lease_seconds=900),
        lambda queue, job: queue.release([job]),
    ],
    ids=["finish", "extend", "release"],
)
async def test_the_fence_of_each_write(
    queue: SqlJobQueue, session_factory: Sessions, write: Callable[[Any, Job], Any]
) -> None:
    await fails(CONTRACT.test_a_stale_lease_changes_nothing(queue, session_factory, write))


@pytest.mark.usefixtures("no_fence")
async def test_the_fence_of_a_handler_s_transaction(
    queue: SqlJobQueue, handlers: Handlers, executor: Executor, session_factory: Sessions
) -> None:
    body = test_executor.test_a_single_job_that_lost_its_lease_keeps_nothing
    await fails(body(queue, handlers, executor, session_factory))


async def test_lost_rows_leave_the_batch(
    queue: SqlJobQueue,
    handlers: Handlers,
    executor: Executor,
    session_factory: Sessions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fence = attempts._fence

    async def all_stay(session: AsyncSession, jobs: Sequence[Job], *rest: Any) -> Sequence[Job]:
        await fence(session, jobs, *rest)
        return jobs

    monkeypatch.setattr(attempts, "_fence", all_stay)
    body = test_executor.test_a_lost_row_leaves_the_batch_before_its_work_is_done
    await fails(body(queue, handlers, executor, session_factory))


async def test_a_transaction_without_a_job_left_ends(
    queue: SqlJobQueue,
    handlers: Handlers,
    executor: Executor,
    session_factory: Sessions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fence = attempts._fence

    async def goes_on(session: AsyncSession, jobs: Sequence[Job], *rest: Any) -> Sequence[Job]:
        try:
            return await fence(session, jobs, *rest)
        except LeaseLost:
            return jobs

    monkeypatch.setattr(attempts, "_fence", goes_on)
    body = test_executor.test_a_commit_whose_outcome_was_lost_is_not_done_twice
    await fails(body(queue, handlers, executor, session_factory, monkeypatch))


@pytest.mark.parametrize("kind", ["job", "plain"])
async def test_a_commit_keeps_cancellations_out(
    queue: SqlJobQueue,
    handlers: Handlers,
    executor: Executor,
    session_factory: Sessions,
    kind: str,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if (kind, target) == ("plain", "postgres"):
        pytest.skip("on PostgreSQL the end of a plain job is one statement, and there is no commit to cancel")

    async def bare(session: AsyncSession) -> None:
        await session.commit()

    async def finish_in_the_job_s_own_task(self: Completions, finish: Finish) -> bool:
        return finish.job.id in await self._write([finish])

    # Of a plain job the writer that is not the job's own task is a wall as well.
    monkeypatch.setattr(Completions, "finish", finish_in_the_job_s_own_task)
    for module in (attempts, sql, db_session):
        monkeypatch.setattr(module, "commit", bare)
    body = test_executor.test_a_commit_is_not_cancelled
    # The contract test undoes its own patches, and not ours.
    with pytest.MonkeyPatch.context() as own:
        await fails(body(queue, handlers, executor, session_factory, kind, own))


async def test_only_expired_leases_are_rescued(
    queue: SqlJobQueue, session_factory: Sessions, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired = leases.expired

    def any_lease(table: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(leases, "wall_time", lambda: literal_column("'9999-01-01'", leases.UtcDateTime))
            return expired(table, **options)

    monkeypatch.setattr(statements, "expired", any_lease)
    body = CONTRACT.test_a_lease_that_has_not_expired_is_not_rescued
    await fails(body(queue, session_factory, clock))


@pytest.fixture
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Select, "limit", lambda self, _limit: self)


@pytest.mark.usefixtures("no_limit")
async def test_a_claim_has_a_limit(queue: SqlJobQueue, session_factory: Sessions) -> None:
    await fails(CONTRACT.test_a_claim_returns_no_more_than_its_limit(queue, session_factory))


@pytest.mark.usefixtures("no_limit")
async def test_a_prune_has_a_bound(queue: SqlJobQueue, session_factory: Sessions) -> None:
    await fails(CONTRACT.test_pruning_deletes_only_what_finished_before(queue, session_factory))


@pytest.mark.postgres_only
async def test_what_a_claim_chooses_is_chosen_once(
    queue: SqlJobQueue, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = statements.claim_statement

    def chosen_in_place(*parts: Any, **options: Any) -> Any:
        return claim(*parts, **{**options, "choose": None})

    monkeypatch.setattr(statements, "claim_statement", chosen_in_place)
    monkeypatch.setattr(Select, "cte", Select.subquery)
    monkeypatch.setattr(Subquery, "prefix_with", lambda self, *_, **__: self, raising=False)
    compiles(leases.is_among, "postgresql")(leases._is_among)
    try:
        await fails(SQL_CONTRACT.test_a_claim_leases_its_limit_under_any_plan(queue, session_factory))
    finally:
        compiles(leases.is_among, "postgresql")(leases._is_among_postgresql)


@pytest.mark.postgres_only
async def test_locked_rows_are_skipped(
    queue: SqlJobQueue, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    locking = Select.with_for_update
    monkeypatch.setattr(
        Select, "with_for_update", lambda self, **options: locking(self, of=options.get("of"))
    )
    body = SQL_CONTRACT.test_a_finish_that_is_not_committed_yet_holds_up_no_other_lease
    await fails(body(queue, session_factory))


async def drop(sessions: Sessions, *ddl: str) -> None:
    async with sessions.begin() as session:
        for statement in ddl:
            await session.execute(text(statement))


async def test_the_unique_index_of_job_keys(queue: SqlJobQueue, session_factory: Sessions) -> None:
    await drop(session_factory, "DROP INDEX uq_jobs_unique_key")
    await fails(test_unique_jobs.test_twenty_at_once_give_one_row(queue, session_factory))


async def test_the_unique_index_of_slots(queue: SqlJobQueue, session_factory: Sessions) -> None:
    await drop(session_factory, "DROP INDEX uq_jobs_slot")
    await fails(test_job_limits.test_a_slot_that_is_held_cannot_be_held_twice(queue, session_factory))


async def test_the_primary_key_of_fires(
    target: str, database_url: str, session_factory: Sessions, clock: FixedClock
) -> None:
    clock.set(test_scheduler.START)
    columns = "schedule, fire_at, job_id, created_at"
    if target == "sqlite":
        bare = f"CREATE TABLE bare AS SELECT {columns} FROM cron_fires"
        await drop(session_factory, bare, "DROP TABLE cron_fires", "ALTER TABLE bare RENAME TO cron_fires")
    else:
        await drop(session_factory, "ALTER TABLE cron_fires DROP CONSTRAINT pk_cron_fires")
    body = test_scheduler.test_twenty_schedulers_at_once_fire_once
    await fails(body(database_url, session_factory, clock))


async def test_a_waiting_job_looks_at_its_group(
    queue: SqlJobQueue, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statements, "or_", lambda *conditions: conditions[0] | literal_column("1 = 1"))
    body = test_job_groups.test_a_job_waits_until_every_job_of_the_group_has_finished
    await fails(body(queue, session_factory))


async def test_tenants_take_turns(
    queue: SqlJobQueue, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited_claim, "taking_turns", lambda waiting, each: [item for _, item in waiting])
    body = test_fairness.test_with_little_room_nobody_has_a_second_job_before_all_have_one
    await fails(body(queue, session_factory))


async def test_the_order_within_a_line(
    queue: SqlJobQueue, session_factory: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines_of = lines._lines

    def later_priorities_first(by: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Select, "order_by", lambda self, *columns: ordered(self, *map(desc, columns)))
            return lines_of(by)

    ordered = Select.order_by
    monkeypatch.setattr(lines, "_lines", later_priorities_first)
    body = test_fairness.test_a_tenants_own_jobs_keep_their_order_and_only_due_ones_are_claimed
    await fails(body(queue, session_factory))


@pytest.mark.parametrize("wall", ["the turn", "the look after an enqueue", "the head room"])
async def test_another_tenant_s_start_behind_a_backlog(
    session_factory: Sessions, wall: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_turn(self: Claimer) -> bool:
        return False

    if wall == "the turn":
        monkeypatch.setattr(Claimer, "claim_in_turn", no_turn)
    elif wall == "the head room":
        monkeypatch.setattr(lane, "_HEAD_ROOM", 0)
    else:
        monkeypatch.setattr(Worker, "wake", lambda self: self._claimer.wake())
    body = test_fairness.test_another_tenants_job_starts_at_once_although_one_holds_all_slots_and_the_backlog
    monkeypatch.setattr(test_fairness, "SOON_SECONDS", 1.0)
    await fails(body(session_factory, monkeypatch))
