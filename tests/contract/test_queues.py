"""The queue contract on memory, SQLite and PostgreSQL, and what only one of them does."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from time import process_time
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.clock import FixedClock
from svc_infra.exceptions import NotInTransaction
from svc_infra.jobs import InMemoryJobQueue, JobRequest, JobState, SqlJobQueue
from svc_infra.jobs.rows import complete_jobs
from svc_infra.jobs.statements import ClaimFilters, claim_by
from tests.contract.queue_contract import EXPIRED, NOW, QueueContract, Sessions, clock, ended, state_of

__all__ = ["clock"]  # a fixture of the contract


_PLANS = "hashjoin mergejoin hashagg sort material memoize indexscan indexonlyscan bitmapscan".split()


@pytest.mark.sqlite_only
class TestMemoryQueue(QueueContract):
    """The memory queue, with sessions of a SQLite database to bind it to."""

    @pytest.fixture
    def queue(self, clock: FixedClock) -> InMemoryJobQueue:
        return InMemoryJobQueue(clock=clock)

    async def test_without_a_session_a_job_is_enqueued_at_once(self, queue: InMemoryJobQueue) -> None:
        job = queue.enqueue("n", {"a": 1}, delay_seconds=5)
        assert [stored.job for stored in queue.jobs] == [job]
        assert await queue.claim(1) == []
        assert [claimed.id for claimed in await queue.claim(1, now=NOW + timedelta(seconds=5))] == [job.id]

    async def test_draining_the_memory_queue_takes_time_in_proportion(self) -> None:
        """A walk over all jobs for each would cost 64 times as much for 8 times the jobs."""
        few, many = [min([await self._drained(count) for _ in range(3)]) for count in (500, 4_000)]
        assert many < 24 * few

    async def _drained(self, count: int) -> float:
        queue = InMemoryJobQueue(clock=FixedClock(NOW))
        for _ in range(count):
            queue.enqueue("n")
        began = process_time()
        while claimed := await queue.claim(1):
            await queue.finish([ended(claimed[0])])
        return process_time() - began


class TestSqlQueue(QueueContract):
    """The durable queue."""

    @pytest.fixture
    def queue(self, session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
        return SqlJobQueue(session_factory, clock=clock)

    async def test_an_unbound_enqueue_says_what_to_do(self, queue: SqlJobQueue) -> None:
        with pytest.raises(NotInTransaction, match=r"queue\.bind\(session\)"):
            queue.enqueue("n", {})

    async def test_many_jobs_are_enqueued_in_the_callers_transaction(
        self, queue: SqlJobQueue, session_factory: Sessions
    ) -> None:
        requests = [
            JobRequest("n", {"n": number, "text": "é\u2028", "nothing": None}, tenant_id="t", max_attempts=3)
            for number in range(1_000)
        ]
        later = JobRequest("n", run_at=NOW + timedelta(hours=1), priority=-5)
        async with session_factory() as session:
            await queue.enqueue_many(session, requests)
            await session.rollback()
            ids = await queue.enqueue_many(session, [*requests, later])
            assert await queue.enqueue_many(session, []) == []
            await session.commit()
        claimed = await queue.claim(2_000)
        assert [job.id for job in claimed] == ids[:-1]
        assert [job.payload for job in claimed] == [request.payload for request in requests]
        assert {(job.tenant_id, job.max_attempts) for job in claimed} == {("t", 3)}
        assert [job.id for job in await queue.claim(9, now=NOW + timedelta(hours=1))] == ids[-1:]

    async def test_many_jobs_with_one_payload_have_it_as_it_was_given(
        self, queue: SqlJobQueue, session_factory: Sessions
    ) -> None:
        async with session_factory.begin() as session:
            await queue.enqueue_many(session, [JobRequest("n", {"day": "2026-03-01"})] * 2)
        assert [job.payload for job in await queue.claim(9)] == [{"day": "2026-03-01"}] * 2

    @pytest.mark.parametrize("has_start", [False, True])
    async def test_the_claim_uses_the_index_of_due_jobs(
        self,
        queue: SqlJobQueue,
        session_factory: Sessions,
        engine: AsyncEngine,
        target: str,
        has_start: bool,
    ) -> None:
        async with session_factory() as session:
            await queue.enqueue_many(session, [JobRequest("n") for _ in range(2_000)])
            await session.commit()
        explain = "EXPLAIN QUERY PLAN " if target == "sqlite" else "EXPLAIN "

        def explained(connection: object, cursor: object, sql: str, *rest: Any) -> tuple[str, Any]:
            return explain + sql, rest[0]

        async with engine.connect() as connection:
            if target == "postgres":
                await connection.execute(text("ANALYZE jobs"))
                await connection.execute(text("SET plan_cache_mode = force_generic_plan"))
            event.listen(connection.sync_connection, "before_cursor_execute", explained, retval=True)
            parameters = {"limit": 9, "now": NOW, "lease_id": "x", "lease_seconds": 9.0, "names": ["n"]}
            if has_start:
                parameters |= {"start_priority": 0, "start_run_at": NOW, "start_id": "x"}
            result = await connection.execute(claim_by(ClaimFilters(True, False), has_start), parameters)
            plan = str(result.cursor.fetchall())
            if has_start:
                assert re.search(r"Index Cond: \(\(ROW\(|\(priority,run_at,id\)>", plan), plan
        assert "ix_jobs_available" in plan
        assert "Seq Scan on jobs" not in plan
        assert not re.search(r"SCAN (jobs|head)(?! USING INDEX ix_jobs_available)", plan), plan

    @pytest.mark.postgres_only
    async def test_a_claim_leases_its_limit_under_any_plan(
        self, queue: SqlJobQueue, session_factory: Sessions
    ) -> None:
        async with session_factory() as session:
            await queue.enqueue_many(session, [JobRequest("n") for _ in range(200)])
            await session.commit()
        async with session_factory() as session:
            # Nested loops alone: a sub-select that is run again for every row chooses other rows each time.
            for plan in _PLANS:
                await session.execute(text(f"SET LOCAL enable_{plan} = off"))
            parameters = {"limit": 2, "now": NOW, "lease_id": "x", "lease_seconds": 9.0}
            rows = (await session.execute(claim_by(ClaimFilters(), False), parameters)).all()
        assert len(rows) == 2

    @pytest.mark.postgres_only
    async def test_a_finish_that_is_not_committed_yet_holds_up_no_other_lease(
        self, queue: SqlJobQueue, session_factory: Sessions
    ) -> None:
        async with session_factory() as session:
            await queue.enqueue_many(session, [JobRequest("n"), JobRequest("n")])
            await session.commit()
        finishing, other = await queue.claim(2, lease_seconds=EXPIRED)
        async with session_factory() as session:
            await session.execute(text("SET LOCAL lock_timeout = '1s'"))
            await session.run_sync(lambda sync: complete_jobs(sync, [finishing], now=NOW))
            async with asyncio.timeout(5):
                assert await queue.extend([finishing, other], lease_seconds=EXPIRED) == {other.id}
                assert await queue.rescue() == (1, 0), "a job that is being finished must not be rescued"
            await session.commit()
        assert await state_of(queue, finishing) is JobState.COMPLETED
