"""The queue and the scheduler against a model in a few dicts: whatever is done in whatever order, they agree.

Hypothesis chooses the steps, the same ones in every run. Leases are given up by hand where time would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import literal_column, text
from sqlalchemy.exc import IntegrityError

from svc_infra.clock import FixedClock
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.exceptions import InvalidAct
from svc_infra.jobs import Cancel, Complete, Discard, Job, Retry, Snooze, SqlJobQueue, statements
from svc_infra.jobs.administration import cancel_job
from svc_infra.jobs.job import DEFAULT_MAX_ATTEMPTS
from svc_infra.jobs.pausing import pause_queue, resume_queue
from svc_infra.jobs.schedule_store import SqlScheduleStore
from svc_infra.jobs.scheduler import Schedule, Scheduler
from svc_infra.jobs.timing import Every
from svc_infra.jobs.uniqueness import Unique
from tests.contract.queue_contract import ended

T = TypeVar("T")
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
MAX_ATTEMPTS = 3
OUTCOMES = [Complete(), Retry(MINUTE), Retry(timedelta(0)), Snooze(MINUTE), Discard("no"), Cancel("no")]
TABLES = ("jobs", "queues", "schedules", "cron_fires", "job_cancellations", "admin_acts")
EXAMPLES, STEPS = 10, 30


@dataclass
class Model:
    """One job as it should be."""

    id: str
    run_at: datetime
    priority: int = 0
    queue: str = "a"
    key: str | None = None
    state: str = "available"
    attempt: int = 0
    max_attempts: int = MAX_ATTEMPTS
    rescues: int = 0
    lease_id: str | None = None
    is_expired: bool = False
    is_unwanted: bool = False

    def ends(self, state: str) -> None:
        self.state, self.lease_id, self.is_expired = state, None, False
        if state == "available" and self.is_unwanted:
            self.state = "cancelled"


class Jobs(RuleBasedStateMachine):
    """Steps on both; a subclass says on which database."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.engine = make_engine(self.url)
        self.sessions = make_session_factory(self.engine)
        self.clock = FixedClock(START)
        self.queue = SqlJobQueue(self.sessions, clock=self.clock)
        minutely = Schedule("minutely", Every(60), "tick", queue="a")
        self.scheduler = Scheduler(SqlScheduleStore(self.sessions), [minutely], clock=self.clock)
        self.jobs: dict[str, Model] = {}
        self.claims: list[Job] = []
        self.paused: set[str] = set()
        self.fired_until: datetime | None = None
        self.do(self._sql(*(f"DELETE FROM {table}" for table in TABLES)))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.do(self.engine.dispose())
        self.loop.close()

    async def _sql(self, *statements: str, **parameters: Any) -> list[Any]:
        async with self.sessions.begin() as session:
            for statement in statements:
                result = await session.execute(text(statement), parameters)
            return list(result) if result.returns_rows else []

    async def _act(self, act: Any, *arguments: Any) -> Any:
        async with self.sessions.begin() as session:
            return await session.run_sync(
                lambda sync: act(sync, *arguments, actor="ann", now=self.clock.now())
            )

    def _add(self, job_id: str, **fields: Any) -> None:
        self.jobs[job_id] = Model(job_id, **{"run_at": self.clock.now(), **fields})

    @rule(
        priority=st.integers(0, 2),
        delay=st.sampled_from([0, 0, 60]),
        queue=st.sampled_from("ab"),
        keeps=st.sampled_from([True, True, False]),
    )
    def enqueue(self, priority: int, delay: int, queue: str, keeps: bool) -> None:
        async def enqueue() -> str:
            async with self.sessions() as session:
                job = self.queue.bind(session).enqueue(
                    "n", priority=priority, delay_seconds=delay, queue=queue, max_attempts=MAX_ATTEMPTS
                )
                await (session.commit() if keeps else session.rollback())
                return job.id

        job_id = self.do(enqueue())
        if keeps:
            run_at = self.clock.now() + timedelta(seconds=delay)
            self._add(job_id, run_at=run_at, priority=priority, queue=queue)

    @rule(key=st.sampled_from("kl"))
    def enqueue_unique(self, key: str) -> None:
        async def enqueue() -> tuple[str, bool]:
            async with self.sessions.begin() as session:
                made = await self.queue.enqueue_unique(
                    session, "n", queue="a", max_attempts=MAX_ATTEMPTS, unique=Unique(key)
                )
                return made.job.id, made.is_new

        job_id, is_new = self.do(enqueue())
        there = [
            job for job in self.jobs.values() if job.key == key and job.state in ("available", "running")
        ]
        assert (is_new, len(there)) in [(True, 0), (False, 1)]
        if is_new:
            self._add(job_id, key=key)
        else:
            assert there[0].id == job_id

    @rule(limit=st.integers(1, 4))
    def claim(self, limit: int) -> None:
        claimed = self.do(self.queue.claim(limit))
        due = sorted(
            (
                job
                for job in self.jobs.values()
                if job.state == "available"
                and job.run_at <= self.clock.now()
                and job.queue not in self.paused
            ),
            key=lambda job: (job.priority, job.run_at, job.id),
        )[:limit]
        # A rescued job is claimed alone.
        expected = due[:1] if due and due[0].rescues else [job for job in due if not job.rescues]
        assert [job.id for job in claimed] == [job.id for job in expected]
        for job, model in zip(claimed, expected, strict=True):
            model.state, model.lease_id, model.attempt = "running", job.lease_id, model.attempt + 1
        self.claims += claimed

    def _held(self, job: Job) -> Model | None:
        model = self.jobs[job.id]
        return model if model.lease_id == job.lease_id else None

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def finish(self, data: st.DataObject, outcome: Any) -> None:
        job = data.draw(st.sampled_from(self.claims))
        finish = ended(job, outcome, now=self.clock.now())
        model = self._held(job)
        assert self.do(self.queue.finish([finish])) == ({job.id} if model else set())
        if model is not None:
            end = finish.transition
            model.attempt = end.attempt
            model.run_at = end.run_at or model.run_at
            model.ends(end.state.value)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.claims))
        model = self._held(job)
        assert self.do(self.queue.extend([job], lease_seconds=3600)) == ({job.id} if model else set())
        if model is not None:
            model.is_expired = False

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.claims))
        model = self._held(job)
        assert self.do(self.queue.release([job])) == ({job.id} if model else set())
        if model is not None:
            model.attempt -= 1
            model.ends("available")

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """The worker of a claim dies, and its lease runs out."""
        job = data.draw(st.sampled_from(self.claims))
        model = self._held(job)
        if model is not None:
            model.is_expired = True
            self.do(self._sql("UPDATE jobs SET lease_until = created_at WHERE id = :id", id=job.id))

    @rule()
    def rescue(self) -> None:
        expired = [job for job in self.jobs.values() if job.is_expired]
        worn_out = [job for job in expired if job.attempt >= job.max_attempts]
        assert self.do(self.queue.rescue()) == (len(expired) - len(worn_out), len(worn_out))
        for job in expired:
            job.rescues += 1
            job.ends("discarded" if job in worn_out else "available")

    @rule(name=st.sampled_from("ab"), is_pause=st.booleans())
    def pause_or_resume(self, name: str, is_pause: bool) -> None:
        self.do(self._act(pause_queue if is_pause else resume_queue, name))
        (self.paused.add if is_pause else self.paused.discard)(name)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        model = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        if model.state in ("available", "running"):
            assert self.do(self._act(cancel_job, model.id)) == model.state
            model.is_unwanted = True
            if model.state == "available":
                model.ends("cancelled")
        else:
            with pytest.raises(InvalidAct):
                self.do(self._act(cancel_job, model.id))

    @rule(seconds=st.sampled_from([1, 59, 61, 200, -30]))
    def move_the_clock(self, seconds: int) -> None:
        self.clock.advance(timedelta(seconds=seconds))

    @rule()
    def tick(self) -> None:
        now = self.clock.now()
        due = []
        if self.fired_until is None:
            self.fired_until = now
        elif now > self.fired_until:
            due = list(Every(60).fires_between(self.fired_until, now))
            self.fired_until = now
        assert self.do(self.scheduler.tick()) == len(due)
        rows = self.do(self._sql("SELECT id FROM jobs WHERE name = 'tick' ORDER BY run_at, id"))
        new = [job_id for (job_id,) in rows if job_id not in self.jobs]
        assert len(new) == len(due)
        for job_id, fire_at in zip(new, due, strict=True):
            self._add(job_id, run_at=fire_at, max_attempts=DEFAULT_MAX_ATTEMPTS)

    @invariant()
    def both_agree(self) -> None:
        rows = self.do(self._sql("SELECT id, state, attempt, rescues, lease_id FROM jobs"))
        stored = {row.id: (row.state, row.attempt, row.rescues, row.lease_id) for row in rows}
        assert stored == {
            job.id: (job.state, job.attempt, job.rescues, job.lease_id) for job in self.jobs.values()
        }


def run(database_url: str, *, phases: Sequence[Phase] = tuple(Phase)) -> None:
    class Machine(Jobs):
        url = database_url

    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=phases,
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(Machine, settings=chosen)


def test_queue_and_scheduler_do_what_the_model_does(database_url: str) -> None:
    run(database_url)


@pytest.mark.sqlite_only
def test_the_model_finds_a_rescue_that_gives_an_attempt_back(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(statements._NO_LEASE, "attempt", literal_column("0"))
    statements.rescue_statement.cache_clear()
    try:
        with pytest.raises((AssertionError, IntegrityError)):
            run(database_url, phases=[Phase.generate])
    finally:
        statements.rescue_statement.cache_clear()
