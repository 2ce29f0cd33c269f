"""``catalog apply``: bring plans and prices to what a catalog file says."""

from __future__ import annotations

from pathlib import Path

import click

from svc_infra.billing.catalog import Catalog, parse_catalog
from svc_infra.billing.catalog_store import CatalogChanges, apply_catalog
from svc_infra.cli.context import echo_json, json_option, open_database, run_async, settings_options
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.exceptions import InvalidCatalog


@click.group()
def catalog() -> None:
    """Apply plans and prices from a catalog file."""


@catalog.command(name="apply")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@json_option
@settings_options
def apply_file(settings: Settings, file: Path, as_json: bool) -> None:
    """Bring plans, entitlements and prices to what FILE says, in one transaction.

    Safe to run again. What FILE does not mention stays as it is; invoices keep the prices they were rated
    with.
    """
    changes = run_async(_apply(settings, read_catalog(file)))
    outcomes = {"created": changes.created, "updated": changes.updated, "unchanged": changes.unchanged}
    if as_json:
        echo_json(outcomes)
        return
    for outcome, names in outcomes.items():
        for name in names:
            click.echo(f"{outcome:<9}  {name}")
    if not any(outcomes.values()):
        click.echo("The catalog is empty; nothing to do.")


def read_catalog(file: Path) -> Catalog:
    """Read and check a catalog file.

    Raises:
        InvalidCatalog: it has an error; the message begins with the file and the line.
    """
    try:
        return parse_catalog(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidCatalog(f"{file}:{line}: not valid UTF-8; save the file as UTF-8") from None


async def _apply(settings: Settings, wanted: Catalog) -> CatalogChanges:
    async with open_database(settings) as session_factory, session_factory.begin() as session:
        return await session.run_sync(apply_catalog, wanted, now=SystemClock().now())
