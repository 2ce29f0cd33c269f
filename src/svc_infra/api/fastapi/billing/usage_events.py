"""Recorded usage over HTTP: lists of events and totals, what became of an event, and correcting it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.access import AppClock, Limits, PathId, Reader, Writer, record
from svc_infra.api.fastapi.billing.usage_bodies import (
    AggregateBody,
    Amended,
    AmendUsage,
    CorrectionBody,
    EventBody,
    RejectionBody,
    TraceBody,
    VoidUsage,
)
from svc_infra.api.fastapi.billing.usage_intake import Metric
from svc_infra.api.fastapi.fields import InstantIn
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.billing.models import UsageAggregate
from svc_infra.billing.usage_corrections import amend_usage, void_usage
from svc_infra.billing.usage_listing import list_aggregates, list_events
from svc_infra.billing.usage_rejections import list_rejections
from svc_infra.billing.usage_state import usage_state
from svc_infra.canonical import canonical_instant

_NO_EVENT = refusals(_404="The tenant has no such event.")
_CANNOT = refusals(_404="The tenant has no such event.", _409="The event was amended otherwise already.")


def usage_events_router() -> APIRouter:
    """Make the routes of recorded usage."""
    router = APIRouter(route_class=UnitOfWorkRoute, tags=["usage"])
    reads = (
        ("/aggregates", read_aggregates, "billing_list_aggregates", None),
        ("/usage/events", read_events, "billing_list_usage_events", None),
        ("/usage/rejections", read_rejections, "billing_list_usage_rejections", None),
        ("/usage/events/{event_id}", read_event, "billing_trace_usage_event", _NO_EVENT),
    )
    for path, read, operation_id, responses in reads:
        router.add_api_route(path, read, methods=["GET"], operation_id=operation_id, responses=responses)
    router.add_api_route(
        "/usage/events/{event_id}/void",
        void,
        methods=["POST"],
        operation_id="billing_void_usage_event",
        responses=_CANNOT,
    )
    router.add_api_route(
        "/usage/events/{event_id}/amend",
        amend,
        methods=["POST"],
        operation_id="billing_amend_usage_event",
        responses=_CANNOT,
    )
    return router


async def read_aggregates(
    principal: Reader,
    session: UnitSession,
    paging: Paging,
    metric: Annotated[Metric | None, Query(description="Only of this metric.")] = None,
    since: Annotated[InstantIn | None, Query(description="Days that begin then or later.")] = None,
    until: Annotated[InstantIn | None, Query(description="Days that begin earlier.")] = None,
) -> Page[AggregateBody]:
    """List the daily totals of all metrics, in the order of metrics and days."""

    def page(sync_session: Session) -> Page[AggregateBody]:
        position = paging.position(sync_session)
        after = None if position is None else (position[0], datetime.fromisoformat(position[1]))
        found = list_aggregates(
            sync_session,
            principal.tenant_id,
            metric=metric,
            since=since,
            until=until,
            after=after,
            limit=paging.reach,
        )
        return paging.cut(sync_session, found, item=AggregateBody.model_validate, key=_key_of_day)

    return await session.run_sync(page)


async def read_events(
    principal: Reader,
    session: UnitSession,
    paging: Paging,
    metric: Annotated[Metric, Query(examples=["tokens"])],
    since: Annotated[InstantIn | None, Query(description="Events at this instant or later.")] = None,
    until: Annotated[InstantIn | None, Query(description="Events before this instant.")] = None,
) -> Page[EventBody]:
    """List the recorded events of a metric in the order of their instants, corrected ones among them."""

    def page(sync_session: Session) -> Page[EventBody]:
        position = paging.position(sync_session)
        after = None if position is None else (datetime.fromisoformat(position[0]), position[1])
        found = list_events(
            sync_session,
            principal.tenant_id,
            metric,
            since=since,
            until=until,
            after=after,
            limit=paging.reach,
        )
        return paging.cut(
            sync_session, found, item=EventBody.of, key=lambda row: [canonical_instant(row.at_ts), row.id]
        )

    return await session.run_sync(page)


async def read_rejections(principal: Reader, session: UnitSession, paging: Paging) -> Page[RejectionBody]:
    """List the events that were refused, with their reasons, in the order they came."""

    def page(sync_session: Session) -> Page[RejectionBody]:
        position = paging.position(sync_session)
        after = None if position is None else (datetime.fromisoformat(position[0]), position[1])
        found = list_rejections(sync_session, tenant_id=principal.tenant_id, after=after, limit=paging.reach)
        return paging.cut(
            sync_session,
            found,
            item=RejectionBody.model_validate,
            key=lambda row: [canonical_instant(row.created_at), row.id],
        )

    return await session.run_sync(page)


async def read_event(event_id: PathId, principal: Reader, session: UnitSession) -> TraceBody:
    """Say what became of an event, and name the lines that bill it."""
    return TraceBody.of_state(await session.run_sync(usage_state, principal.tenant_id, event_id))


async def void(
    event_id: PathId, why: VoidUsage, principal: Writer, session: UnitSession, clock: AppClock
) -> CorrectionBody:
    """Take an event out of what is counted and billed from now on; again, the first correction stays."""
    now = clock.now()

    def act(sync_session: Session) -> CorrectionBody:
        correction = void_usage(
            sync_session, principal.tenant_id, event_id, reason=why.reason, actor=principal.actor, now=now
        )
        record(sync_session, principal, "void_usage_event", event_id, now=now, reason=why.reason)
        return CorrectionBody.model_validate(correction)

    return await session.run_sync(act)


async def amend(
    event_id: PathId,
    right: AmendUsage,
    principal: Writer,
    session: UnitSession,
    clock: AppClock,
    limits: Limits,
) -> Amended:
    """Replace an event by one with another amount, instant or metadata."""
    now = clock.now()

    def act(sync_session: Session) -> Amended:
        replacement_id = amend_usage(
            sync_session,
            principal.tenant_id,
            event_id,
            reason=right.reason,
            actor=principal.actor,
            now=now,
            amount=right.amount,
            at=right.at,
            metadata=right.metadata,
            limits=limits,
        )
        detail = {"reason": right.reason, "replacement_id": replacement_id}
        record(sync_session, principal, "amend_usage_event", event_id, now=now, **detail)
        return Amended(replacement_id=replacement_id)

    return await session.run_sync(act)


def _key_of_day(row: UsageAggregate) -> list[str]:
    return [row.metric, canonical_instant(row.period_start)]
