"""The tables of quotas: what is taken of a limit in a window, and by which reservations."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sqlalchemy import CheckConstraint, Index, Integer, PrimaryKeyConstraint, String, text
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.billing.models import MetricText, TenantText
from svc_infra.db.base import Base, IdText, Quantity, UtcDateTime, new_id

WindowText = String(8)


class QuotaWindow(Base):
    """What reservations have taken of a tenant's quota in one window, beside the usage recorded in it.

    ``taken`` is a quantity: reserved, or committed without a usage event. ``recorded`` is what was recorded
    as usage when that was last counted under the row's lock: whoever waited for the lock with an older view
    of the events counts at least that. ``alerted_percent`` is the highest threshold that was announced.
    """

    __tablename__ = "quota_windows"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "key", "window", "window_start"),
        CheckConstraint("\"window\" IN ('day', 'month')", name="window"),
        Index("ix_quota_windows_window_end", "window_end"),
    )

    tenant_id: Mapped[str] = mapped_column(TenantText)
    key: Mapped[str] = mapped_column(MetricText)
    window: Mapped[str] = mapped_column(WindowText)
    window_start: Mapped[datetime] = mapped_column(UtcDateTime)
    window_end: Mapped[datetime] = mapped_column(UtcDateTime)
    taken: Mapped[Decimal] = mapped_column(Quantity(50))
    recorded: Mapped[Decimal] = mapped_column(Quantity(50))
    alerted_percent: Mapped[int] = mapped_column(Integer)


class QuotaReservation(Base):
    """A quantity taken of a quota until it is committed, released, or expires."""

    __tablename__ = "quota_reservations"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        CheckConstraint("state IN ('open', 'committed', 'released', 'expired')", name="state"),
        Index(
            "ix_quota_reservations_open",
            "tenant_id",
            "key",
            "window",
            "window_start",
            sqlite_where=text("state = 'open'"),
            postgresql_where=text("state = 'open'"),
        ),
        Index("ix_quota_reservations_expires_at", "expires_at"),
    )

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    key: Mapped[str] = mapped_column(MetricText)
    window: Mapped[str] = mapped_column(WindowText)
    window_start: Mapped[datetime] = mapped_column(UtcDateTime)
    window_end: Mapped[datetime] = mapped_column(UtcDateTime)
    amount: Mapped[Decimal] = mapped_column(Quantity)
    state: Mapped[str] = mapped_column(String(10))
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
