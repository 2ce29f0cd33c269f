"""The audit trail of endpoints: one row for each act of a person or program, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from svc_infra.db.base import new_id
from svc_infra.webhooks.models import EndpointRow, WebhookAuditRow

DEFAULT_ACTOR = "application"
_MAX_ACTOR_LENGTH = 200


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act: ``actor`` did ``action`` to the endpoint at ``acted_at`` (wall time)."""

    id: str
    endpoint_id: str
    tenant_id: str | None
    actor: str
    action: str
    detail: Mapping[str, Any]
    acted_at: datetime


def note_act(
    session: Session,
    endpoint: EndpointRow | Row[*tuple[Any, ...]],
    actor: str,
    action: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Write down an act on ``endpoint`` with the commit of ``session``; ``detail`` holds no secret."""
    session.add(
        WebhookAuditRow(
            id=new_id(),
            endpoint_id=endpoint.id,
            tenant_id=endpoint.tenant_id,
            actor=actor[:_MAX_ACTOR_LENGTH],
            action=action,
            detail=dict(detail or {}),
            acted_at=datetime.now(UTC),
        )
    )


def without_query(url: str) -> str:
    """Return ``url`` as the trail keeps it: what follows the path is often a password."""
    return url.partition("?")[0]


def list_acts(
    session: Session,
    endpoint_id: str,
    *,
    tenant_id: str | None = None,
    before: str | None = None,
    limit: int = 100,
) -> list[AuditEntry]:
    """Return the newest acts on an endpoint, newest first; given ``tenant_id``, only on that tenant's.

    For the next page give the last id as ``before``.
    """
    query = select(WebhookAuditRow).where(WebhookAuditRow.endpoint_id == endpoint_id)
    if before is not None:
        query = query.where(WebhookAuditRow.id < before)
    if tenant_id is not None:
        query = query.where(WebhookAuditRow.tenant_id == tenant_id)
    rows = session.scalars(query.order_by(WebhookAuditRow.id.desc()).limit(limit))
    return [
        AuditEntry(row.id, row.endpoint_id, row.tenant_id, row.actor, row.action, row.detail, row.acted_at)
        for row in rows
    ]
