"""What a job carries along: the version of its payload, metadata, a trace context, a timeout."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    version = sa.Column("payload_version", sa.Integer(), server_default=sa.text("1"), nullable=False)
    op.add_column("jobs", version)
    op.add_column("jobs", sa.Column("meta", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("trace_context", sa.String(length=255), nullable=True))
    op.add_column("jobs", sa.Column("timeout_seconds", sa.Float(), nullable=True))


def downgrade() -> None:
    for column in ("timeout_seconds", "trace_context", "meta", "payload_version"):
        op.drop_column("jobs", column)
