"""``copy``: move everything from a SQLite file to PostgreSQL."""

from __future__ import annotations

import click

from svc_infra.cli.context import echo_json, engine_of, json_option, require_file, run_async, settings_options
from svc_infra.config import Settings
from svc_infra.db.copying import copy_database


@click.command()
@click.argument("target", metavar="POSTGRESQL_URL")
@json_option
@settings_options
def copy(settings: Settings, target: str, as_json: bool) -> None:
    """Copy the SQLite database in use to an empty, migrated PostgreSQL database.

    Stop the workers and the application before: what they do in the file after it is not copied. The file
    stays as it is.
    """
    copied = run_async(_copy(settings, target))
    if as_json:
        echo_json(copied)
        return
    for table, rows in copied.items():
        if rows:
            click.echo(f"{rows:>12,}  {table}")
    click.echo(
        f"{sum(copied.values()):>12,}  rows copied. Point DATABASE_URL at the new database from now on."
    )


async def _copy(settings: Settings, target_url: str) -> dict[str, int]:
    changed = settings.database.model_copy(update={"url": target_url})
    source, target = engine_of(settings), engine_of(settings.model_copy(update={"database": changed}))
    require_file(source)
    try:
        return await copy_database(source, target)
    finally:
        await source.dispose()
        await target.dispose()
