"""Usage over HTTP: recorded once per idempotency key, alone, in batches or as a stream; read as totals."""

from __future__ import annotations

import json
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from pydantic import BaseModel
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.access import AppClock, Gatherer, Limits, Reader, Sessions, Writer
from svc_infra.api.fastapi.billing.usage_intake import (
    Intake,
    Metric,
    UsageIn,
    UsageResult,
    count,
    event_of,
    id_of,
    record_read,
)
from svc_infra.api.fastapi.billing.usage_stream import UsageStream
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.route import ApiRoute, refusals
from svc_infra.api.fastapi.unit_of_work import KeyedSession, UnitOfWorkRoute, UnitSession
from svc_infra.billing.aggregation import DailyAggregate, list_daily
from svc_infra.canonical import canonical_decimal, canonical_instant

MAX_BATCH = 1_000


class UsageAccepted(BaseModel):
    """The id of the event that the idempotency key was first used for."""

    id: str


class UsageBatchResult(BaseModel):
    """What became of each event, in the order of the batch, and how many of each."""

    inserted: int
    duplicate: int
    conflict: int
    invalid: int
    results: list[UsageResult]


class UsageStreamResult(BaseModel):
    """How many events of the stream became what, and the first 100 that were not recorded, by their line."""

    lines: int
    inserted: int
    duplicate: int
    conflict: int
    invalid: int
    errors: list[UsageResult]


class UsageTotal(BaseModel):
    """One day's total quantity of a metric, a decimal string."""

    period_start: str
    granularity: str
    metric: str
    total: str


def usage_router() -> APIRouter:
    """Make the routes of usage."""
    router = APIRouter(route_class=UnitOfWorkRoute, tags=["usage"])
    router.add_api_route(
        "/usage",
        record_usage,
        methods=["POST"],
        status_code=202,
        operation_id="billing_record_usage",
        responses=refusals(_409="The idempotency_key was used for another event."),
    )
    router.add_api_route(
        "/usage/batch", record_batch, methods=["POST"], operation_id="billing_record_usage_batch"
    )
    router.add_api_route(
        "/usage/stream",
        record_stream,
        methods=["POST"],
        operation_id="billing_record_usage_stream",
        route_class_override=ApiRoute,
        openapi_extra=_NDJSON,
    )
    router.add_api_route("/usage", list_usage, methods=["GET"], operation_id="billing_list_usage")
    return router


async def record_usage(
    usage: UsageIn,
    principal: Writer,
    session: KeyedSession,
    gatherer: Gatherer,
    sessions: Sessions,
    clock: AppClock,
    limits: Limits,
) -> UsageAccepted:
    """Record a usage event; the answer is sent after the commit.

    The same ``idempotency_key`` with the same payload answers with the first event's id, with another
    payload 409. Without ``at`` it happened now, and a repetition without ``at`` is the same event. What comes
    at once may share a transaction.
    """
    if session is None:
        return UsageAccepted(id=await gatherer.record(usage, principal.tenant_id, sessions))
    now = clock.now()
    event = event_of(usage, principal.tenant_id, now)
    [recorded] = await session.run_sync(record_read, [(usage, event)], now=now, limits=limits)
    return UsageAccepted(id=id_of(recorded))


async def record_batch(
    events: Annotated[list[Any], Body(max_length=MAX_BATCH, examples=[[UsageIn.EXAMPLE]])],
    principal: Writer,
    session: UnitSession,
    clock: AppClock,
    limits: Limits,
) -> UsageBatchResult:
    """Record up to 1,000 events in one transaction and say what became of each.

    An event that is invalid or whose key has another payload is not recorded; the others are.
    """
    intake, now = Intake(), clock.now()
    for place, value in enumerate(events):
        intake.add(place, partial(UsageIn.model_validate, value), principal.tenant_id, now)
    recorded = await session.run_sync(record_read, intake.read, now=now, limits=limits)
    intake.refuse(recorded)
    taken = [
        UsageResult(index=place, outcome=each.outcome, id=each.id)
        for place, each in zip(intake.places, recorded, strict=True)
        if each.outcome in ("inserted", "duplicate")
    ]
    results = sorted([*taken, *intake.refused], key=lambda result: result.index)
    return UsageBatchResult(**count(intake, recorded), results=results)


async def record_stream(
    request: Request, principal: Writer, sessions: Sessions, clock: AppClock, limits: Limits
) -> UsageStreamResult:
    """Record a stream of any length, one JSON event per line (NDJSON), committed every 1,000 lines.

    When it breaks off, send it again from the start: what was recorded is a duplicate then.
    """
    stream = UsageStream(principal.tenant_id, sessions, clock, limits)
    return UsageStreamResult(**(await stream.record(request.stream())))


async def list_usage(
    principal: Reader,
    session: UnitSession,
    paging: Paging,
    metric: Annotated[Metric, Query(examples=["tokens"])],
) -> Page[UsageTotal]:
    """List the daily totals of a metric as they were last aggregated."""

    def page(sync_session: Session) -> Page[UsageTotal]:
        position = paging.position(sync_session)
        after = None if position is None else datetime.fromisoformat(position[0])
        days = list_daily(sync_session, principal.tenant_id, metric, after=after, limit=paging.reach)
        return paging.cut(
            sync_session, days, item=_total, key=lambda day: [canonical_instant(day.period_start)]
        )

    return await session.run_sync(page)


def _total(day: DailyAggregate) -> UsageTotal:
    return UsageTotal(
        period_start=canonical_instant(day.period_start),
        granularity=day.granularity,
        metric=day.metric,
        total=canonical_decimal(day.total),
    )


_NDJSON: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {"type": "string", "description": "One event per line."},
                "example": json.dumps(UsageIn.EXAMPLE) + "\n",
            }
        },
    }
}
