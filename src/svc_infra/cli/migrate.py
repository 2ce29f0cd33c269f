"""``migrate``: bring the database to the schema of this version."""

from __future__ import annotations

import click

from svc_infra.cli.context import echo_json, engine_of, json_option, run_async, settings_options
from svc_infra.config import Settings
from svc_infra.db.migration import current_revision, head_revision
from svc_infra.db.migration import migrate as migrate_database
from svc_infra.db.tenant_isolation import isolate


@click.command()
@click.option("--to", "revision", default="head", help="Revision; 'base' drops all tables.")
@json_option
@settings_options
def migrate(settings: Settings, revision: str, as_json: bool) -> None:
    """Bring the database to the schema of this version.

    Safe to run again and from several machines at once: the others wait for the first. Where
    database.tenant_role is set, it also makes that role and the policies that hold it to one tenant.
    """
    before, after = run_async(_migrate(settings, revision))
    if as_json:
        echo_json({"before": before, "after": after, "head": head_revision()})
    elif before == after:
        click.echo(f"The schema is at {after or 'none'} already.")
    else:
        click.echo(f"The schema went from {before or 'none'} to {after or 'none'}.")


async def _migrate(settings: Settings, revision: str) -> tuple[str | None, str | None]:
    engine = engine_of(settings)
    try:
        async with engine.connect() as connection:
            before = await connection.run_sync(current_revision)
        await migrate_database(engine, revision)
        if settings.database.tenant_role and revision == "head":
            async with engine.begin() as connection:
                await connection.run_sync(isolate, settings.database.tenant_role)
        async with engine.connect() as connection:
            return before, await connection.run_sync(current_revision)
    finally:
        await engine.dispose()
