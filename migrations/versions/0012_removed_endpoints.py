"""Webhooks: endpoints can be removed, and what is held can be counted without reading every delivery."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_IS_HELD = sa.text("state = 'held'")


def upgrade() -> None:
    op.add_column("webhook_endpoints", sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_webhook_deliveries_held",
        "webhook_deliveries",
        ["hold_reason", "created_at"],
        unique=False,
        sqlite_where=_IS_HELD,
        postgresql_where=_IS_HELD,
    )


def downgrade() -> None:
    op.drop_index("ix_webhook_deliveries_held", table_name="webhook_deliveries")
    op.drop_column("webhook_endpoints", "removed_at")
