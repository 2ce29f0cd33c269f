"""The deliveries in the database: claim a batch, record its results, release and rescue.

Every write of a claimed delivery is fenced by its lease, so a deliverer thought dead changes nothing.
Functions take a ``Session`` whose transaction is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
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
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.orm import Session

from svc_infra.db.base import IdText, UtcDateTime, new_id
from svc_infra.db.leases import CLAIMS, claim_statement, expired, is_held
from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.db.rowset import Rowset
from svc_infra.webhooks.delivery import Answer, DeliveryState, EndpointTarget, SendResult, Verdict
from svc_infra.webhooks.endpoints import disable_endpoint
from svc_infra.webhooks.message import Message
from svc_infra.webhooks.models import DeliveryAttemptRow, DeliveryRow, EndpointRow

LEASE_EXPIRED = "lease_expired"
_RESCUE_BATCH = 1_000
_SCAN_FACTOR = 4
_MAX_DETAIL = 1_000
_SENDING = DeliveryState.SENDING.value

_DELIVERIES = cast(Table, DeliveryRow.__table__)
_ATTEMPT_ROWS = cast(Table, DeliveryAttemptRow.__table__)
_MESSAGES = cast(Table, OutboxMessageRow.__table__)
_ENDPOINTS = cast(Table, EndpointRow.__table__)

_ALLOWANCES = Rowset("allowances", endpoint_id=IdText, allowance=Integer)
_CLAIMED = Rowset("claimed", id=IdText, message_id=IdText, endpoint_id=IdText)
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
    attempted_at=UtcDateTime,
)


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery that is ours until its lease ends, with all that sending it takes."""

    id: str
    lease_id: str
    attempt: int
    endpoint_id: str
    message: Message
    target: EndpointTarget


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """What came of one attempt, judged. ``attempted_at`` is wall time, ``finished_at`` business time."""

    delivery: ClaimedDelivery
    result: SendResult
    verdict: Verdict
    attempted_at: datetime
    judged_at: datetime


def claim(
    session: Session,
    *,
    now: datetime,
    lease_seconds: float,
    limit: int,
    allowance: int,
    allowances: Mapping[str, int],
) -> list[ClaimedDelivery]:
    """Lease up to ``limit`` deliveries that are due at ``now``, the longest due first.

    Of one endpoint no more than its entry in ``allowances`` are taken, or ``allowance`` where it has none, so
    that an endpoint which hangs cannot fill the sender. What waits for a disabled endpoint becomes held.
    """
    dialect = session.get_bind().dialect.name
    lease_id = new_id()
    claimed = session.execute(
        _claim(dialect),
        {
            **_ALLOWANCES.parameters(dialect, allowances.items()),
            "now": now,
            "limit": limit,
            "scan": limit * _SCAN_FACTOR,
            "allowance": allowance,
            "lease_id": lease_id,
            "lease_seconds": lease_seconds,
        },
    ).all()
    if not claimed:
        return []
    assert len(claimed) <= limit
    rows = sorted(claimed, key=lambda row: (row.run_at, row.id))
    loaded = _load(session, dialect, lease_id, rows)
    not_to_send = [(row.id, lease_id) for row in rows if row.id not in loaded]
    if not_to_send:
        session.execute(_give_back(dialect, DeliveryState.HELD), CLAIMS.parameters(dialect, not_to_send))
    return [loaded[row.id] for row in rows if row.id in loaded]


def _load(session: Session, dialect: str, lease_id: str, rows: Sequence[Any]) -> dict[str, ClaimedDelivery]:
    """Read the messages and endpoints of claimed rows; those of disabled endpoints are left out."""
    keys = [(row.id, row.message_id, row.endpoint_id) for row in rows]
    attempts = {row.id: row.attempt for row in rows}
    targets: dict[str, EndpointTarget] = {}
    loaded = {}
    for row in session.execute(_load_claimed(dialect), _CLAIMED.parameters(dialect, keys)):
        target = targets.get(row.endpoint_id)
        if target is None:
            target = targets[row.endpoint_id] = EndpointTarget(row.url, tuple(row.secrets))
        message = Message(row.message_id, row.topic, row.tenant_id, row.body, row.occurred_at)
        loaded[row.id] = ClaimedDelivery(row.id, lease_id, attempts[row.id], row.endpoint_id, message, target)
    return loaded


def record(session: Session, results: Sequence[DeliveryResult]) -> set[str]:
    """Write results and their attempts; return the ids of the deliveries that were still ours.

    Of the others nothing is written, and their 410 disables nothing: whoever rescued them sends again.
    """
    dialect = session.get_bind().dialect.name
    rows = [_result_row(result) for result in results]
    held = {row.id for row in session.execute(_record(dialect), _RESULTS.parameters(dialect, rows))}
    ours = [result for result in results if result.delivery.id in held]
    if ours:
        attempts = [_attempt_row(result) for result in ours]
        session.execute(_insert_attempts(dialect), _ATTEMPTS.parameters(dialect, attempts))
    gone = {result.delivery.endpoint_id for result in ours if result.verdict.disable_endpoint}
    for endpoint_id in sorted(gone):
        disable_endpoint(session, endpoint_id, reason="the endpoint answered 410 Gone")
    return held


def release(session: Session, deliveries: Iterable[ClaimedDelivery]) -> None:
    """Give back deliveries that were claimed and not sent; their attempt does not count."""
    dialect = session.get_bind().dialect.name
    claims = [(delivery.id, delivery.lease_id) for delivery in deliveries]
    session.execute(_give_back(dialect, DeliveryState.PENDING), CLAIMS.parameters(dialect, claims))


def rescue(session: Session, *, now: datetime, max_attempts: int) -> int:
    """Return deliveries whose lease has run out to the due ones, or end them as dead; return how many.

    Their attempt counts: it may have been sent, and a message that kills its sender must not live for ever.
    """
    return len(session.execute(_rescue(), {"now": now, "max_attempts": max_attempts}).all())


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
def _claim(dialect: str) -> Update:
    # The rank is taken without locks over the oldest due rows of endpoints that take more, then the rows are
    # locked and looked at again: whoever was quicker has changed their state.
    allowances = _ALLOWANCES.table(dialect)
    allowed = func.coalesce(allowances.c.allowance, bindparam("allowance", type_=Integer))
    oldest = (
        select(_DELIVERIES.c.id, _DELIVERIES.c.run_at, _DELIVERIES.c.endpoint_id, allowed.label("allowed"))
        .select_from(_DELIVERIES.outerjoin(allowances, allowances.c.endpoint_id == _DELIVERIES.c.endpoint_id))
        .where(_is("pending"), _DELIVERIES.c.run_at <= bindparam("now", type_=UtcDateTime), allowed > 0)
        .order_by(_DELIVERIES.c.run_at, _DELIVERIES.c.id)
        .limit(bindparam("scan", type_=Integer))
        .cte("oldest")
    )
    rank = func.row_number().over(partition_by=oldest.c.endpoint_id, order_by=(oldest.c.run_at, oldest.c.id))
    ranked = select(oldest.c.id, oldest.c.allowed, rank.label("rank")).cte("ranked")
    candidates = (
        select(_DELIVERIES.c.id)
        .where(
            _DELIVERIES.c.id.in_(select(ranked.c.id).where(ranked.c.rank <= ranked.c.allowed)),
            _is("pending"),
        )
        .order_by(_DELIVERIES.c.run_at, _DELIVERIES.c.id)
        .limit(bindparam("limit", type_=Integer))
    )
    return claim_statement(_DELIVERIES, candidates, running=_SENDING)


@cache
def _load_claimed(dialect: str) -> Select[Any]:
    claimed = _CLAIMED.table(dialect)
    return (
        select(
            claimed.c.id,
            claimed.c.endpoint_id,
            claimed.c.message_id,
            _MESSAGES.c.topic,
            _MESSAGES.c.tenant_id,
            _MESSAGES.c.body,
            _MESSAGES.c.occurred_at,
            _ENDPOINTS.c.url,
            _ENDPOINTS.c.secrets,
        )
        .join(_MESSAGES, _MESSAGES.c.id == claimed.c.message_id)
        .join(_ENDPOINTS, _ENDPOINTS.c.id == claimed.c.endpoint_id)
        .where(_ENDPOINTS.c.is_enabled)
    )


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
def _give_back(dialect: str, state: DeliveryState) -> Update:
    claims = CLAIMS.table(dialect)
    return (
        update(_DELIVERIES)
        .where(is_held(_DELIVERIES, claims, running=_SENDING))
        .values(state=state.value, attempt=_DELIVERIES.c.attempt - 1, lease_id=null(), lease_until=null())
    )


@cache
def _rescue() -> Update:
    due = (
        expired(_DELIVERIES, running=_SENDING, limit=_RESCUE_BATCH)
        .cte("due")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    now = bindparam("now", type_=UtcDateTime)
    is_used_up = _DELIVERIES.c.attempt >= bindparam("max_attempts", type_=Integer)
    dead, pending = DeliveryState.DEAD.value, DeliveryState.PENDING.value
    return (
        update(_DELIVERIES)
        .where(_DELIVERIES.c.id.in_(select(due.c.id)))
        .values(
            state=case((is_used_up, dead), else_=pending),
            run_at=now,
            finished_at=case((is_used_up, now)),
            rescues=_DELIVERIES.c.rescues + 1,
            last_outcome=LEASE_EXPIRED,
            lease_id=null(),
            lease_until=null(),
        )
        .returning(_DELIVERIES.c.id)
    )


def _is(state: str) -> ColumnElement[bool]:
    # As a literal, because a partial index is used only where its condition is in the statement's text.
    return _DELIVERIES.c.state == literal_column(f"'{state}'")
