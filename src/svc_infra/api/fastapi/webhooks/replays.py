"""Replays over HTTP: send an endpoint again what was published in a span of time."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from fastapi import APIRouter, Body, Query
from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.fields import Answer, Id, InstantIn, InstantText, RequestBody, Text
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.api.fastapi.webhooks.access import AppClock, Reader, Writer
from svc_infra.webhooks.replay import (
    DEFAULT_RATE_PER_SECOND,
    cancel_replay,
    get_replay,
    list_replays,
    start_replay,
)

router = APIRouter(route_class=UnitOfWorkRoute, tags=["webhook replays"])
_MISSING = refusals(_404="The tenant has no such replay.")
_State = Literal["delivered", "dead", "held", "missing"]


class NewReplay(RequestBody):
    """What to send again: from ``since`` (without it everything that is kept) to ``until`` (now).

    ``states`` are those of the deliveries there were; ``missing`` is a message that never had one. Only what
    the endpoint wants is sent, and of that only ``topics`` if they are given.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"since": "2025-01-01T00:00:00Z", "states": ["dead"]}]}
    )

    since: InstantIn | None = None
    until: InstantIn | None = None
    states: Annotated[list[_State], Field(min_length=1, max_length=4)] = Field(
        default_factory=lambda: list(get_args(_State))
    )
    topics: Annotated[list[Annotated[Text, Field(max_length=200)]], Field(max_length=100)] = Field(
        default_factory=list
    )
    rate_per_second: Annotated[float, Field(ge=0.1, le=10_000)] = DEFAULT_RATE_PER_SECOND


class Replay(Answer):
    """A replay; ``queued`` is how much was made due so far."""

    id: Id
    endpoint_id: str
    state: Literal["running", "completed", "cancelled"]
    since: InstantText | None
    until: InstantText
    states: list[str]
    topics: list[str]
    rate_per_second: float
    queued: int
    created_at: InstantText
    finished_at: InstantText | None


@router.post(
    "/endpoints/{endpoint_id}/replays",
    status_code=202,
    operation_id="webhooks_start_replay",
    responses=refusals(_404="The tenant has no such endpoint."),
)
async def start(
    endpoint_id: Id,
    principal: Writer,
    session: UnitSession,
    clock: AppClock,
    replay: Annotated[NewReplay, Body()] = NewReplay(),  # noqa: B008  # never changed
) -> Replay:
    """Begin a replay to an endpoint. The workers do it, also after a restart."""

    def apply(sync: Session) -> Replay:
        started = start_replay(
            sync,
            endpoint_id,
            now=clock.now(),
            since=replay.since,
            until=replay.until,
            states=replay.states,
            topics=replay.topics,
            rate_per_second=replay.rate_per_second,
            tenant_id=principal.tenant_id,
            actor=principal.actor,
        )
        return Replay.model_validate(started)

    return await session.run_sync(apply)


@router.get("/replays", operation_id="webhooks_list_replays")
async def list_all(
    principal: Reader,
    session: UnitSession,
    paging: Paging,
    endpoint_id: Annotated[Id | None, Query()] = None,
) -> Page[Replay]:
    """List replays to the tenant's endpoints, newest first."""

    def page(sync: Session) -> Page[Replay]:
        found = list_replays(
            sync,
            tenant_id=principal.tenant_id,
            endpoint_id=endpoint_id,
            before=paging.last_id(sync),
            limit=paging.reach,
        )
        return paging.cut(sync, found, item=Replay.model_validate, key=lambda replay: [replay.id])

    return await session.run_sync(page)


@router.get("/replays/{replay_id}", operation_id="webhooks_get_replay", responses=_MISSING)
async def get(replay_id: Id, principal: Reader, session: UnitSession) -> Replay:
    """Return one replay."""
    found = await session.run_sync(get_replay, replay_id, tenant_id=principal.tenant_id)
    return Replay.model_validate(found)


@router.post("/replays/{replay_id}/cancel", operation_id="webhooks_cancel_replay", responses=_MISSING)
async def cancel(replay_id: Id, principal: Writer, session: UnitSession, clock: AppClock) -> Replay:
    """End a replay; what it has made due already is sent."""
    cancelled = await session.run_sync(
        cancel_replay, replay_id, now=clock.now(), tenant_id=principal.tenant_id, actor=principal.actor
    )
    return Replay.model_validate(cancelled)
