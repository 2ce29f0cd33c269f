"""Limits: how many jobs of one key run at once, held by numbered slots of which each is taken once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("limit_key", sa.String(length=255), nullable=True))
    op.add_column("jobs", sa.Column("limit_slots", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("slot", sa.Integer(), nullable=True))
    op.create_index(
        "uq_jobs_slot",
        "jobs",
        ["limit_key", "slot"],
        unique=True,
        sqlite_where=sa.text("slot IS NOT NULL"),
        postgresql_where=sa.text("slot IS NOT NULL"),
    )
    is_waiting = sa.text("state = 'available' AND limit_key IS NOT NULL")
    op.create_index(
        "ix_jobs_limited",
        "jobs",
        ["priority", "run_at", "id"],
        unique=False,
        sqlite_where=is_waiting,
        postgresql_where=is_waiting,
    )


def downgrade() -> None:
    for index in ("ix_jobs_limited", "uq_jobs_slot"):
        op.drop_index(index, "jobs")
    for column in ("slot", "limit_slots", "limit_key"):
        op.drop_column("jobs", column)
