"""The tables of jobs and of cron fires."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.base import TENANT_ID_LENGTH, Base, IdText, UtcDateTime
from svc_infra.db.leases import LeasedRow

_IS_AVAILABLE = text("state = 'available'")
_IS_RUNNING = text("state = 'running'")


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


class ScheduleRow(Base):
    """How far the fires of one schedule have been dealt with (``fired_until``, inclusive)."""

    __tablename__ = "schedules"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    fired_until: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class CronFireRow(Base):
    """One fire of one schedule: the primary key is what makes it happen once."""

    __tablename__ = "cron_fires"

    schedule: Mapped[str] = mapped_column(String(200), primary_key=True)
    fire_at: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    job_id: Mapped[str | None] = mapped_column(IdText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
