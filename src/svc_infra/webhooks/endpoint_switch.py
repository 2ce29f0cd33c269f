"""Disabling and enabling endpoints: once, announced, and what waits for them is held meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import ColumnElement, or_, select, true, update
from sqlalchemy.orm import Session

from svc_infra.webhooks.audit import DEFAULT_ACTOR, note_act
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.endpoints import locked_row
from svc_infra.webhooks.models import DeliveryRow, EndpointRow
from svc_infra.webhooks.operational import announce, endpoint_disabled
from svc_infra.webhooks.ordering import HELD_FOR_ORDER, HELD_WHILE_DISABLED, promote

_MAX_REASON_LENGTH = 200


def disable_endpoint(
    session: Session,
    endpoint_id: str,
    *,
    reason: str,
    now: datetime | None = None,
    tenant_id: str | None = None,
    actor: str = DEFAULT_ACTOR,
) -> bool:
    """Stop sending to an endpoint and hold what waits for it; False if it was disabled (or gone) already.

    Given ``tenant_id``, another tenant's endpoint is as good as gone.

    Of several that disable it at once, exactly one gets True, and ``webhooks.endpoint.disabled`` is published
    once. What is being sent at this moment is not recalled. ``now`` is business time.
    """
    now = now or datetime.now(UTC)
    reason = reason[:_MAX_REASON_LENGTH]
    disabled = session.execute(
        update(EndpointRow)
        .where(
            EndpointRow.id == endpoint_id,
            is_still_enabled(),
            true() if tenant_id is None else EndpointRow.tenant_id == tenant_id,
        )
        .values(is_enabled=False, disabled_reason=reason, disabled_at=now)
        .returning(EndpointRow.id, EndpointRow.tenant_id)
        .execution_options(synchronize_session=False)
    ).all()
    if not disabled:
        return False
    (row,) = disabled
    session.execute(
        update(DeliveryRow)
        .where(
            DeliveryRow.endpoint_id == endpoint_id,
            or_(
                DeliveryRow.state == DeliveryState.PENDING.value,
                DeliveryRow.hold_reason == HELD_FOR_ORDER,
            ),
        )
        .values(state=DeliveryState.HELD.value, hold_reason=HELD_WHILE_DISABLED)
        .execution_options(synchronize_session=False)
    )
    note_act(session, row, actor, "disable", {"reason": reason})
    announce(
        session,
        [endpoint_disabled(endpoint_id=endpoint_id, tenant_id=row.tenant_id, reason=reason, now=now)],
        now=now,
    )
    return True


def is_still_enabled() -> ColumnElement[bool]:
    """The condition by which, of several that disable an endpoint, only one finds it and announces that."""
    return EndpointRow.is_enabled == true()


def enable_endpoint(
    session: Session,
    endpoint_id: str,
    *,
    now: datetime,
    replay_held: bool = False,
    tenant_id: str | None = None,
    actor: str = DEFAULT_ACTOR,
) -> int:
    """Send to an endpoint again, its health forgotten; return how many held deliveries were made due.

    Of one that is only paused this ends the pause.

    With ``replay_held`` everything that was held while it was disabled is due ``now``, in the order of its
    publishing. Without, it stays held, for a replay (``replay.start_replay``) to send later.

    Raises:
        NotFound: there is no such endpoint, or it is another tenant's.
    """
    row = locked_row(session, endpoint_id, tenant_id=tenant_id)
    if row.paused_until is not None:
        _end_pause(session, endpoint_id, until=row.paused_until, now=now)
    row.is_enabled, row.disabled_reason, row.disabled_at = True, None, None
    row.failures_in_a_row, row.failing_since, row.paused_until = 0, None, None
    session.flush()
    count = _release_held(session, endpoint_id, now=now) if replay_held else 0
    _wake_lanes(session, endpoint_id, now=now)
    note_act(session, row, actor, "enable", {"replayed": count})
    return count


def _end_pause(session: Session, endpoint_id: str, *, until: datetime, now: datetime) -> None:
    """Make due what was put off to the end of the pause."""
    session.execute(
        update(DeliveryRow)
        .where(
            DeliveryRow.endpoint_id == endpoint_id,
            DeliveryRow.state == DeliveryState.PENDING.value,
            DeliveryRow.run_at == until,
        )
        .values(run_at=now)
        .execution_options(synchronize_session=False)
    )


def _wake_lanes(session: Session, endpoint_id: str, *, now: datetime) -> None:
    """Make the first of each lane due that has none.

    A relay that had read the endpoint before it was disabled leaves deliveries that wait for one which the
    sender then found disabled.
    """
    lanes = session.execute(
        select(DeliveryRow.endpoint_id, DeliveryRow.lane_key)
        .where(
            DeliveryRow.endpoint_id == endpoint_id,
            DeliveryRow.state == DeliveryState.HELD.value,
            DeliveryRow.hold_reason == HELD_FOR_ORDER,
        )
        .distinct()
    ).all()
    promote(session, [(lane.endpoint_id, str(lane.lane_key)) for lane in lanes], now=now)


def _release_held(session: Session, endpoint_id: str, *, now: datetime) -> int:
    held = (
        DeliveryRow.endpoint_id == endpoint_id,
        DeliveryRow.state == DeliveryState.HELD.value,
        DeliveryRow.hold_reason == HELD_WHILE_DISABLED,
    )
    ordered = session.execute(
        update(DeliveryRow)
        .where(*held, DeliveryRow.lane_key.is_not(None))
        .values(hold_reason=HELD_FOR_ORDER, run_at=now)
        .returning(DeliveryRow.id)
        .execution_options(synchronize_session=False)
    ).all()
    free = session.execute(
        update(DeliveryRow)
        .where(*held, DeliveryRow.lane_key.is_(None))
        .values(state=DeliveryState.PENDING.value, hold_reason=None, run_at=now)
        .returning(DeliveryRow.id)
        .execution_options(synchronize_session=False)
    ).all()
    return len(ordered) + len(free)
