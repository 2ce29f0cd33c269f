"""The tables of usage: events, what corrects or refuses them, meters, and totals by day.

``amount`` of an event means a *quantity*, never money.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.billing.columns import KEY_LENGTH, MetricText, TenantText, utc_now
from svc_infra.db.base import Base, IdText, Quantity, UtcDateTime, new_id


class _Recorded:
    """What is kept of a recorded event. ``amount`` is a quantity, never money."""

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    metric: Mapped[str] = mapped_column(MetricText)
    amount: Mapped[Decimal] = mapped_column(Quantity)
    at_ts: Mapped[datetime] = mapped_column(UtcDateTime)
    idempotency_key: Mapped[str] = mapped_column(String(KEY_LENGTH))
    metadata_json: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class UsageEvent(_Recorded, Base):
    """One recorded quantity of one metric. ``amount`` is a quantity, never money."""

    __tablename__ = "usage_events"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "metric", "idempotency_key", name="uq_usage_events_idempotency_key"),
        # With the amount, so that a day's total is read from the index alone: one stretch of it, in order.
        Index("ix_usage_events_tenant_id", "tenant_id", "metric", "at_ts", "amount"),
    )


class ArchivedUsage(_Recorded, Base):
    """An event that was invoiced long ago, out of the way of ingestion: the same row, moved as it was.

    It counts like any other: its key stays taken, and its day is recomputed with it. ``archived_at`` is when
    it was moved.
    """

    __tablename__ = "usage_archive"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "metric", "idempotency_key", name="uq_usage_archive_idempotency_key"),
        Index("ix_usage_archive_tenant_id", "tenant_id", "metric", "at_ts", "amount"),
    )

    archived_at: Mapped[datetime] = mapped_column(UtcDateTime)


# Where recorded events are, the archive last: they move that way only, so nobody who looks misses one.
RECORDED: tuple[type[UsageEvent | ArchivedUsage], ...] = (UsageEvent, ArchivedUsage)


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

    ``is_published`` says whether ``billing.usage_aggregated`` has announced this total, and ``archived_at``
    when the last of its events was archived; None if some may not be.
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
        Index(
            "ix_usage_aggregates_unarchived",
            "period_start",
            "tenant_id",
            "id",
            sqlite_where=text("archived_at IS NULL"),
            postgresql_where=text("archived_at IS NULL"),
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
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    archived_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class UsageMeter(Base):
    """How a metric becomes a quantity; a metric without a row is a plain sum. ``Metering`` reads it."""

    __tablename__ = "usage_meters"
    __table_args__ = (
        CheckConstraint(
            "meter IN ('sum', 'count', 'maximum', 'latest', 'unique_count', 'weighted_sum')", name="meter"
        ),
    )

    metric: Mapped[str] = mapped_column(MetricText, primary_key=True)
    meter: Mapped[str] = mapped_column(String(16))
    definition: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class UsageDimension(Base):
    """What one of a tenant's days holds for one combination of dimension values, of a metric with a meter.

    ``dimension`` is a JSON array of the metadata values in the order of the meter's dimensions. ``measure``
    is what the meter needs beside sum and count: the maximum, the latest amount, or the moment (amount times
    microseconds since 1970) of a weighted sum. Rows of a day are replaced under the lock of its aggregate.
    """

    __tablename__ = "usage_dimensions"
    __table_args__ = (Index("ix_usage_dimensions_tenant_id", "tenant_id", "metric", "day_start"),)

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), Identity(), primary_key=True
    )
    tenant_id: Mapped[str] = mapped_column(TenantText)
    metric: Mapped[str] = mapped_column(MetricText)
    day_start: Mapped[datetime] = mapped_column(UtcDateTime)
    dimension: Mapped[str] = mapped_column(Text)
    unique_value: Mapped[str | None] = mapped_column(Text)
    total: Mapped[Decimal] = mapped_column(Quantity(50))
    events: Mapped[int] = mapped_column(BigInteger)
    measure: Mapped[Decimal | None] = mapped_column(Quantity(76))
    last_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_id: Mapped[str | None] = mapped_column(IdText)


class UsageCorrection(Base):
    """That an event was voided, or amended: replaced by the event ``replacement_id``. Never changed itself.

    The event stays as it was recorded; a recompute leaves out what is corrected. ``metric``, ``at_ts`` and
    ``amount`` (a quantity) are those of the event: a day's total subtracts them, which is cheaper than to
    look every event of the day up among the corrections.
    """

    __tablename__ = "usage_corrections"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "event_id"),
        CheckConstraint("kind IN ('void', 'amend')", name="kind"),
        CheckConstraint("(kind = 'amend') = (replacement_id IS NOT NULL)", name="replacement_id"),
        Index("ix_usage_corrections_day", "tenant_id", "metric", "at_ts"),
    )

    tenant_id: Mapped[str] = mapped_column(TenantText)
    event_id: Mapped[str] = mapped_column(IdText)
    kind: Mapped[str] = mapped_column(String(8))
    replacement_id: Mapped[str | None] = mapped_column(IdText)
    metric: Mapped[str] = mapped_column(MetricText)
    at_ts: Mapped[datetime] = mapped_column(UtcDateTime)
    amount: Mapped[Decimal] = mapped_column(Quantity())
    reason: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class UsageRejection(Base):
    """A usage event that was refused, with the reason; ``amount`` is the quantity as text."""

    __tablename__ = "usage_rejections"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        Index("ix_usage_rejections_created_at", "created_at"),
    )

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    metric: Mapped[str] = mapped_column(MetricText)
    amount: Mapped[str] = mapped_column(Text)
    at_ts: Mapped[datetime] = mapped_column(UtcDateTime)
    idempotency_key: Mapped[str] = mapped_column(String(KEY_LENGTH))
    metadata_json: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class TenantErasure(Base):
    """That a tenant's usage was erased and the tenant closed: who did it, why, and how many rows it was."""

    __tablename__ = "tenant_erasures"

    tenant_id: Mapped[str] = mapped_column(TenantText, primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(200))
    rows: Mapped[dict[str, int]] = mapped_column(JSON)
    erased_at: Mapped[datetime] = mapped_column(UtcDateTime)
