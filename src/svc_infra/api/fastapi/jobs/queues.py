"""Queues over HTTP: what is in each, paused and resumed; and what was done to jobs, queues and schedules."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import Field
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.fields import Answer, Id, InstantText, Text
from svc_infra.api.fastapi.jobs.access import AppClock, QueueName, Reader, Writer
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.jobs.acts import AdminAct, list_acts
from svc_infra.jobs.overview import overview
from svc_infra.jobs.pausing import pause_queue, resume_queue

router = APIRouter(route_class=UnitOfWorkRoute, tags=["queues"])

QueuePath = Annotated[QueueName, Path(examples=["default"])]


class Queue(Answer):
    """A queue: what is due (since when), what waits for its time, what runs, what it completes a minute."""

    name: str
    due: int
    oldest_due_at: InstantText | None
    scheduled: int
    running: int
    completed_per_minute: int
    paused_at: InstantText | None


class QueueList(Answer):
    """The queues that have unfinished jobs, finished some in the last minute, or are paused; by name."""

    items: list[Queue]


class QueueSwitched(Answer):
    """Whether jobs of the queue may be claimed."""

    name: str
    is_paused: bool


class AdminActShown(Answer):
    """What somebody did to a job, a queue, a schedule or a key, and when."""

    id: Id
    at: InstantText
    actor: str
    act: str
    subject: str
    detail: dict[str, Any]


@router.get("/queues", operation_id="jobs_list_queues")
async def list_all(_: Reader, session: UnitSession, clock: AppClock) -> QueueList:
    """List the queues with their figures."""
    found = await session.run_sync(overview, now=clock.now())
    return QueueList(items=[Queue.model_validate(queue) for queue in found.queues])


@router.post("/queues/{queue}/pause", operation_id="jobs_pause_queue")
async def pause(queue: QueuePath, principal: Writer, session: UnitSession, clock: AppClock) -> QueueSwitched:
    """Let no worker claim jobs of this queue until it is resumed. Jobs that run end."""
    await session.run_sync(pause_queue, queue, actor=principal.actor, now=clock.now())
    return QueueSwitched(name=queue, is_paused=True)


@router.post("/queues/{queue}/resume", operation_id="jobs_resume_queue")
async def resume(queue: QueuePath, principal: Writer, session: UnitSession, clock: AppClock) -> QueueSwitched:
    """Let the jobs of this queue be claimed again."""
    await session.run_sync(resume_queue, queue, actor=principal.actor, now=clock.now())
    return QueueSwitched(name=queue, is_paused=False)


@router.get("/acts", operation_id="jobs_list_acts", tags=["acts"])
async def acts(
    _: Reader,
    session: UnitSession,
    paging: Paging,
    subject: Annotated[
        Annotated[Text, Field(max_length=255, description="An id or a name; all without it.")] | None,
        Query(),
    ] = None,
) -> Page[AdminActShown]:
    """List who did what by hand, newest first."""

    def page(sync: Session) -> Page[AdminActShown]:
        found = list_acts(sync, subject=subject, before=paging.last_id(sync), limit=paging.reach)
        return paging.cut(sync, found, item=_act, key=lambda act: [act.id])

    return await session.run_sync(page)


def _act(act: AdminAct) -> AdminActShown:
    return AdminActShown(
        id=act.id, at=act.at, actor=act.actor, act=act.act, subject=act.subject, detail=dict(act.detail)
    )
