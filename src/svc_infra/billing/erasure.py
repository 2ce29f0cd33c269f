"""Erasing a tenant's usage: events, what corrects or refuses them, totals and marks.

Issued invoices stay as they are: they are records that a business has to keep, and their lines hold totals
and no events. Since nothing is left to compare them with, the tenant is closed: usage of an erased tenant is
refused, or the next event would make the invoice of its month look too high.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, delete, func, select
from sqlalchemy.orm import Session

from svc_infra.billing.first_use import ready
from svc_infra.billing.invoice_models import UsageChange
from svc_infra.billing.tenant_lock import lock_tenants
from svc_infra.billing.usage_lock import hold_back_usage
from svc_infra.billing.usage_models import (
    ArchivedUsage,
    TenantErasure,
    UsageAggregate,
    UsageCorrection,
    UsageDimension,
    UsageDirtyDay,
    UsageEvent,
    UsageRejection,
)

_TABLES: tuple[Any, ...] = (
    UsageEvent,
    ArchivedUsage,
    UsageCorrection,
    UsageRejection,
    UsageDimension,
    UsageAggregate,
    UsageDirtyDay,
    UsageChange,
)


@dataclass(frozen=True, slots=True)
class Erased:
    """How many rows of each table were, or would be, deleted."""

    tenant_id: str
    rows: dict[str, int]


def count_erasable(session: Session, tenant_id: str) -> Erased:
    """Count what ``erase_tenant`` would delete now."""
    ready(session)
    counts = {
        table.__tablename__: session.scalar(
            select(func.count()).select_from(table).where(table.tenant_id == tenant_id)
        )
        or 0
        for table in _TABLES
    }
    return Erased(tenant_id, counts)


def erase_tenant(session: Session, tenant_id: str, *, reason: str, actor: str, now: datetime) -> Erased:
    """Delete a tenant's usage for good and close the tenant; a row says who did it and how much it was.

    Erasing again deletes what is left. Does not commit.
    """
    ready(session)
    lock_tenants(session, [tenant_id], now=now)
    # What is recorded after it waits for us, and then sees the row below.
    hold_back_usage(session)
    session.merge(TenantErasure(tenant_id=tenant_id, reason=reason, actor=actor, erased_at=now, rows={}))
    session.flush()
    rows = {}
    for table in _TABLES:
        deleted = session.execute(delete(table).where(table.tenant_id == tenant_id))
        rows[table.__tablename__] = cast("CursorResult[Any]", deleted).rowcount
    erasure = session.get_one(TenantErasure, tenant_id)
    erasure.rows = rows
    session.flush()
    return Erased(tenant_id, rows)
