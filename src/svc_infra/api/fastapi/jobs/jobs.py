"""Jobs over HTTP: looked at, retried, cancelled, requeued by their error, and purged."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import AfterValidator, ConfigDict, Field, model_validator
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.fields import Answer, Id, InstantIn, InstantText, RequestBody, Text
from svc_infra.api.fastapi.jobs.access import AppClock, Name, QueueName, Reader, Writer
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.jobs import administration
from svc_infra.jobs.groups import group_result
from svc_infra.jobs.job import FINISHED, JobState
from svc_infra.jobs.queue import StoredJob

router = APIRouter(route_class=UnitOfWorkRoute, tags=["jobs"])
_MISSING = refusals(_404="There is no such job.")
_WRONG_STATE = refusals(_404="There is no such job.", _409="The job's state does not allow this.")
_MAX_PURGED = 1_000
_MAX_REQUEUED = 10_000
_FAILED_SHOWN = 100


def _like(pattern: str) -> str:
    # A database reads a last backslash as the beginning of an escape that never ends.
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise ValueError("a backslash at the end escapes nothing")
    return pattern


Like = Annotated[
    Text,
    Field(min_length=1, max_length=500, description="An SQL pattern for the last error: % is any text."),
    AfterValidator(_like),
]


class JobShown(Answer):
    """A job without its payload. ``attempt`` is the number of the current or last one."""

    id: Id
    name: str
    queue: str
    tenant_id: str | None
    state: JobState
    priority: int
    run_at: InstantText
    created_at: InstantText
    finished_at: InstantText | None
    lease_until: InstantText | None
    attempt: int
    max_attempts: int
    rescues: int
    last_error: str | None
    group_id: str | None
    waits_for: str | None


class JobDetail(JobShown):
    """A job with its payload."""

    payload: dict[str, Any]
    metadata: dict[str, Any] | None


class Cancelled(Answer):
    """The state that the job was in. One that ran is ended by its worker at the next beat of its lease."""

    id: Id
    was: JobState


class Requeueing(RequestBody):
    """Which dead letters: those whose last error has this fingerprint, or is like this pattern."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"fingerprint": "0a1b2c3d4e5f"}]})

    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")] | None = None
    error_like: Like | None = None
    name: Name | None = None
    limit: Annotated[int, Field(ge=1, le=_MAX_REQUEUED)] = _MAX_REQUEUED

    @model_validator(mode="after")
    def _says_which(self) -> Requeueing:
        if self.fingerprint is None and self.error_like is None:
            raise ValueError("say which errors: give fingerprint or error_like ('%' is every error)")
        return self


class Purge(RequestBody):
    """Which finished jobs to delete; up to ``limit``, so repeat it while that many were."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"states": ["completed"], "finished_before": "2025-01-01T00:00:00Z"}]}
    )

    states: Annotated[
        list[Literal["completed", "discarded", "cancelled"]], Field(min_length=1, max_length=len(FINISHED))
    ]
    finished_before: InstantIn
    limit: Annotated[int, Field(ge=1, le=_MAX_PURGED)] = _MAX_PURGED


class JobCount(Answer):
    """How many jobs it was."""

    jobs: int


class ErrorGroup(Answer):
    """Dead letters of one error; ``pattern`` has ``#`` for what differs, ``fingerprint`` requeues them."""

    fingerprint: str
    pattern: str
    jobs: int


class ErrorGroupList(Answer):
    """The errors of dead letters, the most frequent first."""

    items: list[ErrorGroup]


class Group(Answer):
    """How the jobs of a group stand, and the first hundred that failed."""

    counts: dict[JobState, int]
    has_finished: bool
    failed: list[JobShown]


@router.get("/jobs", operation_id="jobs_list")
async def list_all(
    _: Reader,
    session: UnitSession,
    paging: Paging,
    state: Annotated[JobState | None, Query()] = None,
    name: Annotated[Name | None, Query()] = None,
    queue: Annotated[QueueName | None, Query()] = None,
    tenant_id: Annotated[Annotated[Text, Field(max_length=255)] | None, Query()] = None,
    error_like: Annotated[Like | None, Query()] = None,
) -> Page[JobShown]:
    """List jobs in the order in which they were enqueued."""

    def page(sync: Session) -> Page[JobShown]:
        found = administration.list_jobs(
            sync,
            state=state,
            name=name,
            queue=queue,
            tenant_id=tenant_id,
            error_like=error_like,
            after=paging.last_id(sync),
            limit=paging.reach,
        )
        return paging.cut(sync, found, item=_shown, key=lambda stored: [stored.job.id])

    return await session.run_sync(page)


@router.get("/jobs/{job_id}", operation_id="jobs_get", responses=_MISSING)
async def get(job_id: Id, _: Reader, session: UnitSession) -> JobDetail:
    """Return one job with its payload."""
    return _detail(await session.run_sync(administration.show_job, job_id))


@router.post("/jobs/{job_id}/retry", operation_id="jobs_retry", responses=_WRONG_STATE)
async def retry(job_id: Id, principal: Writer, session: UnitSession, clock: AppClock) -> JobDetail:
    """Make a dead letter or a waiting job due now; a dead letter gets all its attempts anew."""

    def apply(sync: Session) -> JobDetail:
        administration.retry_job(sync, job_id, actor=principal.actor, now=clock.now())
        return _detail(administration.show_job(sync, job_id))

    return await session.run_sync(apply)


@router.post("/jobs/{job_id}/cancel", operation_id="jobs_cancel", responses=_WRONG_STATE)
async def cancel(job_id: Id, principal: Writer, session: UnitSession, clock: AppClock) -> Cancelled:
    """Cancel a job: one that waits at once, one that runs as soon as its worker hears of it."""
    was = await session.run_sync(administration.cancel_job, job_id, actor=principal.actor, now=clock.now())
    return Cancelled(id=job_id, was=was)


@router.post("/requeue", operation_id="jobs_requeue")
async def requeue(
    requeueing: Requeueing, principal: Writer, session: UnitSession, clock: AppClock
) -> JobCount:
    """Give the dead letters with an error all their attempts anew, due now."""
    count = await session.run_sync(
        administration.requeue_dead, actor=principal.actor, now=clock.now(), **requeueing.model_dump()
    )
    return JobCount(jobs=count)


@router.post("/purge", operation_id="jobs_purge")
async def purge(purge: Purge, principal: Writer, session: UnitSession, clock: AppClock) -> JobCount:
    """Delete finished jobs."""
    finished_before: datetime = purge.finished_before
    count = await session.run_sync(
        administration.purge_jobs,
        actor=principal.actor,
        now=clock.now(),
        states={JobState(state) for state in purge.states},
        finished_before=finished_before,
        limit=purge.limit,
    )
    return JobCount(jobs=count)


@router.get("/errors", operation_id="jobs_list_errors")
async def list_errors(
    _: Reader, session: UnitSession, name: Annotated[Name | None, Query()] = None
) -> ErrorGroupList:
    """Count the dead letters by error, the most frequent first."""
    groups = await session.run_sync(administration.error_groups, name=name)
    return ErrorGroupList(items=[ErrorGroup.model_validate(group) for group in groups])


@router.get("/groups/{group_id}", operation_id="jobs_get_group")
async def get_group(group_id: Id, _: Reader, session: UnitSession) -> Group:
    """Say how the jobs of a group stand. A group without jobs has finished; pruned ones are not counted."""
    result = await session.run_sync(group_result, group_id)
    return Group(
        counts=result.counts,
        has_finished=result.has_finished,
        failed=[_shown(stored) for stored in result.failed[:_FAILED_SHOWN]],
    )


def _shown(stored: StoredJob) -> JobShown:
    return JobShown(**_fields(stored))


def _detail(stored: StoredJob) -> JobDetail:
    return JobDetail(**_fields(stored), payload=stored.job.payload, metadata=stored.job.metadata)


def _fields(stored: StoredJob) -> dict[str, Any]:
    job = stored.job
    own = ("state", "finished_at", "lease_until")
    of_job = {name: getattr(job, name) for name in JobShown.model_fields if name not in own}
    return {**of_job, **{name: getattr(stored, name) for name in own}}
