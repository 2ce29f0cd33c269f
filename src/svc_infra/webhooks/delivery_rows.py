"""Deliveries that were claimed (``delivery_claim``): record their results, release them, rescue them.

Every write of a claimed delivery is fenced by its lease, so a deliverer thought dead changes nothing.
Functions take a ``Session`` whose transaction is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, cast

from sqlalchemy import (
    Insert,
    Integer,
    Select,
    String,
    Table,
    Text,
    Update,
    bindparam,
    case,
    func,
    insert,
    null,
    select,
    update,
)
from sqlalchemy.orm import Session

from svc_infra.db.base import IdText, UtcDateTime
from svc_infra.db.leases import CLAIMS, expired, is_held
from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.db.rowset import Rowset
from svc_infra.webhooks.claimed_delivery import ClaimedDelivery, DeliveryResult
from svc_infra.webhooks.delivery import Answer, DeliveryState, SendResult
from svc_infra.webhooks.delivery_claim import give_back
from svc_infra.webhooks.health import HealthPolicy, note_health
from svc_infra.webhooks.models import DeliveryAttemptRow, DeliveryRow, EndpointRow
from svc_infra.webhooks.operational import DeliveryExhausted, announce
from svc_infra.webhooks.ordering import lock_endpoints, promote
from svc_infra.webhooks.topic_patterns import OPERATIONAL_PREFIX

LEASE_EXPIRED = "lease_expired"
_LOST = "the lease ran out: the sender died or could not reach the database, and may have sent it"
_RESCUE_BATCH = 1_000
_SCAN_FACTOR = 4
_MAX_DETAIL = 1_000
_SENDING = DeliveryState.SENDING.value

_DELIVERIES = cast(Table, DeliveryRow.__table__)
_ATTEMPT_ROWS = cast(Table, DeliveryAttemptRow.__table__)

_RESULTS = Rowset(
    "results",
    id=IdText,
    lease_id=IdText,
    state=String(16),
    run_at=UtcDateTime,
    outcome=String(40),
    finished_at=UtcDateTime,
)
_ATTEMPTS = Rowset(
    "attempts",
    delivery_id=IdText,
    attempt=Integer,
    lease_id=IdText,
    outcome=String(40),
    status_code=Integer,
    detail=Text,
    duration_ms=Integer,
    trigger=String(20),
    attempted_at=UtcDateTime,
)


def record(
    session: Session, results: Sequence[DeliveryResult], *, health: HealthPolicy | None = None
) -> set[str]:
    """Write results and their attempts; return the ids of the deliveries that were still ours.

    Of the others nothing is written, and their 410 disables nothing: whoever rescued them sends again. What
    follows from the results is written with them: the health of endpoints, the next delivery of an ordered
    lane, and the announcement of those that were given up.
    """
    dialect = session.get_bind().dialect.name
    rows = [_result_row(result) for result in results]
    held = {row.id for row in session.execute(_record(dialect), _RESULTS.parameters(dialect, rows))}
    ours = [result for result in results if result.delivery.id in held]
    if not ours:
        return held
    attempts = [_attempt_row(result) for result in ours]
    session.execute(_insert_attempts(dialect), _ATTEMPTS.parameters(dialect, attempts))
    now = max(result.judged_at for result in ours)
    finished = [result.delivery for result in ours if result.verdict.state != "retry"]
    lanes = {(one.endpoint_id, one.lane_key) for one in finished if one.lane_key is not None}
    if lanes:
        lock_endpoints(session, [result.delivery.endpoint_id for result in ours])
    failing = [one for one in ours if one.delivery.is_ailing or one.verdict.state != "delivered"]
    if failing:
        touched = {one.delivery.endpoint_id for one in failing}
        with_theirs = [one for one in ours if one.delivery.endpoint_id in touched]
        note_health(session, with_theirs, policy=health or HealthPolicy(), now=now)
    announce(session, [_exhausted(result) for result in ours if _is_exhausted(result)], now=now)
    promote(session, lanes, now=now)
    return held


def release(session: Session, deliveries: Iterable[ClaimedDelivery]) -> None:
    """Give back deliveries that were claimed and not sent; their attempt does not count."""
    give_back(session, [(delivery.id, delivery.lease_id) for delivery in deliveries])


def rescue(session: Session, *, now: datetime, max_attempts: int) -> int:
    """Return deliveries whose lease has run out to the due ones, or end them as dead; return how many.

    Their attempt counts and is recorded: it may have been sent, and a message that kills its sender must not
    live for ever.
    """
    dialect, wall_now = session.get_bind().dialect.name, datetime.now(UTC)
    lost = session.execute(_lost()).all()
    if not lost:
        return 0
    claims = CLAIMS.parameters(dialect, [(row.id, row.lease_id) for row in lost])
    bounds = {"now": now, "max_attempts": max_attempts}
    rescued = session.execute(_rescue(dialect), {**claims, **bounds}).all()
    attempts = [
        (row.id, row.attempt, row.lease_id, LEASE_EXPIRED, None, _LOST, 0, row.trigger, wall_now)
        for row in lost
    ]
    session.execute(_insert_attempts(dialect), _ATTEMPTS.parameters(dialect, attempts))
    dead = [row for row in rescued if row.state == DeliveryState.DEAD.value]
    if dead:
        lanes = {(row.endpoint_id, row.lane_key) for row in dead if row.lane_key is not None}
        lock_endpoints(session, [endpoint_id for endpoint_id, _ in lanes])
        announce(session, _exhausted_by_crashes(session, [row.id for row in dead]), now=now)
        promote(session, lanes, now=now)
    return len(rescued)


def _exhausted_by_crashes(session: Session, delivery_ids: Sequence[str]) -> list[DeliveryExhausted]:
    """Return the announcements of deliveries whose sender died at every attempt."""
    query = (
        select(DeliveryRow, OutboxMessageRow.topic, EndpointRow.tenant_id)
        .join(OutboxMessageRow, OutboxMessageRow.id == DeliveryRow.message_id)
        .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
        .where(DeliveryRow.id.in_(delivery_ids))
    )
    return [
        DeliveryExhausted(
            delivery_id=row.id,
            message_id=row.message_id,
            endpoint_id=row.endpoint_id,
            tenant_id=tenant_id,
            topic=topic,
            attempts=row.attempt,
            last_outcome=LEASE_EXPIRED,
        )
        for row, topic, tenant_id in session.execute(query)
        if not topic.startswith(OPERATIONAL_PREFIX)
    ]


def _is_exhausted(result: DeliveryResult) -> bool:
    # An announcement that cannot be delivered is not announced: that would never end.
    is_own = result.delivery.message.topic.startswith(OPERATIONAL_PREFIX)
    return result.verdict.state == "dead" and not result.verdict.disable_endpoint and not is_own


def _exhausted(result: DeliveryResult) -> DeliveryExhausted:
    delivery = result.delivery
    return DeliveryExhausted(
        delivery_id=delivery.id,
        message_id=delivery.message.id,
        endpoint_id=delivery.endpoint_id,
        tenant_id=delivery.tenant_id,
        topic=delivery.message.topic,
        attempts=delivery.attempt,
        last_outcome=result.verdict.outcome.value,
    )


def _result_row(result: DeliveryResult) -> tuple[Any, ...]:
    verdict = result.verdict
    is_retry = verdict.state == "retry"
    state = DeliveryState.PENDING.value if is_retry else verdict.state
    finished_at = None if is_retry else result.judged_at
    delivery = result.delivery
    return (delivery.id, delivery.lease_id, state, verdict.run_at, verdict.outcome.value, finished_at)


def _attempt_row(result: DeliveryResult) -> tuple[Any, ...]:
    delivery, answer = result.delivery, result.result
    return (
        delivery.id,
        delivery.attempt,
        delivery.lease_id,
        result.verdict.outcome.value,
        answer.status if isinstance(answer, Answer) else None,
        describe(answer),
        answer.duration_ms,
        delivery.trigger,
        result.attempted_at,
    )


def describe(result: SendResult) -> str | None:
    """Return what a person needs to see why an attempt failed, in text that any database stores."""
    if isinstance(result, Answer):
        if 200 <= result.status < 300:
            return None
        text = result.excerpt.decode("utf-8", "replace")
    else:
        text = result.detail.encode("utf-8", "replace").decode()
    return text[:_MAX_DETAIL].replace("\x00", "\ufffd") or None


@cache
def _record(dialect: str) -> Update:
    results = _RESULTS.table(dialect)
    return (
        update(_DELIVERIES)
        .where(is_held(_DELIVERIES, results, running=_SENDING))
        .values(
            state=results.c.state,
            run_at=func.coalesce(results.c.run_at, _DELIVERIES.c.run_at),
            last_outcome=results.c.outcome,
            finished_at=results.c.finished_at,
            lease_id=null(),
            lease_until=null(),
        )
        .returning(_DELIVERIES.c.id)
    )


@cache
def _insert_attempts(dialect: str) -> Insert:
    attempts = _ATTEMPTS.table(dialect)
    return insert(_ATTEMPT_ROWS).from_select(list(_ATTEMPTS.columns), select(*attempts.c))


@cache
def _lost() -> Select[Any]:
    """Deliveries whose lease has run out, locked; what somebody else is at is left to them."""
    delivery = _DELIVERIES.c
    found = expired(_DELIVERIES, running=_SENDING, limit=_RESCUE_BATCH)
    return found.add_columns(delivery.lease_id, delivery.attempt, delivery.trigger)


@cache
def _rescue(dialect: str) -> Update:
    now = bindparam("now", type_=UtcDateTime)
    is_used_up = _DELIVERIES.c.attempt - _DELIVERIES.c.attempt_base >= bindparam(
        "max_attempts", type_=Integer
    )
    dead, pending = DeliveryState.DEAD.value, DeliveryState.PENDING.value
    return (
        update(_DELIVERIES)
        .where(is_held(_DELIVERIES, CLAIMS.table(dialect), running=_SENDING))
        .values(
            state=case((is_used_up, dead), else_=pending),
            run_at=now,
            finished_at=case((is_used_up, now)),
            rescues=_DELIVERIES.c.rescues + 1,
            last_outcome=LEASE_EXPIRED,
            lease_id=null(),
            lease_until=null(),
        )
        .returning(_DELIVERIES.c.id, _DELIVERIES.c.state, _DELIVERIES.c.endpoint_id, _DELIVERIES.c.lane_key)
    )
