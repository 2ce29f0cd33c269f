"""The health of endpoints: pause one that fails, probe it, and disable it when it fails for days.

An endpoint is *paused* until a time before which nothing is sent to it; what is due meanwhile is put off to
then in one statement, so that nobody polls for it. After the pause one delivery is sent as a probe; whether
that arrives decides. Times are business time, as ``run_at`` is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, cast

from sqlalchemy import Integer, Table, Update, bindparam, case, func, null, or_, select, update
from sqlalchemy.orm import Session

from svc_infra.canonical import canonical_instant
from svc_infra.db.base import IdText, UtcDateTime
from svc_infra.db.leases import in_state, is_among
from svc_infra.webhooks.claimed_delivery import ClaimedDelivery, DeliveryResult
from svc_infra.webhooks.delivery import asks_to_wait
from svc_infra.webhooks.endpoint_switch import disable_endpoint
from svc_infra.webhooks.models import DeliveryRow, EndpointRow

_DELIVERIES = cast(Table, DeliveryRow.__table__)
_ENDPOINTS = cast(Table, EndpointRow.__table__)
_PUT_OFF_BATCH = 10_000
SENDER = "sender"


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When an endpoint is paused and when it is disabled.

    After ``pause_after`` failures in a row it is paused for as long as it has failed by then, between
    ``pause_seconds`` and ``max_pause_seconds``: so pauses double. When everything has failed for
    ``disable_after_seconds`` (five days) it is disabled.
    """

    pause_after: int = 10
    pause_seconds: float = 30.0
    max_pause_seconds: float = 900.0
    disable_after_seconds: float = 432_000.0

    def pause(self, *, failing_for: timedelta) -> timedelta:
        """Return how long an endpoint is paused that has been failing for ``failing_for``."""
        seconds = max(failing_for.total_seconds(), self.pause_seconds)
        return timedelta(seconds=min(seconds, self.max_pause_seconds))


def note_health(
    session: Session, results: Sequence[DeliveryResult], *, policy: HealthPolicy, now: datetime
) -> None:
    """Count what came of attempts for their endpoints; pause and disable those that only fail."""
    by_endpoint: Mapping[str, list[DeliveryResult]] = defaultdict(list)
    for result in results:
        by_endpoint[result.delivery.endpoint_id].append(result)
    # In one order everywhere, so that two senders do not wait for each other's endpoints.
    for endpoint_id in sorted(by_endpoint):
        mine = sorted(by_endpoint[endpoint_id], key=lambda result: result.attempted_at)
        if any(result.verdict.disable_endpoint for result in mine):
            disable_endpoint(
                session, endpoint_id, reason="the endpoint answered 410 Gone", now=now, actor=SENDER
            )
        failures = _failures_at_the_end(mine)
        if failures < len(mine):
            _forget_failures(session, endpoint_id, mine, now=now)
        if failures:
            _count_failures(session, endpoint_id, failures, policy=policy, now=now)
            asked = [result.verdict.run_at for result in mine if asks_to_wait(result.result)]
            if waits := [run_at for run_at in asked if run_at is not None]:
                pause(session, endpoint_id, until=max(waits))


def pause(session: Session, endpoint_id: str, *, until: datetime) -> None:
    """Send nothing to an endpoint before ``until``; a pause that is longer already stays."""
    session.execute(_pause(), {"of_endpoint": endpoint_id, "until": until})
    put_off(session, endpoint_id, until=until)


def put_off(session: Session, endpoint_id: str, *, until: datetime) -> None:
    """Make what is due of an endpoint before ``until`` due then, in batches that lock out nobody."""
    parameters = {"of_endpoint": endpoint_id, "until": until, "limit": _PUT_OFF_BATCH}
    session.execute(_put_off(), parameters)


def take_probe(
    session: Session, endpoint_id: str, *, seen: datetime, now: datetime, policy: HealthPolicy
) -> datetime | None:
    """Be the one that probes an endpoint whose pause, ``seen``, is over: extend the pause and return its end.

    None if another deliverer was quicker.
    """
    until = now + timedelta(seconds=policy.pause_seconds)
    parameters = {"of_endpoint": endpoint_id, "seen": seen, "until": until}
    return until if session.execute(_take_probe(), parameters).all() else None


def _failures_at_the_end(results: Sequence[DeliveryResult]) -> int:
    count = 0
    for result in reversed(results):
        if result.verdict.state == "delivered":
            break
        count += 1
    return count


def _forget_failures(
    session: Session, endpoint_id: str, results: Sequence[DeliveryResult], *, now: datetime
) -> None:
    ailing: Iterable[ClaimedDelivery] = (result.delivery for result in results if result.delivery.is_ailing)
    for delivery in ailing:
        session.execute(_recover(), {"of_endpoint": endpoint_id})
        if delivery.paused_until is not None:
            # What was put off to the end of the pause need not wait for it.
            parameters = {"of_endpoint": endpoint_id, "until": delivery.paused_until, "now": now}
            session.execute(_bring_forward(), parameters)
        return


def _count_failures(
    session: Session, endpoint_id: str, failures: int, *, policy: HealthPolicy, now: datetime
) -> None:
    found = session.execute(
        _fail(), {"of_endpoint": endpoint_id, "failures": failures, "now": now}
    ).one_or_none()
    if found is None or found.failures_in_a_row < policy.pause_after:
        return
    failing_for = now - found.failing_since
    if failing_for.total_seconds() >= policy.disable_after_seconds:
        since = canonical_instant(found.failing_since)
        disable_endpoint(
            session, endpoint_id, reason=f"every attempt failed since {since}", now=now, actor=SENDER
        )
    else:
        pause(session, endpoint_id, until=now + policy.pause(failing_for=failing_for))


def _endpoint_id() -> Any:
    return bindparam("of_endpoint", type_=IdText)


@cache
def _fail() -> Update:
    now = bindparam("now", type_=UtcDateTime)
    return (
        update(_ENDPOINTS)
        .where(_ENDPOINTS.c.id == _endpoint_id(), _ENDPOINTS.c.is_enabled)
        .values(
            failures_in_a_row=_ENDPOINTS.c.failures_in_a_row + bindparam("failures", type_=Integer),
            failing_since=func.coalesce(_ENDPOINTS.c.failing_since, now),
        )
        .returning(_ENDPOINTS.c.failures_in_a_row, _ENDPOINTS.c.failing_since)
    )


@cache
def _recover() -> Update:
    return (
        update(_ENDPOINTS)
        .where(_ENDPOINTS.c.id == _endpoint_id())
        .values(failures_in_a_row=0, failing_since=null(), paused_until=null())
    )


@cache
def _pause() -> Update:
    until = bindparam("until", type_=UtcDateTime)
    is_longer = or_(_ENDPOINTS.c.paused_until.is_(None), _ENDPOINTS.c.paused_until < until)
    return (
        update(_ENDPOINTS)
        .where(_ENDPOINTS.c.id == _endpoint_id())
        .values(paused_until=case((is_longer, until), else_=_ENDPOINTS.c.paused_until))
    )


@cache
def _take_probe() -> Update:
    # Whoever claims holds deliveries and may not wait for an endpoint: who disables one waits the other way.
    free = (
        select(_ENDPOINTS.c.id)
        .where(
            _ENDPOINTS.c.id == _endpoint_id(),
            _ENDPOINTS.c.paused_until == bindparam("seen", type_=UtcDateTime),
        )
        .with_for_update(skip_locked=True, key_share=True)
    )
    return (
        update(_ENDPOINTS)
        .where(_ENDPOINTS.c.id == free.scalar_subquery())
        .values(paused_until=bindparam("until", type_=UtcDateTime))
        .returning(_ENDPOINTS.c.id)
    )


@cache
def _put_off() -> Update:
    until = bindparam("until", type_=UtcDateTime)
    due = (
        select(_DELIVERIES.c.id)
        .where(
            _DELIVERIES.c.endpoint_id == _endpoint_id(),
            in_state(_DELIVERIES, "pending"),
            _DELIVERIES.c.run_at < until,
        )
        .order_by(_DELIVERIES.c.id)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True, of=_DELIVERIES)
    )
    chosen = due.cte("due").prefix_with("MATERIALIZED", dialect="postgresql")
    return update(_DELIVERIES).where(is_among(_DELIVERIES.c.id, select(chosen.c.id))).values(run_at=until)


@cache
def _bring_forward() -> Update:
    put_off = (
        select(_DELIVERIES.c.id)
        .where(
            _DELIVERIES.c.endpoint_id == _endpoint_id(),
            in_state(_DELIVERIES, "pending"),
            _DELIVERIES.c.run_at == bindparam("until", type_=UtcDateTime),
        )
        .with_for_update(skip_locked=True, of=_DELIVERIES)
    )
    return (
        update(_DELIVERIES)
        .where(_DELIVERIES.c.id.in_(put_off))
        .values(run_at=bindparam("now", type_=UtcDateTime))
    )
