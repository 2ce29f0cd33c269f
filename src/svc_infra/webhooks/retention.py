"""Pruning: deliveries, their attempts and messages are deleted some time after they are done, in batches."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from svc_infra.db.outbox import OutboxMessageRow, OutboxState
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.models import DeliveryAttemptRow, DeliveryRow, ReplayRow

BATCH_SIZE = 1_000


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept after they are done, in business time.

    Messages, also those that nobody wanted, are kept as long as delivered deliveries, for replays; the
    idempotency keys of deleted messages are forgotten. Held deliveries are kept as long as dead ones.
    """

    delivered: timedelta = timedelta(days=30)
    dead: timedelta = timedelta(days=90)


def prune_deliveries(
    session: Session, *, retention: Retention, now: datetime, limit: int = BATCH_SIZE
) -> int:
    """Delete up to ``limit`` deliveries of each kind that are too old, with attempts; return how many."""
    count = 0
    for state, kept in ((DeliveryState.DELIVERED, retention.delivered), (DeliveryState.DEAD, retention.dead)):
        finished = select(DeliveryRow.id).where(
            DeliveryRow.finished_at < now - kept, DeliveryRow.state == state.value
        )
        count += _delete(session, list(session.scalars(finished.limit(limit))))
    # Held ones have not finished. Their ids begin with the time of their making, which saves an index.
    held = select(DeliveryRow.id).where(
        DeliveryRow.id < _id_at(datetime.now(UTC) - retention.dead),
        DeliveryRow.state == DeliveryState.HELD.value,
        DeliveryRow.created_at < now - retention.dead,
    )
    return count + _delete(session, list(session.scalars(held.limit(limit))))


def prune_replays(session: Session, *, retention: Retention, now: datetime) -> int:
    """Delete replays that ended as long ago as dead deliveries are kept; return how many."""
    ended = delete(ReplayRow).where(ReplayRow.finished_at < now - retention.dead).returning(ReplayRow.id)
    return len(session.execute(ended.execution_options(synchronize_session=False)).all())


def prune_messages(
    session: Session, *, retention: Retention, now: datetime, after: str = "", limit: int = BATCH_SIZE
) -> tuple[int, str | None]:
    """Look at ``limit`` messages after the id ``after`` and delete the old ones without deliveries.

    Return how many were deleted, and the id to go on after, or None when there are no more old ones.
    """
    rows = session.execute(
        select(OutboxMessageRow.id, OutboxMessageRow.occurred_at)
        .where(OutboxMessageRow.id > after, OutboxMessageRow.state == OutboxState.RELAYED.value)
        .order_by(OutboxMessageRow.id)
        .limit(limit)
    ).all()
    old = [row.id for row in rows if row.occurred_at < now - retention.delivered]
    deleted = session.execute(
        delete(OutboxMessageRow)
        .where(
            OutboxMessageRow.id.in_(old),
            ~exists().where(DeliveryRow.message_id == OutboxMessageRow.id),
        )
        .returning(OutboxMessageRow.id)
        .execution_options(synchronize_session=False)
    ).all()
    return len(deleted), rows[-1].id if old and len(rows) == limit else None


def _delete(session: Session, ids: list[str]) -> int:
    if not ids:
        return 0
    for statement in (
        delete(DeliveryAttemptRow).where(DeliveryAttemptRow.delivery_id.in_(ids)),
        delete(DeliveryRow).where(DeliveryRow.id.in_(ids)),
    ):
        session.execute(statement.execution_options(synchronize_session=False))
    return len(ids)


def _id_at(instant: datetime) -> str:
    """Return the smallest id that is made at ``instant``."""
    milliseconds = f"{max(int(instant.timestamp() * 1000), 0):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}"
