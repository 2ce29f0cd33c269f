"""Due deliveries by endpoint, so that one endpoint's backlog hides nobody else's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_IS_PENDING = sa.text("state = 'pending'")


def upgrade() -> None:
    op.create_index(
        "ix_webhook_deliveries_of_endpoint",
        "webhook_deliveries",
        ["endpoint_id", "run_at", "id"],
        unique=False,
        sqlite_where=_IS_PENDING,
        postgresql_where=_IS_PENDING,
    )


def downgrade() -> None:
    op.drop_index("ix_webhook_deliveries_of_endpoint", "webhook_deliveries")
