"""``config``: the settings that are in force."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from svc_infra.cli.context import echo_json, json_option, loaded_settings_options
from svc_infra.config import LoadedSettings


@click.group()
def config() -> None:
    """Look at the settings."""


@config.command("show")
@json_option
@loaded_settings_options
def show(loaded: LoadedSettings, as_json: bool) -> None:
    """Show every setting, its value and where that comes from, as lines of TOML.

    Secrets and passwords are masked.
    """
    rows = list(_rows(loaded))
    if as_json:
        echo_json([{"setting": name, "value": value, "source": source} for name, value, source in rows])
    else:
        for name, value, source in rows:
            click.echo(f"{name} = {json.dumps(value, ensure_ascii=False)}  # {source}")


def _rows(loaded: LoadedSettings) -> Iterator[tuple[str, Any, str]]:
    for section, keys in loaded.settings.model_dump(mode="json").items():
        for key, value in keys.items():
            name = f"{section}.{key}"
            shown = _without_password(value) if name == "database.url" else value
            yield name, shown, loaded.sources.get(name, "default")


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "not a database URL"  # whatever it is, it may hold a password
