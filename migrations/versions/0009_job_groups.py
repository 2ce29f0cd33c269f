"""Groups: jobs that belong together, and a job that waits until all of them have finished."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("group_id", sa.String(length=40), nullable=True))
    op.add_column("jobs", sa.Column("waits_for", sa.String(length=40), nullable=True))
    op.create_index(
        "ix_jobs_group_id",
        "jobs",
        ["group_id", "state"],
        unique=False,
        sqlite_where=sa.text("group_id IS NOT NULL"),
        postgresql_where=sa.text("group_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_group_id", "jobs")
    op.drop_column("jobs", "waits_for")
    op.drop_column("jobs", "group_id")
