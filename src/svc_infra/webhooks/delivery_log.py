"""Looking at deliveries and their attempts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.exceptions import NotFound
from svc_infra.webhooks.endpoints import is_owner
from svc_infra.webhooks.models import DeliveryAttemptRow, DeliveryRow, EndpointRow


@dataclass(frozen=True, slots=True)
class ListedDelivery:
    """A delivery with its message's topic. ``run_at`` is when it is, or was last, due."""

    id: str
    message_id: str
    endpoint_id: str
    tenant_id: str | None
    topic: str
    state: str
    hold_reason: str | None
    attempts: int
    last_outcome: str | None
    run_at: datetime
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class ListedAttempt:
    """One HTTP try; ``detail`` is the capped answer of a failed one, untrusted."""

    attempt: int
    trigger: str
    outcome: str
    status_code: int | None
    detail: str | None
    duration_ms: int
    attempted_at: datetime


def list_deliveries(
    session: Session,
    *,
    endpoint_id: str | None = None,
    tenant_id: str | None = None,
    state: str | None = None,
    topic: str | None = None,
    before: str | None = None,
    limit: int = 100,
) -> list[ListedDelivery]:
    """Return deliveries, newest first; for the next page give the last id as ``before``.

    ``tenant_id`` is that of the endpoint.
    """
    query = (
        select(DeliveryRow, OutboxMessageRow.topic)
        .join(OutboxMessageRow, OutboxMessageRow.id == DeliveryRow.message_id)
        .order_by(DeliveryRow.id.desc())
        .limit(limit)
    )
    if endpoint_id is not None:
        query = query.where(DeliveryRow.endpoint_id == endpoint_id)
    if tenant_id is not None:
        theirs = select(EndpointRow.id).where(EndpointRow.tenant_id == tenant_id)
        query = query.where(DeliveryRow.endpoint_id.in_(theirs))
    if state is not None:
        query = query.where(DeliveryRow.state == state)
    if topic is not None:
        query = query.where(OutboxMessageRow.topic == topic)
    if before is not None:
        query = query.where(DeliveryRow.id < before)
    return [_listed(row, of_topic) for row, of_topic in session.execute(query)]


def get_delivery(session: Session, delivery_id: str, *, tenant_id: str | None = None) -> ListedDelivery:
    """Return one delivery; given ``tenant_id``, only if its endpoint is that tenant's.

    Raises:
        NotFound: there is no such delivery, or its endpoint is another tenant's.
    """
    query = (
        select(DeliveryRow, OutboxMessageRow.topic)
        .join(OutboxMessageRow, OutboxMessageRow.id == DeliveryRow.message_id)
        .where(DeliveryRow.id == delivery_id)
    )
    found = session.execute(query.execution_options(populate_existing=True)).one_or_none()
    if found is None or not is_owner(session, found[0].endpoint_id, tenant_id):
        raise NotFound(_no_delivery(delivery_id))
    return _listed(*found)


def body_of(session: Session, delivery: ListedDelivery) -> str:
    """Return the body of a delivery's message, which is JSON in UTF-8."""
    query = select(OutboxMessageRow.body).where(OutboxMessageRow.id == delivery.message_id)
    return session.scalars(query).one().decode()


def list_attempts(session: Session, delivery_id: str, *, tenant_id: str | None = None) -> list[ListedAttempt]:
    """Return the attempts of a delivery, the first one first.

    Raises:
        NotFound: there is no such delivery, or its endpoint is another tenant's.
    """
    query = (
        select(EndpointRow.tenant_id)
        .join(DeliveryRow, DeliveryRow.endpoint_id == EndpointRow.id)
        .where(DeliveryRow.id == delivery_id)
    )
    found = session.execute(query).one_or_none()
    if found is None or (tenant_id is not None and found.tenant_id != tenant_id):
        raise NotFound(_no_delivery(delivery_id))
    rows = session.scalars(
        select(DeliveryAttemptRow)
        .where(DeliveryAttemptRow.delivery_id == delivery_id)
        .order_by(DeliveryAttemptRow.attempt)
    )
    return [
        ListedAttempt(
            row.attempt,
            row.trigger,
            row.outcome,
            row.status_code,
            row.detail,
            row.duration_ms,
            row.attempted_at,
        )
        for row in rows
    ]


def _no_delivery(delivery_id: str) -> str:
    return f"no delivery {delivery_id!r}; 'worker.py webhooks deliveries' shows them"


def _listed(row: DeliveryRow, topic: str) -> ListedDelivery:
    return ListedDelivery(
        row.id,
        row.message_id,
        row.endpoint_id,
        row.tenant_id,
        topic,
        row.state,
        row.hold_reason,
        row.attempt,
        row.last_outcome,
        row.run_at,
        row.created_at,
        row.finished_at,
    )
