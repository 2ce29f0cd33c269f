"""Quotas: reservations against a limit, features, unlimited and soft entitlements, alerts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_WINDOW_CHECK = "ck_plan_entitlements_window"


def quantity(precision: int) -> sa.types.TypeEngine[object]:
    """An exact decimal: SQLite would keep a NUMERIC as a binary float, so there it is text."""
    return sa.Numeric(precision, 12).with_variant(sa.String(precision + 2), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("plan_entitlements") as entitlements:
        entitlements.add_column(sa.Column("is_soft", sa.Boolean(), nullable=False, server_default=sa.false()))
        entitlements.add_column(sa.Column("alert_percents", sa.JSON(), nullable=True))
        entitlements.add_column(sa.Column("value", sa.JSON(), nullable=True))
        entitlements.alter_column("limit_per_window", existing_type=sa.BigInteger(), nullable=True)
        entitlements.drop_constraint(op.f(_WINDOW_CHECK), type_="check")
        entitlements.create_check_constraint(op.f(_WINDOW_CHECK), "\"window\" IN ('day', 'month', 'always')")
    op.create_table(
        "quota_windows",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("window", sa.String(length=8), nullable=False),
        sa.Column("window_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("window_end", sa.DateTime(timezone=True), nullable=False),
        sa.Column("taken", quantity(50), nullable=False),
        sa.Column("recorded", quantity(50), nullable=False),
        sa.Column("alerted_percent", sa.Integer(), nullable=False),
        sa.CheckConstraint("\"window\" IN ('day', 'month')", name=op.f("ck_quota_windows_window")),
        sa.PrimaryKeyConstraint("tenant_id", "key", "window", "window_start", name="pk_quota_windows"),
    )
    op.create_index("ix_quota_windows_window_end", "quota_windows", ["window_end"], unique=False)
    op.create_table(
        "quota_reservations",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("window", sa.String(length=8), nullable=False),
        sa.Column("window_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("window_end", sa.DateTime(timezone=True), nullable=False),
        sa.Column("amount", quantity(38), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('open', 'committed', 'released', 'expired')", name=op.f("ck_quota_reservations_state")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_quota_reservations"),
    )
    op.create_index(
        "ix_quota_reservations_open",
        "quota_reservations",
        ["tenant_id", "key", "window", "window_start"],
        unique=False,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index("ix_quota_reservations_expires_at", "quota_reservations", ["expires_at"], unique=False)


def downgrade() -> None:
    op.drop_table("quota_reservations")
    op.drop_table("quota_windows")
    op.execute("DELETE FROM plan_entitlements WHERE \"window\" = 'always' OR limit_per_window IS NULL")
    with op.batch_alter_table("plan_entitlements") as entitlements:
        entitlements.drop_constraint(op.f(_WINDOW_CHECK), type_="check")
        entitlements.create_check_constraint(op.f(_WINDOW_CHECK), "\"window\" IN ('day', 'month')")
        entitlements.alter_column("limit_per_window", existing_type=sa.BigInteger(), nullable=False)
        entitlements.drop_column("value")
        entitlements.drop_column("alert_percents")
        entitlements.drop_column("is_soft")
