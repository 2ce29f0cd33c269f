"""The sections of the settings: what there is to set, its default, and what of it cannot be."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

ARCHIVE_DAYS = 62
"""What is younger is not archived: a quota's window may be a month, and counts the live table's usage."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(Section):
    url: str = "sqlite:///svc_infra.db"
    pool_size: int = Field(8, ge=1)
    statement_timeout_seconds: float = Field(60.0, gt=0)
    lock_timeout_seconds: float = Field(20.0, gt=0)
    idle_in_transaction_timeout_seconds: float = Field(60.0, gt=0)
    behind_transaction_pooler: bool = False
    tenant_role: str = ""


class WorkerSettings(Section):
    concurrency: int = Field(4, ge=1)
    poll_seconds: float = Field(1.0, gt=0)
    lease_seconds: float = Field(30.0, ge=1)
    grace_seconds: float = Field(25.0, ge=0)
    completed_retention_days: float = Field(1, gt=0)
    cancelled_retention_days: float = Field(7, gt=0)
    discarded_retention_days: float = Field(90, gt=0)


class ScheduleSettings(Section):
    """A schedule in the settings, or added by hand: one of ``cron``, ``every_seconds`` and ``at``."""

    name: str
    job: str
    cron: str | None = None
    every_seconds: int | None = None
    at: datetime | None = None
    timezone: str = "UTC"
    payload: dict[str, Any] = {}
    queue: str = "default"
    catch_up: Literal["all", "latest", "none"] = "all"
    cap: int = 1_000
    overlap: Literal["parallel", "queue", "skip"] = "parallel"
    jitter_seconds: float = 0


class SchedulerSettings(Section):
    is_enabled: bool = True
    poll_seconds: float = Field(1.0, gt=0)
    daily_cron: str = "5 0 * * *"
    monthly_cron: str = "15 0,12 1 * *"
    audit_cron: str = "30 3 * * *"
    timezone: str = "UTC"
    schedules: tuple[ScheduleSettings, ...] = ()


class WebhookSettings(Section):
    in_flight: int = Field(200, ge=1)
    in_flight_per_endpoint: int = Field(8, ge=1)
    endpoints_per_tenant: int = Field(1_000, ge=1)
    timeout_seconds: float = Field(15.0, gt=0)
    poll_seconds: float = Field(1.0, gt=0)
    lease_seconds: float = Field(30.0, gt=0)
    allow_http: bool = False
    allow_ports: tuple[int, ...] = (443, 8443)
    allow_networks: tuple[str, ...] = ()
    egress_proxy: SecretStr = SecretStr("")
    secret_keys: SecretStr = SecretStr("")
    delivered_retention_days: float = Field(30, gt=0)
    dead_retention_days: float = Field(90, gt=0)
    retry_seconds: tuple[float, ...] = (0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)

    @field_validator("lease_seconds")
    @classmethod
    def _outlives_a_request(cls, lease_seconds: float, info: Any) -> float:
        # A lease shorter than a request would hand a delivery to a second worker while it is being sent.
        if lease_seconds < 2 * info.data.get("timeout_seconds", 0):
            raise ValueError("must be at least twice webhooks.timeout_seconds")
        return lease_seconds


class BillingSettings(Section):
    currency: str = "usd"
    aggregate_seconds: float = Field(2.0, gt=0)
    usage_past_days: float = Field(0, ge=0)
    usage_future_seconds: float = Field(86400, ge=0)
    usage_archive_days: float = Field(0, ge=0)
    quotas_without_entitlement: Literal["refuse", "allow"] = "refuse"
    provider: Literal["none", "stripe"] = "none"
    max_invoices_per_day: int = Field(200, ge=1)
    max_lines_per_day: int = Field(20_000, ge=1)

    @field_validator("usage_archive_days")
    @classmethod
    def _leaves_quotas_alone(cls, days: float) -> float:
        if 0 < days < ARCHIVE_DAYS:
            raise ValueError(f"must be 0 or at least {ARCHIVE_DAYS}: quotas count the usage of their month")
        return days

    @property
    def archived_after_days(self) -> float:
        """From which age on usage is archived: never such as may still be recorded; 0 for never."""
        return max(self.usage_archive_days, self.usage_past_days) if self.usage_archive_days else 0


class ApiSettings(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)


class MonitoringSettings(Section):
    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)


class StripeSettings(Section):
    api_key: SecretStr = SecretStr("")
    days_until_due: int = Field(30, ge=0)
    timeout_seconds: float = Field(30.0, gt=0)
    base_url: str = ""


class LogSettings(Section):
    level: str = "info"
