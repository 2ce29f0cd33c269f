"""Webhooks: idempotent and ordered messages, endpoint options and health, replays and an audit trail."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _add_columns()
    _add_indexes()
    op.create_table(
        "webhook_replays",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("endpoint_id", sa.String(length=40), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("states", sa.JSON(), nullable=False),
        sa.Column("topics", sa.JSON(), nullable=False),
        sa.Column("rate_per_second", sa.Float(), nullable=False),
        sa.Column("cursor", sa.String(length=40), nullable=False),
        sa.Column("queued", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('running', 'completed', 'cancelled')", name=op.f("ck_webhook_replays_state")
        ),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
            name="fk_webhook_replays_endpoint_id_webhook_endpoints",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_replays"),
    )
    op.create_index("ix_webhook_replays_state", "webhook_replays", ["state", "next_at"], unique=False)
    op.create_table(
        "webhook_audit",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("endpoint_id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=True),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("acted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_audit"),
    )
    op.create_index("ix_webhook_audit_endpoint_id", "webhook_audit", ["endpoint_id", "id"], unique=False)


def _add_columns() -> None:
    instant, text = sa.DateTime(timezone=True), sa.String
    for table, columns in {
        "outbox_messages": [
            sa.Column("key", text(length=255), nullable=True),
            sa.Column("idempotency_digest", text(length=64), nullable=True),
        ],
        "webhook_endpoints": [
            sa.Column("disabled_at", instant, nullable=True),
            sa.Column("payload_filter", sa.JSON(), nullable=True),
            sa.Column("headers", sa.JSON(), nullable=True),
            sa.Column("labels", sa.JSON(), nullable=True),
            sa.Column("ordering", text(length=10), nullable=False, server_default="none"),
            sa.Column("content_mode", text(length=20), nullable=False, server_default="standard"),
            sa.Column("rate_per_second", sa.Float(), nullable=True),
            sa.Column("in_flight_cap", sa.Integer(), nullable=True),
            sa.Column("failures_in_a_row", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("failing_since", instant, nullable=True),
            sa.Column("paused_until", instant, nullable=True),
        ],
        "webhook_deliveries": [
            sa.Column("lane_key", text(length=255), nullable=True),
            sa.Column("hold_reason", text(length=20), nullable=True),
            sa.Column("attempt_base", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("trigger", text(length=20), nullable=False, server_default="scheduled"),
        ],
        "webhook_delivery_attempts": [
            sa.Column("trigger", text(length=20), nullable=False, server_default="scheduled"),
        ],
    }.items():
        for column in columns:
            op.add_column(table, column)
    # Until now only an endpoint's being disabled held a delivery.
    op.execute("UPDATE webhook_deliveries SET hold_reason = 'disabled' WHERE state = 'held'")


def _add_indexes() -> None:
    op.create_index(
        "uq_outbox_messages_idempotency_digest",
        "outbox_messages",
        ["idempotency_digest"],
        unique=True,
        sqlite_where=sa.text("idempotency_digest IS NOT NULL"),
        postgresql_where=sa.text("idempotency_digest IS NOT NULL"),
    )
    op.create_index(
        "ix_webhook_deliveries_endpoint_id", "webhook_deliveries", ["endpoint_id", "id"], unique=False
    )
    op.create_index(
        "ix_webhook_deliveries_finished_at",
        "webhook_deliveries",
        ["finished_at"],
        unique=False,
        sqlite_where=sa.text("finished_at IS NOT NULL"),
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index(
        "ix_webhook_deliveries_lane_key",
        "webhook_deliveries",
        ["endpoint_id", "lane_key", "id"],
        unique=False,
        sqlite_where=sa.text("lane_key IS NOT NULL"),
        postgresql_where=sa.text("lane_key IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("webhook_audit")
    op.drop_table("webhook_replays")
    for index, table in {
        "ix_webhook_deliveries_lane_key": "webhook_deliveries",
        "ix_webhook_deliveries_finished_at": "webhook_deliveries",
        "ix_webhook_deliveries_endpoint_id": "webhook_deliveries",
        "uq_outbox_messages_idempotency_digest": "outbox_messages",
    }.items():
        op.drop_index(index, table_name=table)
    for table, columns in {
        "webhook_delivery_attempts": ["trigger"],
        "webhook_deliveries": ["trigger", "attempt_base", "hold_reason", "lane_key"],
        "webhook_endpoints": [
            "paused_until",
            "failing_since",
            "failures_in_a_row",
            "in_flight_cap",
            "rate_per_second",
            "content_mode",
            "ordering",
            "labels",
            "headers",
            "payload_filter",
            "disabled_at",
        ],
        "outbox_messages": ["idempotency_digest", "key"],
    }.items():
        for column in columns:
            op.drop_column(table, column)
