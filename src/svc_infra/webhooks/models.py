"""The tables of endpoints, deliveries and delivery attempts. Messages are in ``svc_infra.db.outbox``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Boolean, CheckConstraint, Float, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.base import TENANT_ID_LENGTH, Base, IdText, UtcDateTime
from svc_infra.db.leases import LeasedRow

_IS_PENDING = text("state = 'pending'")
_IS_SENDING = text("state = 'sending'")
_IS_HELD = text("state = 'held'")
_IS_FINISHED = text("finished_at IS NOT NULL")
_IS_ORDERED = text("lane_key IS NOT NULL")


class EndpointRow(Base):
    """Where a tenant, or the operator for all tenants (no ``tenant_id``), wants its messages.

    ``secrets`` and ``headers`` are sealed where the operator gave keys (``stored_secrets``). Its health is
    ``failures_in_a_row``, ``failing_since`` and ``paused_until``, the business time before which nothing is
    sent. A row with ``removed_at`` is kept for its deliveries only (``endpoint_removal``).
    """

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("ix_webhook_endpoints_tenant_id", "tenant_id"),)

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(String(TENANT_ID_LENGTH))
    url: Mapped[str] = mapped_column(String(2048))
    description: Mapped[str] = mapped_column(String(500), default="")
    topics: Mapped[list[str]] = mapped_column(JSON)
    secrets: Mapped[list[Any]] = mapped_column(JSON)
    is_enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    disabled_reason: Mapped[str | None] = mapped_column(String(200))
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    payload_filter: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    headers: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    labels: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    ordering: Mapped[str] = mapped_column(String(10), default="none", server_default="none")
    content_mode: Mapped[str] = mapped_column(String(20), default="standard", server_default="standard")
    rate_per_second: Mapped[float | None] = mapped_column(Float)
    in_flight_cap: Mapped[int | None] = mapped_column(Integer)
    failures_in_a_row: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    failing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    paused_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    removed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class DeliveryRow(LeasedRow, Base):
    """One message for one endpoint; the unique key makes a repeated fan-out harmless.

    ``lane_key`` is set where the endpoint wants messages of one key in their order, ``hold_reason`` while the
    state is held. ``attempt_base`` is how many attempts there were before the last redelivery, which begins
    the retry schedule anew; ``trigger`` is what the attempts from then on are made for.
    """

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
            "ix_webhook_deliveries_of_endpoint",
            "endpoint_id",
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
        Index("ix_webhook_deliveries_endpoint_id", "endpoint_id", "id"),
        Index(
            "ix_webhook_deliveries_held",
            "hold_reason",
            "created_at",
            sqlite_where=_IS_HELD,
            postgresql_where=_IS_HELD,
        ),
        Index(
            "ix_webhook_deliveries_finished_at",
            "finished_at",
            sqlite_where=_IS_FINISHED,
            postgresql_where=_IS_FINISHED,
        ),
        Index(
            "ix_webhook_deliveries_lane_key",
            "endpoint_id",
            "lane_key",
            "id",
            sqlite_where=_IS_ORDERED,
            postgresql_where=_IS_ORDERED,
        ),
        {"postgresql_with": {"fillfactor": "80"}},
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    message_id: Mapped[str] = mapped_column(ForeignKey("outbox_messages.id"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    tenant_id: Mapped[str | None] = mapped_column(String(TENANT_ID_LENGTH))
    lane_key: Mapped[str | None] = mapped_column(String(255))
    hold_reason: Mapped[str | None] = mapped_column(String(20))
    attempt_base: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    trigger: Mapped[str] = mapped_column(String(20), default="scheduled", server_default="scheduled")
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
    trigger: Mapped[str] = mapped_column(String(20), default="scheduled", server_default="scheduled")
    attempted_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ReplayRow(Base):
    """A replay under way or done: which messages an endpoint is sent again, and how far it has come.

    ``cursor`` is the id of the last message looked at. ``next_at`` (business time) is when the next batch may
    be queued, which is how the rate is kept.
    """

    __tablename__ = "webhook_replays"
    __table_args__ = (
        CheckConstraint("state IN ('running', 'completed', 'cancelled')", name="state"),
        Index("ix_webhook_replays_state", "state", "next_at"),
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    state: Mapped[str] = mapped_column(String(16))
    since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    until: Mapped[datetime] = mapped_column(UtcDateTime)
    states: Mapped[list[str]] = mapped_column(JSON)
    topics: Mapped[list[str]] = mapped_column(JSON)
    rate_per_second: Mapped[float] = mapped_column(Float)
    cursor: Mapped[str] = mapped_column(IdText)
    queued: Mapped[int] = mapped_column(Integer)
    next_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class WebhookAuditRow(Base):
    """Who did what to an endpoint by hand, and when (wall time). Rows are only ever added."""

    __tablename__ = "webhook_audit"
    __table_args__ = (Index("ix_webhook_audit_endpoint_id", "endpoint_id", "id"),)

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(IdText)
    tenant_id: Mapped[str | None] = mapped_column(String(TENANT_ID_LENGTH))
    actor: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(String(40))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
    acted_at: Mapped[datetime] = mapped_column(UtcDateTime)
