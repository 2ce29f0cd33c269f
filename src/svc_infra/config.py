"""The settings, and the only reader of the environment.

Precedence: the defaults here, then a TOML file, then the environment (``SVC__SECTION__KEY``, and
``DATABASE_URL`` for the database), then what the caller passes. ``config/worker.toml`` lists every setting
with its default; a test holds the two equal.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from svc_infra.exceptions import InvalidSettings

ENVIRONMENT_PREFIX = "SVC__"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(_Section):
    url: str = "sqlite:///svc_infra.db"
    pool_size: int = Field(8, ge=1)
    statement_timeout_seconds: float = Field(60.0, gt=0)
    lock_timeout_seconds: float = Field(20.0, gt=0)
    idle_in_transaction_timeout_seconds: float = Field(60.0, gt=0)
    behind_transaction_pooler: bool = False


class WorkerSettings(_Section):
    concurrency: int = Field(4, ge=1)
    poll_seconds: float = Field(1.0, gt=0)
    lease_seconds: float = Field(30.0, ge=1)
    grace_seconds: float = Field(25.0, ge=0)
    completed_retention_days: float = Field(1, gt=0)
    cancelled_retention_days: float = Field(7, gt=0)
    discarded_retention_days: float = Field(90, gt=0)


class SchedulerSettings(_Section):
    is_enabled: bool = True
    poll_seconds: float = Field(1.0, gt=0)
    daily_cron: str = "5 0 * * *"
    monthly_cron: str = "15 0,12 1 * *"
    timezone: str = "UTC"


class WebhookSettings(_Section):
    in_flight: int = Field(200, ge=1)
    in_flight_per_endpoint: int = Field(8, ge=1)
    timeout_seconds: float = Field(15.0, gt=0)
    poll_seconds: float = Field(1.0, gt=0)
    lease_seconds: float = Field(30.0, gt=0)
    allow_http: bool = False
    allow_ports: tuple[int, ...] = (443, 8443)
    allow_networks: tuple[str, ...] = ()
    secret_keys: SecretStr = SecretStr("")
    secret_keys_file: str = ""
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

    def read_secret_keys(self) -> str:
        """Return the sealing keys: the setting, or what is in the file that it names; empty if neither.

        Raises:
            InvalidSettings: both are given, or the file cannot be read.
        """
        if not self.secret_keys_file:
            return self.secret_keys.get_secret_value()
        if self.secret_keys.get_secret_value():
            raise InvalidSettings("give webhooks.secret_keys or webhooks.secret_keys_file, not both")
        try:
            return Path(self.secret_keys_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSettings(f"webhooks.secret_keys_file cannot be read: {error}") from None


class BillingSettings(_Section):
    currency: str = "usd"


class LogSettings(_Section):
    level: str = "info"


class Settings(BaseSettings):
    """All settings of a process; frozen once loaded. Make one with ``load_settings``."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    database: DatabaseSettings = DatabaseSettings()
    worker: WorkerSettings = WorkerSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    webhooks: WebhookSettings = WebhookSettings()
    billing: BillingSettings = BillingSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file is passed as the init values, so the environment comes before it.
        return env_settings, init_settings


def load_settings(file: Path | None = None, *, database_url: str | None = None) -> Settings:
    """Load the settings from ``file`` (if any) and the environment; ``database_url`` overrides both.

    Raises:
        InvalidSettings: a key is unknown (the message names the nearest right one) or a value is wrong.
    """
    values = _read_file(file) if file else {}
    _refuse_unknown(values, source=str(file))
    _refuse_unknown_environment(os.environ)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidSettings(f"{place}: {first['msg']}; see config/worker.toml for what it may be") from None
    url = database_url or os.environ.get("DATABASE_URL")
    if url is None:
        return settings
    database = settings.database.model_copy(update={"url": url})
    return settings.model_copy(update={"database": database})


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidSettings(f"{file}: no such file; name another with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{file}: not a TOML file: {error}") from None


def _refuse_unknown(values: Mapping[str, Any], *, source: str) -> None:
    for section, keys in values.items():
        _require_known(section, Settings.model_fields, f"{source}: section [{section}]")
        known = _section_fields(section)
        for key in keys if isinstance(keys, Mapping) else ():
            _require_known(key, known, f"{source}: {section}.{key}")


def _refuse_unknown_environment(environment: Mapping[str, str]) -> None:
    for name in environment:
        if name.upper().startswith(ENVIRONMENT_PREFIX):
            section, _, key = name.upper().removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
            _require_known(section, Settings.model_fields, f"environment variable {name}")
            if key:
                _require_known(key, _section_fields(section), f"environment variable {name}")


def _section_fields(section: str) -> Iterable[str]:
    annotation = Settings.model_fields[section].annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, _Section)
    return annotation.model_fields


def _require_known(key: str, known: Iterable[str], place: str) -> None:
    if key in known:
        return
    nearest = difflib.get_close_matches(key, list(known), n=1, cutoff=0)
    raise InvalidSettings(f"{place} is unknown; the nearest right name is {nearest[0]!r}")
