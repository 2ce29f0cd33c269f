"""Order within a key: of an ordered lane only the oldest unfinished delivery is ever due.

A lane is the deliveries of one endpoint and one message key. The others of a lane wait as held, which costs
no poll; whoever ends the first makes the next one due, in the same transaction. A delivery waits, too, while
an earlier message of its key has not been relayed: another relay may be about to.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any, cast

from sqlalchemy import (
    Select,
    String,
    Table,
    Update,
    and_,
    bindparam,
    case,
    exists,
    func,
    null,
    select,
    update,
)
from sqlalchemy.orm import Session

from svc_infra.db.base import IdText, UtcDateTime
from svc_infra.db.leases import in_state
from svc_infra.db.outbox import OutboxMessageRow, OutboxState
from svc_infra.db.rowset import Rowset
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.models import DeliveryRow, EndpointRow

HELD_FOR_ORDER = "order"
HELD_WHILE_DISABLED = "disabled"

_DELIVERIES = cast(Table, DeliveryRow.__table__)
_ENDPOINTS = cast(Table, EndpointRow.__table__)
_MESSAGES = cast(Table, OutboxMessageRow.__table__)
_LANES = Rowset("lanes", endpoint_id=IdText, lane_key=String(255))
_LOCKED = Rowset("locked", id=IdText)


def lock_endpoints(session: Session, endpoint_ids: Iterable[str]) -> None:
    """Lock endpoints, in one order everywhere, until the transaction ends.

    Who adds to a lane and who ends its first delivery would otherwise each miss what the other has not
    committed yet, and the lane would wait for ever.
    """
    dialect = session.get_bind().dialect.name
    if dialect == "postgresql":
        ids = [(endpoint_id,) for endpoint_id in sorted(set(endpoint_ids))]
        session.execute(_lock(dialect), _LOCKED.parameters(dialect, ids))


def promote(session: Session, lanes: Iterable[tuple[str, str]], *, now: datetime) -> int:
    """Make the first waiting delivery due of each of ``lanes`` that has none under way; return how many.

    The endpoints must be locked by ``lock_endpoints``.
    """
    rows = sorted(set(lanes))
    if not rows:
        return 0
    dialect = session.get_bind().dialect.name
    return len(session.execute(_promote(dialect), {**_LANES.parameters(dialect, rows), "now": now}).all())


@cache
def _lock(dialect: str) -> Select[Any]:
    locked = _LOCKED.table(dialect)
    return (
        select(_ENDPOINTS.c.id)
        .where(_ENDPOINTS.c.id.in_(select(locked.c.id)))
        .order_by(_ENDPOINTS.c.id)
        .with_for_update(key_share=True)
    )


@cache
def _promote(dialect: str) -> Update:
    # What a replay has given a place in its rate keeps it.
    now = bindparam("now", type_=UtcDateTime)
    lanes = _LANES.table(dialect)
    waiting, active = _DELIVERIES.alias("waiting"), _DELIVERIES.alias("active")
    is_active = exists().where(
        active.c.endpoint_id == lanes.c.endpoint_id,
        active.c.lane_key == lanes.c.lane_key,
        active.c.state.in_([DeliveryState.PENDING.value, DeliveryState.SENDING.value]),
    )
    pending = _MESSAGES.alias("earlier")
    is_preceded = exists().where(
        in_state(pending, OutboxState.PENDING.value),
        pending.c.key == waiting.c.lane_key,
        pending.c.tenant_id.is_not_distinct_from(waiting.c.tenant_id),
        pending.c.id < waiting.c.message_id,
    )
    # By the message: deliveries are made by relays, of which one may be ahead of another.
    heads = (
        select(waiting.c.endpoint_id, func.min(waiting.c.message_id).label("message_id"))
        .select_from(
            lanes.join(
                waiting,
                and_(waiting.c.endpoint_id == lanes.c.endpoint_id, waiting.c.lane_key == lanes.c.lane_key),
            )
        )
        .where(
            waiting.c.state == DeliveryState.HELD.value,
            waiting.c.hold_reason == HELD_FOR_ORDER,
            ~is_active,
            ~is_preceded,
        )
        .group_by(waiting.c.endpoint_id, waiting.c.lane_key)
        .cte("heads")
    )
    return (
        update(_DELIVERIES)
        .where(
            _DELIVERIES.c.endpoint_id == heads.c.endpoint_id, _DELIVERIES.c.message_id == heads.c.message_id
        )
        .values(
            state=DeliveryState.PENDING.value,
            hold_reason=null(),
            run_at=case((_DELIVERIES.c.run_at > now, _DELIVERIES.c.run_at), else_=now),
        )
        .returning(_DELIVERIES.c.id)
    )
