"""Usage events that were refused, kept with their reasons so that nothing disappears silently."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, insert, select, tuple_
from sqlalchemy.orm import Session

from svc_infra.billing.usage_event import NewUsage
from svc_infra.billing.usage_models import UsageRejection
from svc_infra.canonical import canonical_decimal


def keep_rejections(session: Session, refused: Sequence[tuple[str, NewUsage, str]], now: datetime) -> None:
    """Keep a record of each (id, event, reason) in the session's transaction."""
    rows = [
        {
            "id": rejection_id,
            "tenant_id": event.tenant_id,
            "metric": event.metric,
            "amount": canonical_decimal(event.amount),
            "at_ts": event.at,
            "idempotency_key": event.idempotency_key,
            "metadata_json": event.metadata_json,
            "reason": reason,
            "created_at": now,
        }
        for rejection_id, event, reason in refused
    ]
    session.connection().execute(insert(UsageRejection), rows)


def list_rejections(
    session: Session,
    *,
    tenant_id: str | None = None,
    since: datetime | None = None,
    after: tuple[datetime, str] | None = None,
    limit: int = 100,
) -> list[UsageRejection]:
    """Refused events in the order they came, at most ``limit``; continue behind (created_at, id)."""
    order = (UsageRejection.created_at, UsageRejection.id)
    query = select(UsageRejection).order_by(*order).limit(limit)
    if tenant_id is not None:
        query = query.where(UsageRejection.tenant_id == tenant_id)
    if since is not None:
        query = query.where(UsageRejection.created_at >= since)
    if after is not None:
        query = query.where(tuple_(*order) > tuple_(*after))
    return list(session.scalars(query))


def forget_rejections(session: Session, before: datetime) -> None:
    """Delete the records of what was refused before an instant."""
    session.execute(delete(UsageRejection).where(UsageRejection.created_at < before))
