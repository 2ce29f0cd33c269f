"""The tables of endpoints, deliveries and delivery attempts. Messages are in ``svc_infra.db.outbox``."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, Boolean, CheckConstraint, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.base import TENANT_ID_LENGTH, Base, IdText, UtcDateTime
from svc_infra.db.leases import LeasedRow

_IS_PENDING = text("state = 'pending'")
_IS_SENDING = text("state = 'sending'")


class EndpointRow(Base):
    """Where a tenant, or the operator for all tenants (no ``tenant_id``), wants its messages."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("ix_webhook_endpoints_tenant_id", "tenant_id"),)

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(String(TENANT_ID_LENGTH))
    url: Mapped[str] = mapped_column(String(2048))
    description: Mapped[str] = mapped_column(String(500), default="")
    topics: Mapped[list[str]] = mapped_column(JSON)
    secrets: Mapped[list[str]] = mapped_column(JSON)
    is_enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    disabled_reason: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class DeliveryRow(LeasedRow, Base):
    """One message for one endpoint; the unique key makes a repeated fan-out harmless."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'sending', 'delivered', 'dead', 'held')", name="state"),
        CheckConstraint("(state = 'sending') = (lease_id IS NOT NULL)", name="lease"),
        Index("uq_webhook_deliveries_message_id", "message_id", "endpoint_id", unique=True),
        Index(
            "ix_webhook_deliveries_pending",
            "run_at",
            "id",
            sqlite_where=_IS_PENDING,
            postgresql_where=_IS_PENDING,
        ),
        Index(
            "ix_webhook_deliveries_sending",
            "lease_until",
            sqlite_where=_IS_SENDING,
            postgresql_where=_IS_SENDING,
        ),
        {"postgresql_with": {"fillfactor": "80"}},
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    message_id: Mapped[str] = mapped_column(ForeignKey("outbox_messages.id"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    tenant_id: Mapped[str | None] = mapped_column(String(TENANT_ID_LENGTH))
    last_outcome: Mapped[str | None] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class DeliveryAttemptRow(Base):
    """One HTTP try of a delivery and how it was judged. ``attempted_at`` is wall time."""

    __tablename__ = "webhook_delivery_attempts"

    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_deliveries.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    lease_id: Mapped[str] = mapped_column(IdText)
    outcome: Mapped[str] = mapped_column(String(40))
    status_code: Mapped[int | None] = mapped_column(Integer)
    detail: Mapped[str | None] = mapped_column(Text)
    duration_ms: Mapped[int] = mapped_column(Integer)
    attempted_at: Mapped[datetime] = mapped_column(UtcDateTime)
