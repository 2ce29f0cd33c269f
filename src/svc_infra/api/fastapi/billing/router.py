"""Usage over HTTP: recorded once per idempotency key, read back as daily totals."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.dependencies import (
    Principal,
    SessionFactory,
    get_clock,
    get_session_factory,
    require_scope,
)
from svc_infra.api.fastapi.middleware.errors.handlers import ProblemRoute
from svc_infra.billing.aggregation import DailyAggregate, list_daily
from svc_infra.billing.first_use import ready
from svc_infra.billing.models import KEY_LENGTH, METRIC_LENGTH, UsageEvent
from svc_infra.billing.usage import NewUsage, RecordedUsage, quantity, record_many
from svc_infra.canonical import canonical_decimal, canonical_instant
from svc_infra.clock import Clock
from svc_infra.exceptions import IdempotencyConflict, InvalidPayload, InvalidUsage

MAX_PAGE = 1_000


def _exact(value: Any) -> Decimal:
    try:
        return quantity(value)
    except InvalidUsage as error:
        raise ValueError(str(error)) from None


def _instant(value: Any) -> datetime:
    # Left to pydantic, a number would be seconds since 1970, and so would a text of digits.
    if not isinstance(value, str):
        raise ValueError("write the instant as ISO 8601 text with a UTC offset")
    return datetime.fromisoformat(value)


Amount = Annotated[
    Decimal,
    BeforeValidator(_exact),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}], "examples": ["12.5"]}),
]
Instant = Annotated[AwareDatetime, BeforeValidator(_instant)]
Metric = Annotated[str, Field(min_length=1, max_length=METRIC_LENGTH, pattern=r"^[^\x00]*$")]


class UsageIn(BaseModel):
    """A usage event to record. ``amount`` is a quantity: an integer or a decimal string, never a float."""

    model_config = ConfigDict(extra="forbid")

    metric: Metric
    amount: Amount
    at: Instant | None = None
    idempotency_key: str = Field(min_length=1, max_length=KEY_LENGTH)
    metadata: dict[str, Any] | None = None


class UsageAccepted(BaseModel):
    """The id of the event that the idempotency key was first used for."""

    id: str


class UsageTotal(BaseModel):
    """One day's total quantity of a metric, a decimal string."""

    period_start: str
    granularity: str
    metric: str
    total: str


class UsagePage(BaseModel):
    """Totals in the order of their days, and the cursor of the next page while there is one."""

    items: list[UsageTotal]
    next_cursor: str | None


Reader = Annotated[Principal, Depends(require_scope("billing.read"))]
Writer = Annotated[Principal, Depends(require_scope("billing.write"))]
Sessions = Annotated[SessionFactory, Depends(get_session_factory)]
AppClock = Annotated[Clock, Depends(get_clock)]


def make_router() -> APIRouter:
    """Make the router that ``add_billing`` mounts."""
    router = APIRouter(route_class=ProblemRoute, tags=["billing"])
    router.add_api_route(
        "/usage", record_usage, methods=["POST"], status_code=202, operation_id="billing_record_usage"
    )
    router.add_api_route("/usage", list_usage, methods=["GET"], operation_id="billing_list_usage")
    return router


async def record_usage(
    usage: UsageIn, principal: Writer, sessions: Sessions, clock: AppClock
) -> UsageAccepted:
    """Record a usage event; the answer is sent after the commit.

    The same ``idempotency_key`` with the same payload answers with the first event's id, with another
    payload 409. Without ``at`` it happened now, and a repetition without ``at`` is the same event.
    """
    now = clock.now()
    event = NewUsage(
        principal.tenant_id,
        usage.metric,
        usage.amount,
        usage.at or now,
        usage.idempotency_key,
        usage.metadata,
    )
    async with sessions.begin() as session:
        recorded = await session.run_sync(_record, event, has_instant=usage.at is not None, now=now)
    if recorded.outcome == "conflict":
        raise IdempotencyConflict(
            "this idempotency_key was used for another event; send the first payload again, or a new key"
        )
    return UsageAccepted(id=recorded.id)


async def list_usage(
    principal: Reader,
    sessions: Sessions,
    metric: Annotated[Metric, Query()],
    cursor: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> UsagePage:
    """List the daily totals of a metric as they were last aggregated."""
    after = None if cursor is None else _decode_cursor(cursor)
    async with sessions() as session:
        days = await session.run_sync(_list, principal.tenant_id, metric, after=after, limit=limit + 1)
    items = [
        UsageTotal(
            period_start=canonical_instant(day.period_start),
            granularity=day.granularity,
            metric=day.metric,
            total=canonical_decimal(day.total),
        )
        for day in days[:limit]
    ]
    return UsagePage(items=items, next_cursor=_encode_cursor(items[-1]) if len(days) > limit else None)


def _record(session: Session, event: NewUsage, *, has_instant: bool, now: datetime) -> RecordedUsage:
    ready(session)
    [recorded] = record_many(session, [event], now=now)
    if has_instant or recorded.outcome != "conflict":
        return recorded
    # A repetition that leaves "now" to us differs in nothing but our clock: compare it at the first's time.
    first_at = session.scalars(
        select(UsageEvent.at_ts).where(UsageEvent.tenant_id == event.tenant_id, UsageEvent.id == recorded.id)
    ).one()
    [recorded] = record_many(session, [replace(event, at=first_at)], now=now)
    return recorded


def _list(
    session: Session, tenant_id: str, metric: str, *, after: datetime | None, limit: int
) -> list[DailyAggregate]:
    ready(session)
    return list_daily(session, tenant_id, metric, after=after, limit=limit)


def _encode_cursor(last: UsageTotal) -> str:
    return base64.urlsafe_b64encode(last.period_start.encode()).decode()


def _decode_cursor(cursor: str) -> datetime:
    try:
        text = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii")
        after = datetime.fromisoformat(text)
        if canonical_instant(after) == text:
            return after
    except (ValueError, InvalidPayload):
        pass
    raise HTTPException(422, "The cursor is none of ours; pass the next_cursor of a page.")
