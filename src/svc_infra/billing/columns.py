"""The lengths and column types that billing's tables share."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import String

from svc_infra.db.base import TENANT_ID_LENGTH

METRIC_LENGTH = 200
KEY_LENGTH = 255
CALENDAR_CYCLE = "calendar"
CYCLE_LENGTH = 40

TenantText = String(TENANT_ID_LENGTH)
MetricText = String(METRIC_LENGTH)


def utc_now() -> datetime:
    """The default of ``created_at`` for rows that are added by hand."""
    return datetime.now(UTC)
