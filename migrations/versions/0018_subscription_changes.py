"""Which subscription goes on after a change of another one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("subscriptions", sa.Column("replaces_id", sa.String(length=40), nullable=True))


def downgrade() -> None:
    op.drop_column("subscriptions", "replaces_id")
