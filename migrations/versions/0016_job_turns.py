"""Jobs by tenant and by key in an index each; rates, and what started of each; schedules added by hand."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_IS_LIMITED = sa.text("state = 'available' AND limit_key IS NOT NULL")
_IS_OF_A_TENANT = sa.text("state = 'available' AND tenant_id IS NOT NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("rate_starts", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("rate_seconds", sa.Float(), nullable=True))
    op.drop_index("ix_jobs_limited", "jobs")
    _index("ix_jobs_limited", ["limit_key", "priority", "run_at", "id"], _IS_LIMITED)
    _index("ix_jobs_tenant", ["tenant_id", "priority", "run_at", "id"], _IS_OF_A_TENANT)
    op.create_table(
        "job_rates",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("started", sa.JSON(), nullable=False),
        sa.Column("per_seconds", sa.Float(), nullable=False),
        sa.Column("blocked_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("kept_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_job_rates"),
    )
    op.create_index("ix_job_rates_kept_until", "job_rates", ["kept_until"])
    op.add_column("schedules", sa.Column("definition", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("schedules", "definition")
    op.drop_table("job_rates")
    op.drop_index("ix_jobs_tenant", "jobs")
    op.drop_index("ix_jobs_limited", "jobs")
    _index("ix_jobs_limited", ["priority", "run_at", "id"], _IS_LIMITED)
    op.drop_column("jobs", "rate_seconds")
    op.drop_column("jobs", "rate_starts")


def _index(name: str, columns: list[str], where: sa.TextClause) -> None:
    op.create_index(name, "jobs", columns, unique=False, sqlite_where=where, postgresql_where=where)
