"""Sending again by hand: one delivery, or a test event to try an endpoint out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from typing import cast

from sqlalchemy import String, Table, Update, bindparam, case, null, update
from sqlalchemy.orm import Session

from svc_infra.db.base import IdText, UtcDateTime, new_id
from svc_infra.db.outbox import OutboxMessageRow, OutboxState
from svc_infra.db.rowset import Rowset
from svc_infra.exceptions import EndpointNotReady, NotFound
from svc_infra.tracing import current_trace
from svc_infra.webhooks.audit import DEFAULT_ACTOR, note_act
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.endpoints import is_owner, locked_row
from svc_infra.webhooks.message import encode_body, new_message_id
from svc_infra.webhooks.models import DeliveryRow, EndpointRow
from svc_infra.webhooks.operational import ENDPOINT_TEST, EndpointTest
from svc_infra.webhooks.ordering import HELD_FOR_ORDER, promote

MANUAL, REPLAY, TEST = "manual", "replay", "test"
_DELIVERIES = cast(Table, DeliveryRow.__table__)
_AGAIN = Rowset("again", id=IdText, run_at=UtcDateTime)


def redeliver(
    session: Session,
    delivery_id: str,
    *,
    now: datetime,
    tenant_id: str | None = None,
    actor: str = DEFAULT_ACTOR,
) -> None:
    """Make one delivery due ``now`` that is delivered, dead, held or waiting; its schedule begins anew.

    In an ordered lane it waits for what is under way there.

    Raises:
        NotFound: there is no such delivery, or its endpoint is another tenant's.
        EndpointNotReady: the endpoint is disabled, or the delivery is being sent at this moment.
    """
    found = session.get(DeliveryRow, delivery_id, populate_existing=True)
    if found is None or not is_owner(session, found.endpoint_id, tenant_id):
        raise NotFound(f"no delivery {delivery_id!r}; 'worker.py webhooks deliveries' shows them")
    endpoint = _enabled(session, found.endpoint_id, tenant_id)
    anything = [state.value for state in DeliveryState if state is not DeliveryState.SENDING]
    if not requeue(session, endpoint, [(delivery_id, now)], states=anything, trigger=MANUAL, now=now):
        raise EndpointNotReady(f"the delivery {delivery_id!r} is being sent at this moment; look again later")
    note_act(session, endpoint, actor, "redeliver", {"delivery_id": delivery_id})


def send_test(
    session: Session,
    endpoint_id: str,
    *,
    now: datetime,
    tenant_id: str | None = None,
    actor: str = DEFAULT_ACTOR,
) -> str:
    """Send ``webhooks.test`` to one endpoint, whatever its topics are; return the message's id.

    Raises:
        NotFound: there is no such endpoint, or it is another tenant's.
        EndpointNotReady: it is disabled.
    """
    endpoint = _enabled(session, endpoint_id, tenant_id)
    message_id = new_message_id()
    payload = EndpointTest(endpoint_id=endpoint.id, sent_by=actor).model_dump()
    session.add(
        OutboxMessageRow(
            id=message_id,
            topic=ENDPOINT_TEST,
            tenant_id=endpoint.tenant_id,
            body=encode_body(ENDPOINT_TEST, now, payload),
            occurred_at=now,
            state=OutboxState.RELAYED.value,
            trace_context=current_trace(),
        )
    )
    session.flush()
    session.add(
        DeliveryRow(
            id=new_id(),
            message_id=message_id,
            endpoint_id=endpoint.id,
            tenant_id=endpoint.tenant_id,
            state=DeliveryState.PENDING.value,
            run_at=now,
            created_at=now,
            trigger=TEST,
        )
    )
    detail = {"message_id": message_id}
    note_act(session, endpoint, actor, "test", detail)
    session.flush()
    return message_id


def requeue(
    session: Session,
    endpoint: EndpointRow,
    due: Sequence[tuple[str, datetime]],
    *,
    states: Collection[str],
    trigger: str,
    now: datetime,
) -> int:
    """Make deliveries (id, when) of a locked endpoint due that are in one of ``states``; return how many."""
    if not due:
        return 0
    dialect = session.get_bind().dialect.name
    parameters = {**_AGAIN.parameters(dialect, due), "trigger_": trigger, "states": list(states)}
    changed = session.execute(_requeue(dialect), parameters).all()
    lanes = {(endpoint.id, row.lane_key) for row in changed if row.lane_key is not None}
    promote(session, lanes, now=now)
    return len(changed)


def _enabled(session: Session, endpoint_id: str, tenant_id: str | None) -> EndpointRow:
    endpoint = locked_row(session, endpoint_id, tenant_id=tenant_id)
    if not endpoint.is_enabled:
        raise EndpointNotReady(f"the endpoint is disabled ({endpoint.disabled_reason}); enable it first")
    return endpoint


@cache
def _requeue(dialect: str) -> Update:
    again = _AGAIN.table(dialect)
    is_ordered = _DELIVERIES.c.lane_key.is_not(None)
    pending, held = DeliveryState.PENDING.value, DeliveryState.HELD.value
    return (
        update(_DELIVERIES)
        .where(
            _DELIVERIES.c.id == again.c.id,
            _DELIVERIES.c.state.in_(bindparam("states", type_=String, expanding=True)),
        )
        .values(
            state=case((is_ordered, held), else_=pending),
            hold_reason=case((is_ordered, HELD_FOR_ORDER), else_=null()),
            run_at=again.c.run_at,
            attempt_base=_DELIVERIES.c.attempt,
            trigger=bindparam("trigger_", type_=String),
            finished_at=null(),
        )
        .returning(_DELIVERIES.c.id, _DELIVERIES.c.lane_key)
    )
