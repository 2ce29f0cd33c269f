"""The tables of usage, catalog, subscriptions and invoices.

The eight tables of the specification have its names, columns and unique keys. ``amount`` means a *quantity*
in ``usage_events`` and *money in integer minor units* in ``invoice_lines``.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Date,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.billing import invoice_guards  # noqa: F401  # the triggers come with the tables
from svc_infra.billing.columns import (
    CALENDAR_CYCLE,
    CYCLE_LENGTH,
    KEY_LENGTH,
    METRIC_LENGTH,
    MetricText,
    TenantText,
    utc_now,
)
from svc_infra.billing.invoice_models import (
    CreditNote,
    CreditNoteLine,
    Invoice,
    InvoiceCounter,
    InvoiceLine,
    PendingLine,
    UsageChange,
)
from svc_infra.billing.usage_models import (
    ArchivedUsage,
    UsageAggregate,
    UsageCorrection,
    UsageDimension,
    UsageDirtyDay,
    UsageEvent,
    UsageMeter,
    UsageRejection,
)
from svc_infra.db.base import Base, IdText, Quantity, UtcDateTime, new_id

__all__ = [
    "CALENDAR_CYCLE",
    "KEY_LENGTH",
    "METRIC_LENGTH",
    "SINCE_EVER",
    "ArchivedUsage",
    "CreditNote",
    "CreditNoteLine",
    "Invoice",
    "InvoiceCounter",
    "InvoiceLine",
    "MetricText",
    "PendingLine",
    "Plan",
    "PlanEntitlement",
    "Price",
    "Subscription",
    "Tenant",
    "TenantText",
    "UsageAggregate",
    "UsageChange",
    "UsageCorrection",
    "UsageDimension",
    "UsageDirtyDay",
    "UsageEvent",
    "UsageMeter",
    "UsageRejection",
]

SINCE_EVER = date(1900, 1, 1)
"""The ``effective_on`` of a price that had no predecessor."""


def _model_of_columns(context: Any) -> str:
    """What a price is that was stored with the specification's columns only."""
    return "fixed" if context.get_current_parameters().get("metric") is None else "per_unit"


class Tenant(Base):
    """A tenant's settings. A tenant without a row has the defaults: UTC, carry late usage forward.

    A parked tenant (``parked_at``) is invoiced no more until somebody unparks it; the reason says why.
    """

    __tablename__ = "tenants"
    __table_args__ = (
        CheckConstraint("late_policy IN ('carry_forward', 'grace', 'reject')", name="late_policy"),
        CheckConstraint("grace_seconds >= 0", name="grace_seconds"),
        CheckConstraint("due_days >= 0", name="due_days"),
    )

    tenant_id: Mapped[str] = mapped_column(TenantText, primary_key=True)
    timezone: Mapped[str] = mapped_column(String(64), default="UTC")
    late_policy: Mapped[str] = mapped_column(String(16), default="carry_forward")
    grace_seconds: Mapped[int] = mapped_column(Integer, default=0)
    number_series: Mapped[str] = mapped_column(String(40), default="INV")
    due_days: Mapped[int] = mapped_column(Integer, default=0)
    parked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    parked_reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


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
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class PlanEntitlement(Base):
    """How much of a metric a plan allows in each window (the tenant's day or month), or a feature's value.

    No ``limit_per_window`` is no limit. A feature has the window ``always`` and a ``value``.
    """

    __tablename__ = "plan_entitlements"
    __table_args__ = (
        UniqueConstraint("plan_id", "key", "window", name="uq_plan_entitlements_key"),
        CheckConstraint("\"window\" IN ('day', 'month', 'always')", name="window"),
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True, default=new_id)
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"))
    key: Mapped[str] = mapped_column(MetricText)
    limit_per_window: Mapped[int | None] = mapped_column(BigInteger)
    window: Mapped[str] = mapped_column(String(8))
    is_soft: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    alert_percents: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    value: Mapped[bool | int | str | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Subscription(Base):
    """A tenant on a plan over the half-open ``[effective_at, ended_at)``, both at its local midnights.

    ``quantity`` multiplies the plan's fixed prices (seats). Until ``trial_ends_at`` those cost nothing. An
    ``anchor_on`` gives the subscription a billing cycle of its own instead of the calendar month. One that
    goes on after a change has the one before it as ``replaces_id``.
    """

    __tablename__ = "subscriptions"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        CheckConstraint("ended_at IS NULL OR ended_at > effective_at", name="period"),
        CheckConstraint("quantity > 0", name="quantity"),
        UniqueConstraint("tenant_id", "plan_id", "effective_at", name="uq_subscriptions_effective_at"),
        # A tenant is on a plan once at a time. SQLite has no such constraint: subscribing checks there, under
        # the file's one write lock.
        ExcludeConstraint(
            ("tenant_id", "="),
            ("plan_id", "="),
            (text("tstzrange(effective_at, ended_at)"), "&&"),
            name="ex_subscriptions_period",
            using="gist",
        ).ddl_if(dialect="postgresql"),
    )

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"))
    effective_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    quantity: Mapped[int] = mapped_column(BigInteger, default=1)
    trial_ends_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    cycle: Mapped[str] = mapped_column(String(CYCLE_LENGTH), default=CALENDAR_CYCLE)
    anchor_on: Mapped[date | None] = mapped_column(Date)
    replaces_id: Mapped[str | None] = mapped_column(IdText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class Price(Base):
    """What a plan, or every tenant (no ``plan_id``), is charged for a metric or per month.

    ``unit_amount`` is in minor units and may have a fraction; it is never rounded itself. ``terms`` is the
    whole price as ``PriceTerms.to_snapshot`` writes it, the columns beside it are for reading and joining; a
    row without terms is a fixed price, or one per unit of its metric.

    A row is a version and never changes but for its end: what begins on the tenant's local day
    ``effective_on`` or later, and before ``ended_on``, is billed with it. One version of a price is open.
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
            sqlite_where=text("plan_id IS NOT NULL AND ended_on IS NULL"),
            postgresql_where=text("plan_id IS NOT NULL AND ended_on IS NULL"),
        ),
        Index(
            "uq_prices_key",
            "key",
            "currency",
            unique=True,
            sqlite_where=text("plan_id IS NULL AND ended_on IS NULL"),
            postgresql_where=text("plan_id IS NULL AND ended_on IS NULL"),
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
    effective_on: Mapped[date] = mapped_column(Date, default=SINCE_EVER)
    ended_on: Mapped[date | None] = mapped_column(Date)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
