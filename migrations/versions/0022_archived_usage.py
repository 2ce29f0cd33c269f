"""Usage events that were invoiced long ago have a table of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_RECORDED = "id, tenant_id, metric, amount, at_ts, idempotency_key, metadata_json, created_at"
_UNARCHIVED = sa.text("archived_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "usage_archive",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("metric", sa.String(length=200), nullable=False),
        sa.Column("amount", sa.Numeric(38, 12).with_variant(sa.String(40), "sqlite"), nullable=False),
        sa.Column("at_ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=False),
        sa.Column("metadata_json", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_usage_archive"),
        sa.UniqueConstraint(
            "tenant_id", "metric", "idempotency_key", name="uq_usage_archive_idempotency_key"
        ),
    )
    op.create_index("ix_usage_archive_tenant_id", "usage_archive", ["tenant_id", "metric", "at_ts", "amount"])
    op.add_column("usage_aggregates", sa.Column("archived_at", sa.DateTime(timezone=True)))
    op.create_index(
        "ix_usage_aggregates_unarchived",
        "usage_aggregates",
        ["period_start", "tenant_id", "id"],
        sqlite_where=_UNARCHIVED,
        postgresql_where=_UNARCHIVED,
    )


def downgrade() -> None:
    op.execute(f"INSERT INTO usage_events ({_RECORDED}) SELECT {_RECORDED} FROM usage_archive")
    op.drop_table("usage_archive")
    op.drop_index("ix_usage_aggregates_unarchived", "usage_aggregates")
    op.drop_column("usage_aggregates", "archived_at")
