"""The tables of usage, catalog, subscriptions and invoices.

The eight tables of the specification have its names, columns and unique keys. ``amount`` means a *quantity*
in ``usage_events`` and *money in integer minor units* in ``invoice_lines``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.base import TENANT_ID_LENGTH, Base, IdText, Quantity, UtcDateTime, new_id

METRIC_LENGTH = 200
KEY_LENGTH = 255
CALENDAR_CYCLE = "calendar"

TenantText = String(TENANT_ID_LENGTH)
MetricText = String(METRIC_LENGTH)


def _now() -> datetime:
    return datetime.now(UTC)


def _model_of_columns(context: Any) -> str:
    """What a price is that was stored with the specification's columns only."""
    return "fixed" if context.get_current_parameters().get("metric") is None else "per_unit"


class Tenant(Base):
    """A tenant's settings. A tenant without a row has the defaults: UTC, carry late usage forward."""

    __tablename__ = "tenants"
    __table_args__ = (
        CheckConstraint("late_policy IN ('carry_forward', 'grace', 'reject')", name="late_policy"),
        CheckConstraint("grace_seconds >= 0", name="grace_seconds"),
    )

    tenant_id: Mapped[str] = mapped_column(TenantText, primary_key=True)
    timezone: Mapped[str] = mapped_column(String(64), default="UTC")
    late_policy: Mapped[str] = mapped_column(String(16), default="carry_forward")
    grace_seconds: Mapped[int] = mapped_column(Integer, default=0)
    number_series: Mapped[str] = mapped_column(String(40), default="INV")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)


class UsageEvent(Base):
    """One recorded quantity of one metric. ``amount`` is a quantity, never money."""

    __tablename__ = "usage_events"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "metric", "idempotency_key", name="uq_usage_events_idempotency_key"),
        Index("ix_usage_events_tenant_id", "tenant_id", "metric", "at_ts"),
    )

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    metric: Mapped[str] = mapped_column(MetricText)
    amount: Mapped[Decimal] = mapped_column(Quantity)
    at_ts: Mapped[datetime] = mapped_column(UtcDateTime)
    idempotency_key: Mapped[str] = mapped_column(String(KEY_LENGTH))
    metadata_json: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)


class UsageDirtyDay(Base):
    """A mark that a tenant's day has events which its aggregate does not count yet.

    Marks are appended with the events and deleted with the recompute that saw them, so an event that commits
    late is never missed; several marks for one day are normal.
    """

    __tablename__ = "usage_dirty_days"
    __table_args__ = (Index("ix_usage_dirty_days_tenant_id", "tenant_id", "metric", "day_start"),)

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), Identity(), primary_key=True
    )
    tenant_id: Mapped[str] = mapped_column(TenantText)
    metric: Mapped[str] = mapped_column(MetricText)
    day_start: Mapped[datetime] = mapped_column(UtcDateTime)
    day_end: Mapped[datetime] = mapped_column(UtcDateTime)


class UsageAggregate(Base):
    """The total quantity of a metric over one of the tenant's days.

    ``is_published`` says whether ``billing.usage_aggregated`` has announced this total.
    """

    __tablename__ = "usage_aggregates"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        UniqueConstraint(
            "tenant_id", "metric", "period_start", "granularity", name="uq_usage_aggregates_period"
        ),
        CheckConstraint("granularity IN ('day')", name="granularity"),
        Index(
            "ix_usage_aggregates_unpublished",
            "period_start",
            sqlite_where=text("NOT is_published"),
            postgresql_where=text("NOT is_published"),
        ),
    )

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    metric: Mapped[str] = mapped_column(MetricText)
    period_start: Mapped[datetime] = mapped_column(UtcDateTime)
    period_end: Mapped[datetime] = mapped_column(UtcDateTime)
    granularity: Mapped[str] = mapped_column(String(8), default="day")
    total: Mapped[Decimal] = mapped_column(Quantity(50))
    is_published: Mapped[bool] = mapped_column(Boolean, default=False)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)


class Plan(Base):
    """A named set of prices and entitlements that tenants subscribe to."""

    __tablename__ = "plans"
    __table_args__ = (
        UniqueConstraint("key"),
        Index(
            "uq_plans_is_default",
            "is_default",
            unique=True,
            sqlite_where=text("is_default"),
            postgresql_where=text("is_default"),
        ),
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True, default=new_id)
    key: Mapped[str] = mapped_column(String(100))
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(Text, default="")
    is_default: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)


class PlanEntitlement(Base):
    """How much of a metric a plan allows in each window (the tenant's day or month)."""

    __tablename__ = "plan_entitlements"
    __table_args__ = (
        UniqueConstraint("plan_id", "key", "window", name="uq_plan_entitlements_key"),
        CheckConstraint("\"window\" IN ('day', 'month')", name="window"),
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True, default=new_id)
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"))
    key: Mapped[str] = mapped_column(MetricText)
    limit_per_window: Mapped[int] = mapped_column(BigInteger)
    window: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)


class Subscription(Base):
    """A tenant on a plan over the half-open ``[effective_at, ended_at)``, both at its local midnights."""

    __tablename__ = "subscriptions"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        CheckConstraint("ended_at IS NULL OR ended_at > effective_at", name="period"),
        UniqueConstraint("tenant_id", "plan_id", "effective_at", name="uq_subscriptions_effective_at"),
    )

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"))
    effective_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)


class Price(Base):
    """What a plan, or every tenant (no ``plan_id``), is charged for a metric or per month.

    ``unit_amount`` is in minor units and may have a fraction; it is never rounded itself. ``terms`` is the
    whole price as ``PriceTerms.to_snapshot`` writes it, the columns beside it are for reading and joining; a
    row without terms is a fixed price, or one per unit of its metric.
    """

    __tablename__ = "prices"
    __table_args__ = (
        CheckConstraint(
            "model IN ('fixed', 'per_unit', 'graduated', 'volume', 'package', 'percentage', "
            "'graduated_percentage')",
            name="model",
        ),
        CheckConstraint("(model = 'fixed') = (metric IS NULL)", name="metric"),
        CheckConstraint(
            "(model IN ('fixed', 'per_unit', 'package')) = (unit_amount IS NOT NULL)", name="unit_amount"
        ),
        Index(
            "uq_prices_plan_id",
            "plan_id",
            "key",
            "currency",
            unique=True,
            sqlite_where=text("plan_id IS NOT NULL"),
            postgresql_where=text("plan_id IS NOT NULL"),
        ),
        Index(
            "uq_prices_key",
            "key",
            "currency",
            unique=True,
            sqlite_where=text("plan_id IS NULL"),
            postgresql_where=text("plan_id IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True, default=new_id)
    plan_id: Mapped[str | None] = mapped_column(ForeignKey("plans.id"))
    key: Mapped[str] = mapped_column(String(100))
    currency: Mapped[str] = mapped_column(String(3))
    model: Mapped[str] = mapped_column(String(40), default=_model_of_columns)
    unit_amount: Mapped[Decimal | None] = mapped_column(Quantity(38, 18))
    metric: Mapped[str | None] = mapped_column(MetricText)
    recurring_interval: Mapped[str | None] = mapped_column(String(8))
    terms: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)


class Invoice(Base):
    """What a tenant owes for a period. ``total_amount`` is the sum of its lines, in minor units."""

    __tablename__ = "invoices"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        UniqueConstraint(
            "tenant_id",
            "cycle",
            "currency",
            "period_start",
            "period_end",
            "kind",
            name="uq_invoices_identity",
        ),
        UniqueConstraint("tenant_id", "series", "number", name="uq_invoices_number"),
        CheckConstraint("period_end > period_start", name="period"),
        CheckConstraint("status IN ('draft', 'finalized', 'paid', 'void', 'uncollectible')", name="status"),
        CheckConstraint("(status = 'draft') = (number IS NULL)", name="number"),
        # Two periods of one cycle never overlap. SQLite has no such constraint: invoicing checks there,
        # under the file's one write lock.
        ExcludeConstraint(
            ("tenant_id", "="),
            ("cycle", "="),
            ("currency", "="),
            ("kind", "="),
            (text("tstzrange(period_start, period_end)"), "&&"),
            name="ex_invoices_period",
            using="gist",
        ).ddl_if(dialect="postgresql"),
    )

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    cycle: Mapped[str] = mapped_column(String(40), default=CALENDAR_CYCLE)
    kind: Mapped[str] = mapped_column(String(20), default="period")
    currency: Mapped[str] = mapped_column(String(3))
    period_start: Mapped[datetime] = mapped_column(UtcDateTime)
    period_end: Mapped[datetime] = mapped_column(UtcDateTime)
    status: Mapped[str] = mapped_column(String(16))
    series: Mapped[str] = mapped_column(String(40))
    number: Mapped[int | None] = mapped_column(BigInteger)
    total_amount: Mapped[int] = mapped_column(BigInteger)
    provider_invoice_id: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)
    finalized_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class InvoiceLine(Base):
    """One price of one invoice, rounded once. ``amount`` is money in minor units, ``quantity`` is not.

    ``price_snapshot`` holds the terms that the line was rated with, so it explains itself for ever.
    """

    __tablename__ = "invoice_lines"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        ForeignKeyConstraint(["tenant_id", "invoice_id"], ["invoices.tenant_id", "invoices.id"]),
        ForeignKeyConstraint(
            ["tenant_id", "subscription_id"], ["subscriptions.tenant_id", "subscriptions.id"]
        ),
        UniqueConstraint("tenant_id", "invoice_id", "position", name="uq_invoice_lines_position"),
    )

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    invoice_id: Mapped[str] = mapped_column(IdText)
    position: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column(String(20))
    price_id: Mapped[str | None] = mapped_column(ForeignKey("prices.id"))
    subscription_id: Mapped[str | None] = mapped_column(IdText)
    metric: Mapped[str | None] = mapped_column(MetricText)
    description: Mapped[str] = mapped_column(String(300), default="")
    period_start: Mapped[datetime] = mapped_column(UtcDateTime)
    period_end: Mapped[datetime] = mapped_column(UtcDateTime)
    quantity: Mapped[Decimal] = mapped_column(Quantity(50))
    amount: Mapped[int] = mapped_column(BigInteger)
    price_snapshot: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=_now)


class InvoiceCounter(Base):
    """The last invoice number given in a tenant's series; locked while an invoice is finalized."""

    __tablename__ = "invoice_counters"

    tenant_id: Mapped[str] = mapped_column(TenantText, primary_key=True)
    series: Mapped[str] = mapped_column(String(40), primary_key=True)
    last_number: Mapped[int] = mapped_column(BigInteger)
