"""Unique jobs: a key that one job has at a time while it is in one of the states chosen for it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_IN_ITS_STATES = (
    "unique_key IS NOT NULL AND (unique_states & (CASE state WHEN 'available' THEN 1 WHEN 'running' THEN 2"
    " WHEN 'completed' THEN 4 WHEN 'discarded' THEN 8 ELSE 16 END)) <> 0"
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("unique_key", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("unique_states", sa.Integer(), nullable=True))
    op.create_index(
        "uq_jobs_unique_key",
        "jobs",
        ["unique_key"],
        unique=True,
        sqlite_where=sa.text(_IN_ITS_STATES),
        postgresql_where=sa.text(_IN_ITS_STATES),
    )


def downgrade() -> None:
    op.drop_index("uq_jobs_unique_key", "jobs")
    op.drop_column("jobs", "unique_states")
    op.drop_column("jobs", "unique_key")
