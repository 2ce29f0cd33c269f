"""Removing endpoints: at once for whoever sends, in the end for the database too.

A removed endpoint is off, wants no topic and has no secret any more, so nothing can be sent to it. Its row
stays without being shown for as long as deliveries refer to it, so that their history can be read until the
retention deletes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, exists, select, update
from sqlalchemy.orm import Session

from svc_infra.webhooks.audit import DEFAULT_ACTOR, note_act, without_query
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.endpoints import locked_row
from svc_infra.webhooks.models import DeliveryRow, EndpointRow, ReplayRow

ENDPOINT_REMOVED = "endpoint_removed"
"""The last outcome of a delivery that ended because its endpoint was removed."""

_WAITING = (DeliveryState.PENDING.value, DeliveryState.HELD.value)
_REASON = "removed"


def remove_endpoint(
    session: Session,
    endpoint_id: str,
    *,
    now: datetime,
    tenant_id: str | None = None,
    actor: str = DEFAULT_ACTOR,
) -> int:
    """Remove an endpoint for good, and return how many deliveries that waited were given up.

    With the commit its secrets and headers are gone and no attempt begins any more; one that is under way
    ends. What waits, is held or was put off ends as dead, with the outcome ``endpoint_removed`` and without
    an announcement; replays are cancelled. Deliveries and their attempts stay readable until the retention
    deletes them. It cannot be undone: to stop for a while, disable it. ``now`` is business time.

    Raises:
        NotFound: there is no such endpoint, or it is another tenant's.
    """
    row = locked_row(session, endpoint_id, tenant_id=tenant_id)
    url = row.url
    row.is_enabled, row.disabled_reason, row.disabled_at = False, _REASON, now
    row.removed_at, row.url = now, without_query(url)
    row.topics, row.secrets, row.headers = [], [], None
    session.flush()
    given_up = _end_what_waits(session, [endpoint_id], now=now)
    note_act(session, row, actor, "remove", {"url": row.url, "given_up": given_up})
    session.flush()
    return given_up


def clear_removed(session: Session, *, now: datetime) -> int:
    """Delete removed endpoints to which nothing refers any more; return how many.

    What a relay or a sender that had read an endpoint before its removal has left waiting is ended, too.
    """
    removed = list(session.scalars(select(EndpointRow.id).where(EndpointRow.removed_at.is_not(None))))
    if not removed:
        return 0
    _end_what_waits(session, removed, now=now)
    is_referred_to = exists().where(DeliveryRow.endpoint_id == EndpointRow.id)
    bare = list(session.scalars(select(EndpointRow.id).where(EndpointRow.id.in_(removed), ~is_referred_to)))
    for statement in (
        delete(ReplayRow).where(ReplayRow.endpoint_id.in_(bare)),
        delete(EndpointRow).where(EndpointRow.id.in_(bare)),
    ):
        session.execute(statement.execution_options(synchronize_session=False))
    return len(bare)


def _end_what_waits(session: Session, endpoint_ids: Sequence[str], *, now: datetime) -> int:
    session.execute(
        update(ReplayRow)
        .where(ReplayRow.endpoint_id.in_(endpoint_ids), ReplayRow.state == "running")
        .values(state="cancelled", finished_at=now)
        .execution_options(synchronize_session=False)
    )
    ended = session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.endpoint_id.in_(endpoint_ids), DeliveryRow.state.in_(_WAITING))
        .values(
            state=DeliveryState.DEAD.value,
            hold_reason=None,
            last_outcome=ENDPOINT_REMOVED,
            finished_at=now,
        )
        .returning(DeliveryRow.id)
        .execution_options(synchronize_session=False)
    ).all()
    return len(ended)
