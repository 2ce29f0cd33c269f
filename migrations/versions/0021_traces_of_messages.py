"""Messages keep the trace in which they were published."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("outbox_messages", sa.Column("trace_context", sa.String(255)))


def downgrade() -> None:
    op.drop_column("outbox_messages", "trace_context")
