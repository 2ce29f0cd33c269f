"""Meters and dimensions of usage, corrections of recorded events, and events that were refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def quantity(precision: int, scale: int) -> sa.types.TypeEngine:
    """An exact decimal: canonical text on SQLite, which would keep a NUMERIC as a binary float."""
    return sa.Numeric(precision, scale).with_variant(sa.String(precision + 2), "sqlite")


def upgrade() -> None:
    op.create_table(
        "usage_meters",
        sa.Column("metric", sa.String(length=200), nullable=False),
        sa.Column("meter", sa.String(length=16), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "meter IN ('sum', 'count', 'maximum', 'latest', 'unique_count', 'weighted_sum')",
            name=op.f("ck_usage_meters_meter"),
        ),
        sa.PrimaryKeyConstraint("metric", name="pk_usage_meters"),
    )
    op.create_table(
        "usage_dimensions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("metric", sa.String(length=200), nullable=False),
        sa.Column("day_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("dimension", sa.Text(), nullable=False),
        sa.Column("unique_value", sa.Text(), nullable=True),
        sa.Column("total", quantity(50, 12), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("measure", quantity(76, 12), nullable=True),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_id", sa.String(length=40), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_usage_dimensions"),
    )
    op.create_index("ix_usage_dimensions_tenant_id", "usage_dimensions", ["tenant_id", "metric", "day_start"])
    op.create_table(
        "usage_corrections",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("event_id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("replacement_id", sa.String(length=40), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('void', 'amend')", name=op.f("ck_usage_corrections_kind")),
        sa.CheckConstraint(
            "(kind = 'amend') = (replacement_id IS NOT NULL)",
            name=op.f("ck_usage_corrections_replacement_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "event_id", name="pk_usage_corrections"),
    )
    op.create_table(
        "usage_rejections",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("metric", sa.String(length=200), nullable=False),
        sa.Column("amount", sa.Text(), nullable=False),
        sa.Column("at_ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=False),
        sa.Column("metadata_json", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_usage_rejections"),
    )
    op.create_index("ix_usage_rejections_created_at", "usage_rejections", ["created_at"])
    op.create_table(
        "tenant_erasures",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("rows", sa.JSON(), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_tenant_erasures"),
    )


def downgrade() -> None:
    for table in (
        "tenant_erasures",
        "usage_rejections",
        "usage_corrections",
        "usage_dimensions",
        "usage_meters",
    ):
        op.drop_table(table)
