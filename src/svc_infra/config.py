"""The settings, and the only reader of the environment.

Precedence: the defaults here, then a TOML file, then the environment (``SVC__SECTION__KEY``, and
``DATABASE_URL`` for the database), then what the caller passes. Instead of a value, a file or the environment
may name a file that holds it (``secret_keys_file = "/run/secrets/keys"``, ``DATABASE_URL_FILE``), as mounted
secrets do. ``config/worker.toml`` lists every setting with its default; a test holds the two equal.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from svc_infra.config_sections import (
    ARCHIVE_DAYS,
    ApiSettings,
    BillingSettings,
    DatabaseSettings,
    LogSettings,
    MonitoringSettings,
    SchedulerSettings,
    ScheduleSettings,
    Section,
    StripeSettings,
    WebhookSettings,
    WorkerSettings,
)
from svc_infra.exceptions import InvalidSettings

__all__ = [
    "ARCHIVE_DAYS",
    "ENVIRONMENT_PREFIX",
    "ApiSettings",
    "BillingSettings",
    "DatabaseSettings",
    "LoadedSettings",
    "LogSettings",
    "MonitoringSettings",
    "ScheduleSettings",
    "SchedulerSettings",
    "Settings",
    "StripeSettings",
    "WebhookSettings",
    "WorkerSettings",
    "load_settings",
    "load_with_sources",
]

ENVIRONMENT_PREFIX = "SVC__"
_FILE = "_FILE"


class _Environment(EnvSettingsSource):
    """The variables that hold values; those that name a file are read by ``load_with_sources``."""

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        for section, values in found.items():
            if isinstance(values, dict) and section in Settings.model_fields:
                known = _section_fields(section)
                found[section] = {key: text for key, text in values.items() if not _named_by_file(key, known)}
        return found


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
    api: ApiSettings = ApiSettings()
    stripe: StripeSettings = StripeSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
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
        return _Environment(settings_cls), init_settings


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and for each ``section.key`` that is not at its default the place that its value is from."""

    settings: Settings
    sources: Mapping[str, str]


def load_settings(
    file: Path | None = None, *, database_url: str | None = None, flags: Mapping[str, str] | None = None
) -> Settings:
    """Load the settings from ``file`` (if any) and the environment.

    ``flags`` (``section.key`` to text) come before both, and ``database_url`` is one of them.

    Raises:
        InvalidSettings: a key is unknown (the message names the nearest right one) or a value is wrong.
    """
    return load_with_sources(file, database_url=database_url, flags=flags).settings


def load_with_sources(
    file: Path | None = None, *, database_url: str | None = None, flags: Mapping[str, str] | None = None
) -> LoadedSettings:
    """Load the settings as ``load_settings`` does, and say where each value comes from.

    Raises:
        InvalidSettings: as ``load_settings``.
    """
    given = dict(flags or {})
    if database_url is not None:
        given["database.url"] = database_url
    values, sources = _read_file(file) if file else ({}, {})
    environment = _read_environment(os.environ)
    try:
        settings = Settings(**values)
        for name, (value, source) in environment.items():
            sources[name] = source
            if value is not None:
                settings = _with(settings, name, value)
        for name, value in given.items():
            sources[name] = "flag"
            settings = _with(settings, name, _decoded(name, value))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidSettings(f"{place}: {first['msg']}; see config/worker.toml for what it may be") from None
    except SettingsError as error:
        raise InvalidSettings(f"{error}; lists are written as JSON") from None
    return LoadedSettings(settings, sources)


def _with(settings: Settings, name: str, value: Any) -> Settings:
    """Return the settings with one value replaced, and its section checked again."""
    section, _, key = name.partition(".")
    old: Section = getattr(settings, section)
    try:
        new = type(old).model_validate({**old.model_dump(), key: value})
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSettings(f"{name}: {first['msg']}; see config/worker.toml for what it may be") from None
    return settings.model_copy(update={section: new})


def _decoded(name: str, text: str) -> Any:
    """Return the value that a flag writes as text: JSON where the setting is a list, the text otherwise."""
    section, _, key = name.partition(".")
    _require_known(section, Settings.model_fields, f"setting {name}")
    fields = _section_fields(section)
    _require_known(key, fields, f"setting {name}")
    if not isinstance(fields[key].default, tuple):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise InvalidSettings(f'{name}: write the list as JSON, like ["a","b"]') from None


def _read_file(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of a settings file by section, and the source of each."""
    try:
        written = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidSettings(f"{file}: no such file; name another with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{file}: not a TOML file: {error}") from None
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for section, keys in written.items():
        _require_known(section, Settings.model_fields, f"{file}: section [{section}]")
        if not isinstance(keys, Mapping):
            raise InvalidSettings(f"{file}: {section} is a section; write [{section}] and its keys below")
        known = _section_fields(section)
        values[section] = {}
        for key, value in keys.items():
            target = _named_by_file(key, known)
            _require_known(target or key, known, f"{file}: {section}.{key}")
            if target in keys:
                raise InvalidSettings(f"{file}: give {section}.{target} or {section}.{key}, not both")
            values[section][target or key] = value if target is None else _content(str(value), key)
            sources[f"{section}.{target or key}"] = str(file) if target is None else f"{file}: {value}"
    return values, sources


def _read_environment(environment: Mapping[str, str]) -> dict[str, tuple[str | None, str]]:
    """Return by ``section.key`` what the environment gives: a value that is still to be set, and its source.

    The value is None where pydantic reads the variable itself.
    """
    found: dict[str, tuple[str | None, str]] = {}
    for variable, text in environment.items():
        if not variable.upper().startswith(ENVIRONMENT_PREFIX):
            continue
        section, _, key = variable.upper().removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        _require_known(section, Settings.model_fields, f"environment variable {variable}")
        if not key:
            example = f"{ENVIRONMENT_PREFIX}{section.upper()}__KEY"
            raise InvalidSettings(f"environment variable {variable} is a section; set {example} for each key")
        known = _section_fields(section)
        target = _named_by_file(key, known)
        _require_known(target or key, known, f"environment variable {variable}")
        _put(found, f"{section}.{target or key}", variable, text, is_file=target is not None)
    named = [variable for variable in ("DATABASE_URL", "DATABASE_URL_FILE") if variable in environment]
    if len(named) > 1:
        raise InvalidSettings("environment: give DATABASE_URL or DATABASE_URL_FILE, not both")
    for variable in named:
        text = environment[variable]
        value = _content(text, variable) if variable.endswith(_FILE) else text
        found["database.url"] = (value, f"environment {variable}")
    return found


def _put(
    found: dict[str, tuple[str | None, str]], name: str, variable: str, text: str, *, is_file: bool
) -> None:
    if name in found:
        raise InvalidSettings(f"environment: give {name} or the file that holds it, not both")
    found[name] = (_content(text, variable) if is_file else None, f"environment {variable}")


def _named_by_file(key: str, known: Iterable[str]) -> str | None:
    """Return the setting whose value is in a file that ``key`` names, or None if it is no such key."""
    target = key.removesuffix(_FILE.lower())
    return target if target != key and key not in known and target in known else None


def _content(path: str, place: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{place}: {path} cannot be read: {error}") from None


def _section_fields(section: str) -> Mapping[str, FieldInfo]:
    annotation = Settings.model_fields[section].annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, Section)
    return annotation.model_fields


def _require_known(key: str, known: Iterable[str], place: str) -> None:
    if key in known:
        return
    nearest = difflib.get_close_matches(key, list(known), n=1, cutoff=0)
    raise InvalidSettings(f"{place} is unknown; the nearest right name is {nearest[0]!r}")
