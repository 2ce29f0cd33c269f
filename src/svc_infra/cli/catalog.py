"""``catalog check``, ``diff`` and ``apply``: plans and prices as a file says, like a migration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import click

from svc_infra.billing.catalog import Catalog, parse_catalog
from svc_infra.billing.catalog_prices import PriceChange
from svc_infra.billing.catalog_store import CatalogChanges, apply_catalog
from svc_infra.billing.models import SINCE_EVER
from svc_infra.canonical import compact_json
from svc_infra.cli.context import echo_json, json_option, open_database, run_async, settings_options
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.exceptions import InvalidCatalog

_FILE = click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))


def _version_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--retroactive", is_flag=True, help="Let prices change what has begun and is not invoiced yet."
    )(command)
    return click.option(
        "--from",
        "starts_on",
        type=click.DateTime(["%Y-%m-%d"]),
        help="First day of changed prices, in each tenant's zone; the first of the next month without.",
    )(command)


@click.group()
def catalog() -> None:
    """Check, compare and apply plans and prices from a catalog file."""


@catalog.command()
@_FILE
def check(file: Path) -> None:
    """Check FILE without a database; the message of an error begins with the file and the line."""
    found = read_catalog(file)
    meters = f" and {len(found.meters)} meters" if found.meters else ""
    click.echo(f"{file}: {len(found.plans)} plans and {len(found.prices)} prices{meters}, no errors")


@catalog.command()
@_FILE
@_version_options
@json_option
@settings_options
def diff(
    settings: Settings, file: Path, starts_on: datetime | None, retroactive: bool, as_json: bool
) -> None:
    """Show what applying FILE would change, and from when it would be billed differently. Changes nothing."""
    _show(run_async(_apply(settings, file, starts_on, retroactive, keeps=False)), as_json, is_done=False)


@catalog.command(name="apply")
@_FILE
@_version_options
@json_option
@settings_options
def apply_file(
    settings: Settings, file: Path, starts_on: datetime | None, retroactive: bool, as_json: bool
) -> None:
    """Bring meters, plans, entitlements and prices to what FILE says, in one transaction.

    A changed price is a new version: it counts for what begins on the given day or later, and what has begun
    keeps the old one. Safe to run again, and by several at once. What FILE does not mention stays as it is;
    invoices keep the prices they were rated with.
    """
    _show(run_async(_apply(settings, file, starts_on, retroactive, keeps=True)), as_json, is_done=True)


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


async def _apply(
    settings: Settings, file: Path, starts_on: datetime | None, retroactive: bool, *, keeps: bool
) -> CatalogChanges:
    wanted = read_catalog(file)
    day = None if starts_on is None else starts_on.date()
    async with open_database(settings) as session_factory, session_factory() as session:
        # A diff is an apply that is taken back: what it shows is what would happen.
        changes = await session.run_sync(
            apply_catalog, wanted, now=SystemClock().now(), effective_on=day, is_retroactive=retroactive
        )
        await (session.commit() if keeps else session.rollback())
        return changes


def _show(changes: CatalogChanges, as_json: bool, *, is_done: bool) -> None:
    outcomes = {"created": changes.created, "updated": changes.updated, "unchanged": changes.unchanged}
    if as_json:
        prices = [_json(change) for change in changes.prices if change.is_change]
        echo_json(outcomes if is_done else {**outcomes, "prices": prices})
        return
    for outcome, names in outcomes.items():
        for name in names:
            click.echo(f"{outcome:<9}  {name}")
    for line in _billed_differently(changes.prices):
        click.echo(line)
    if not any(outcomes.values()):
        click.echo("The catalog is empty; nothing to do.")


def _billed_differently(prices: Iterable[PriceChange]) -> Iterable[str]:
    for change in prices:
        if not change.is_change:
            continue
        yield ""
        warning = "  RETROACTIVE" if change.is_retroactive else ""
        yield f"{change.name}: {_since(change.effective_on)}{warning}"
        before, after = change.before or {}, change.after or {}
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                if key in before:
                    yield f"  - {key} = {_text(before[key])}"
                if key in after:
                    yield f"  + {key} = {_text(after[key])}"


def _since(day: date) -> str:
    return "since ever" if day == SINCE_EVER else f"for what begins on {day} or later"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else compact_json(value)


def _json(change: PriceChange) -> dict[str, Any]:
    return {
        "name": change.name,
        "effective_on": change.effective_on.isoformat(),
        "is_retroactive": change.is_retroactive,
        "before": change.before,
        "after": change.after,
    }
