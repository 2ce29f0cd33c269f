"""Usage, catalog, subscriptions and invoices: the eight tables of the specification and their helpers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def quantity(precision: int, scale: int) -> sa.types.TypeEngine:
    """An exact decimal: canonical text on SQLite, which would keep a NUMERIC as a binary float."""
    return sa.Numeric(precision, scale).with_variant(sa.String(precision + 2), "sqlite")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # For the constraint that refuses overlapping invoice periods; a trusted extension since version 13.
        op.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
    op.create_table(
        "invoice_counters",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("series", sa.String(length=40), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "series", name="pk_invoice_counters"),
    )
    op.create_table(
        "invoices",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("cycle", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("period_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("period_end", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("series", sa.String(length=40), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("total_amount", sa.BigInteger(), nullable=False),
        sa.Column("provider_invoice_id", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finalized_at", sa.DateTime(timezone=True), nullable=True),
        postgresql.ExcludeConstraint(
            (sa.column("tenant_id"), "="),
            (sa.column("cycle"), "="),
            (sa.column("currency"), "="),
            (sa.column("kind"), "="),
            (sa.text("tstzrange(period_start, period_end)"), "&&"),
            using="gist",
            name="ex_invoices_period",
        ).ddl_if(dialect="postgresql"),
        sa.CheckConstraint("(status = 'draft') = (number IS NULL)", name=op.f("ck_invoices_number")),
        sa.CheckConstraint(
            "status IN ('draft', 'finalized', 'paid', 'void', 'uncollectible')",
            name=op.f("ck_invoices_status"),
        ),
        sa.CheckConstraint("period_end > period_start", name=op.f("ck_invoices_period")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_invoices"),
        sa.UniqueConstraint(
            "tenant_id",
            "cycle",
            "currency",
            "period_start",
            "period_end",
            "kind",
            name="uq_invoices_identity",
        ),
        sa.UniqueConstraint("tenant_id", "series", "number", name="uq_invoices_number"),
    )
    op.create_table(
        "plans",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=100), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_plans"),
        sa.UniqueConstraint("key", name="uq_plans_key"),
    )
    op.create_index(
        "uq_plans_is_default",
        "plans",
        ["is_default"],
        unique=True,
        sqlite_where=sa.text("is_default"),
        postgresql_where=sa.text("is_default"),
    )
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("timezone", sa.String(length=64), nullable=False),
        sa.Column("late_policy", sa.String(length=16), nullable=False),
        sa.Column("grace_seconds", sa.Integer(), nullable=False),
        sa.Column("number_series", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "late_policy IN ('carry_forward', 'grace', 'reject')", name=op.f("ck_tenants_late_policy")
        ),
        sa.CheckConstraint("grace_seconds >= 0", name=op.f("ck_tenants_grace_seconds")),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_tenants"),
    )
    op.create_table(
        "usage_aggregates",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("metric", sa.String(length=200), nullable=False),
        sa.Column("period_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("period_end", sa.DateTime(timezone=True), nullable=False),
        sa.Column("granularity", sa.String(length=8), nullable=False),
        sa.Column("total", quantity(50, 12), nullable=False),
        sa.Column("is_published", sa.Boolean(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("granularity IN ('day')", name=op.f("ck_usage_aggregates_granularity")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_usage_aggregates"),
        sa.UniqueConstraint(
            "tenant_id", "metric", "period_start", "granularity", name="uq_usage_aggregates_period"
        ),
    )
    op.create_index(
        "ix_usage_aggregates_unpublished",
        "usage_aggregates",
        ["period_start"],
        unique=False,
        sqlite_where=sa.text("NOT is_published"),
        postgresql_where=sa.text("NOT is_published"),
    )
    op.create_table(
        "usage_dirty_days",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), sa.Identity(), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("metric", sa.String(length=200), nullable=False),
        sa.Column("day_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("day_end", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_dirty_days"),
    )
    op.create_index(
        "ix_usage_dirty_days_tenant_id",
        "usage_dirty_days",
        ["tenant_id", "metric", "day_start"],
        unique=False,
    )
    op.create_table(
        "usage_events",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("metric", sa.String(length=200), nullable=False),
        sa.Column("amount", quantity(38, 12), nullable=False),
        sa.Column("at_ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=False),
        sa.Column("metadata_json", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_usage_events"),
        sa.UniqueConstraint("tenant_id", "metric", "idempotency_key", name="uq_usage_events_idempotency_key"),
    )
    op.create_index(
        "ix_usage_events_tenant_id", "usage_events", ["tenant_id", "metric", "at_ts"], unique=False
    )
    op.create_table(
        "plan_entitlements",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("plan_id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("limit_per_window", sa.BigInteger(), nullable=False),
        sa.Column("window", sa.String(length=8), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("\"window\" IN ('day', 'month')", name=op.f("ck_plan_entitlements_window")),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name="fk_plan_entitlements_plan_id_plans"),
        sa.PrimaryKeyConstraint("id", name="pk_plan_entitlements"),
        sa.UniqueConstraint("plan_id", "key", "window", name="uq_plan_entitlements_key"),
    )
    op.create_table(
        "prices",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("plan_id", sa.String(length=40), nullable=True),
        sa.Column("key", sa.String(length=100), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("model", sa.String(length=40), nullable=False),
        sa.Column("unit_amount", quantity(38, 18), nullable=True),
        sa.Column("metric", sa.String(length=200), nullable=True),
        sa.Column("recurring_interval", sa.String(length=8), nullable=True),
        sa.Column("terms", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(model = 'fixed') = (metric IS NULL)", name=op.f("ck_prices_metric")),
        sa.CheckConstraint(
            "(model IN ('fixed', 'per_unit', 'package')) = (unit_amount IS NOT NULL)",
            name=op.f("ck_prices_unit_amount"),
        ),
        sa.CheckConstraint(
            "model IN ('fixed', 'per_unit', 'graduated', 'volume', 'package', 'percentage', "
            "'graduated_percentage')",
            name=op.f("ck_prices_model"),
        ),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name="fk_prices_plan_id_plans"),
        sa.PrimaryKeyConstraint("id", name="pk_prices"),
    )
    op.create_index(
        "uq_prices_key",
        "prices",
        ["key", "currency"],
        unique=True,
        sqlite_where=sa.text("plan_id IS NULL"),
        postgresql_where=sa.text("plan_id IS NULL"),
    )
    op.create_index(
        "uq_prices_plan_id",
        "prices",
        ["plan_id", "key", "currency"],
        unique=True,
        sqlite_where=sa.text("plan_id IS NOT NULL"),
        postgresql_where=sa.text("plan_id IS NOT NULL"),
    )
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("plan_id", sa.String(length=40), nullable=False),
        sa.Column("effective_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "ended_at IS NULL OR ended_at > effective_at", name=op.f("ck_subscriptions_period")
        ),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name="fk_subscriptions_plan_id_plans"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_subscriptions"),
        sa.UniqueConstraint("tenant_id", "plan_id", "effective_at", name="uq_subscriptions_effective_at"),
    )
    op.create_table(
        "invoice_lines",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("invoice_id", sa.String(length=40), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("price_id", sa.String(length=40), nullable=True),
        sa.Column("subscription_id", sa.String(length=40), nullable=True),
        sa.Column("metric", sa.String(length=200), nullable=True),
        sa.Column("description", sa.String(length=300), nullable=False),
        sa.Column("period_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("period_end", sa.DateTime(timezone=True), nullable=False),
        sa.Column("quantity", quantity(50, 12), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("price_snapshot", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["price_id"], ["prices.id"], name="fk_invoice_lines_price_id_prices"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "invoice_id"],
            ["invoices.tenant_id", "invoices.id"],
            name="fk_invoice_lines_tenant_id_invoice_id_invoices",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "subscription_id"],
            ["subscriptions.tenant_id", "subscriptions.id"],
            name="fk_invoice_lines_tenant_id_subscription_id_subscriptions",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_invoice_lines"),
        sa.UniqueConstraint("tenant_id", "invoice_id", "position", name="uq_invoice_lines_position"),
    )


def downgrade() -> None:
    for table in (
        "invoice_lines",
        "subscriptions",
        "prices",
        "plan_entitlements",
        "usage_events",
        "usage_dirty_days",
        "usage_aggregates",
        "tenants",
        "plans",
        "invoices",
        "invoice_counters",
    ):
        op.drop_table(table)
