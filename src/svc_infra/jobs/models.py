"""The tables of jobs and of cron fires."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, Float, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.base import TENANT_ID_LENGTH, Base, IdText, UtcDateTime
from svc_infra.db.leases import LeasedRow

_IS_AVAILABLE = text("state = 'available'")
_IS_OF_A_TENANT = text("state = 'available' AND tenant_id IS NOT NULL")
_IS_LIMITED = text("state = 'available' AND limit_key IS NOT NULL")
_HOLDS_A_SLOT = text("slot IS NOT NULL")
_IS_RUNNING = text("state = 'running'")
HOLDS_ITS_KEY = text(
    "unique_key IS NOT NULL AND (unique_states & (CASE state WHEN 'available' THEN 1 WHEN 'running' THEN 2"
    " WHEN 'completed' THEN 4 WHEN 'discarded' THEN 8 ELSE 16 END)) <> 0"
)


class JobRow(LeasedRow, Base):
    """A job: a named payload that is run until it reaches a terminal state."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "state IN ('available', 'running', 'completed', 'discarded', 'cancelled')", name="state"
        ),
        CheckConstraint("(state = 'running') = (lease_id IS NOT NULL)", name="lease"),
        CheckConstraint("attempt >= 0 AND max_attempts >= 1", name="attempts"),
        # The claim's index: only due work is in it, in the order in which it is claimed.
        Index(
            "ix_jobs_available",
            "priority",
            "run_at",
            "id",
            sqlite_where=_IS_AVAILABLE,
            postgresql_where=_IS_AVAILABLE,
        ),
        Index("ix_jobs_running", "lease_until", sqlite_where=_IS_RUNNING, postgresql_where=_IS_RUNNING),
        Index(
            "ix_jobs_finished",
            "state",
            "finished_at",
            sqlite_where=text("finished_at IS NOT NULL"),
            postgresql_where=text("finished_at IS NOT NULL"),
        ),
        # A job's key is taken while it is in one of its states, which are bits (uniqueness.STATE_BITS).
        Index(
            "uq_jobs_unique_key",
            "unique_key",
            unique=True,
            sqlite_where=HOLDS_ITS_KEY,
            postgresql_where=HOLDS_ITS_KEY,
        ),
        # A few jobs of each tenant are found in it without reading those of the others.
        Index(
            "ix_jobs_tenant",
            "tenant_id",
            "priority",
            "run_at",
            "id",
            sqlite_where=_IS_OF_A_TENANT,
            postgresql_where=_IS_OF_A_TENANT,
        ),
        # A slot of a limit is held by one running job.
        Index(
            "uq_jobs_slot",
            "limit_key",
            "slot",
            unique=True,
            sqlite_where=_HOLDS_A_SLOT,
            postgresql_where=_HOLDS_A_SLOT,
        ),
        Index(
            "ix_jobs_limited",
            "limit_key",
            "priority",
            "run_at",
            "id",
            sqlite_where=_IS_LIMITED,
            postgresql_where=_IS_LIMITED,
        ),
        Index(
            "ix_jobs_group_id",
            "group_id",
            "state",
            sqlite_where=text("group_id IS NOT NULL"),
            postgresql_where=text("group_id IS NOT NULL"),
        ),
        # Every update of a job changes an indexed state; room on the page keeps such versions together.
        {"postgresql_with": {"fillfactor": "80"}},
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    queue: Mapped[str] = mapped_column(String(100), default="default")
    tenant_id: Mapped[str | None] = mapped_column(String(TENANT_ID_LENGTH))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer)
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    payload_version: Mapped[int] = mapped_column(Integer, default=1, server_default=text("1"))
    meta: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    trace_context: Mapped[str | None] = mapped_column(String(255))
    timeout_seconds: Mapped[float | None] = mapped_column(Float)
    unique_key: Mapped[str | None] = mapped_column(String(64))
    unique_states: Mapped[int | None] = mapped_column(Integer)
    limit_key: Mapped[str | None] = mapped_column(String(255))
    limit_slots: Mapped[int | None] = mapped_column(Integer)
    slot: Mapped[int | None] = mapped_column(Integer)
    rate_starts: Mapped[int | None] = mapped_column(Integer)
    rate_seconds: Mapped[float | None] = mapped_column(Float)
    group_id: Mapped[str | None] = mapped_column(IdText)
    waits_for: Mapped[str | None] = mapped_column(IdText)


class JobRateRow(Base):
    """What started of one key with a rate (``rate.Starts``), in business time.

    ``per_seconds`` is the longest stretch that is asked for. Its jobs are passed over until
    ``blocked_until``; after ``kept_until`` no stretch holds any of what started.
    """

    __tablename__ = "job_rates"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    started: Mapped[list[list[int]]] = mapped_column(JSON)
    per_seconds: Mapped[float] = mapped_column(Float)
    blocked_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    kept_until: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class QueueRow(Base):
    """A queue that somebody paused; one that nobody ever paused has no row."""

    __tablename__ = "queues"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    paused_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class JobCancellationRow(Base):
    """The wish to cancel a job that was running; whoever holds its lease carries it out."""

    __tablename__ = "job_cancellations"

    job_id: Mapped[str] = mapped_column(IdText, primary_key=True)
    reason: Mapped[str] = mapped_column(String(200))
    requested_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AdminActRow(Base):
    """What somebody did to jobs, queues or schedules by hand; rows are only ever added."""

    __tablename__ = "admin_acts"

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    actor: Mapped[str] = mapped_column(String(200))
    act: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(String(255))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)


class ScheduleRow(Base):
    """How far the fires of one schedule have been dealt with (``fired_until``, inclusive).

    While it is paused, its fires are recorded as missed. One that was added by hand has a
    ``definition``.
    """

    __tablename__ = "schedules"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    fired_until: Mapped[datetime] = mapped_column(UtcDateTime)
    definition: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    paused_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class CronFireRow(Base):
    """One fire of one schedule: the primary key is what makes it happen once."""

    __tablename__ = "cron_fires"

    schedule: Mapped[str] = mapped_column(String(200), primary_key=True)
    fire_at: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    job_id: Mapped[str | None] = mapped_column(IdText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
