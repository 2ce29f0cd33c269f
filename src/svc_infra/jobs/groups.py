"""Groups: jobs that belong together, and jobs that wait until all of a group have finished.

A job enqueued with ``waits_for=group_id`` is not claimed while a job of that group (``group_id=group_id``) is
waiting or running. Enqueue the group and what waits for it in one transaction: a group without jobs has
finished. A chain is a row of groups of one job each, every job waiting for the group of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from svc_infra.db.base import new_id
from svc_infra.jobs.job import JobState
from svc_infra.jobs.queue import StoredJob
from svc_infra.jobs.rows import job_from_row
from svc_infra.jobs.statements import JOB_COLUMNS, jobs


@dataclass(frozen=True, slots=True)
class GroupResult:
    """How the jobs of a group stand: how many in each state, and those that failed, oldest first."""

    counts: dict[JobState, int]
    failed: list[StoredJob]

    @property
    def has_finished(self) -> bool:
        """Whether nothing of the group waits or runs."""
        return not (self.counts.get(JobState.AVAILABLE) or self.counts.get(JobState.RUNNING))


def new_group() -> str:
    """Return the id of a new group."""
    return new_id()


def group_result(session: Session, group_id: str) -> GroupResult:
    """Return how the group stands; for the job that waited for it, this is what became of it.

    Jobs that were pruned are not counted: by default completed ones are kept for a day, failed ones longer.
    """
    is_member = jobs.c.group_id == group_id
    by_state = select(jobs.c.state, func.count()).where(is_member).group_by(jobs.c.state)
    counts = {JobState(state): count for state, count in session.execute(by_state)}
    ended_badly = jobs.c.state.in_([JobState.DISCARDED.value, JobState.CANCELLED.value])
    query = select(*JOB_COLUMNS, jobs.c.state, jobs.c.finished_at).where(is_member, ended_badly)
    failed = [
        StoredJob(job_from_row(row[:-2], None), JobState(row.state), None, row.finished_at)
        for row in session.execute(query.order_by(jobs.c.id))
    ]
    return GroupResult(counts, failed)
