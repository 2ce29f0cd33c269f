"""``simulate``: bill usage under a catalog in simulated time, in a database that is thrown away."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from sqlalchemy import select

from svc_infra.billing.models import Invoice, UsageEvent
from svc_infra.billing.money import format_minor
from svc_infra.billing.subscriptions import NewSubscription
from svc_infra.billing.usage_file import read_usage
from svc_infra.billing.usage_import import UsageImport
from svc_infra.cli.catalog import read_catalog
from svc_infra.cli.context import echo_json, run_async
from svc_infra.cli.table import print_table
from svc_infra.exceptions import InvalidCatalog
from svc_infra.logs import configure_logging
from svc_infra.testing.clock import TestClock, by_month

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DAY = click.DateTime(formats=["%Y-%m-%d"])
_BAR_WIDTH = 30
# The last month is billed within the day after its end, in every zone.
_BILLED_AFTER = timedelta(days=1)


@click.command()
@click.option("--from", "start", type=_DAY, required=True, help="The first day, UTC.")
@click.option("--to", "end", type=_DAY, required=True, help="The day after the last one, UTC.")
@click.option("--catalog", "catalog_file", type=_FILE, required=True, help="Plans and prices.")
@click.option("--usage", "usage_file", type=_FILE, required=True, help="Usage, as 'usage import' takes it.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs instead of a table for people."
)
def simulate(start: datetime, end: datetime, catalog_file: Path, usage_file: Path, as_json: bool) -> None:
    """Bill usage, of the past or made up for the future, as a worker would have, day by day.

    Every tenant of the usage is subscribed to the catalog's default plan from the first day. Nothing is kept,
    sent or charged. Prints what each month comes to.
    """
    if start >= end:
        raise click.UsageError("--from must be before --to")
    configure_logging("warning")
    started = time.perf_counter()
    invoices = run_async(
        _simulate(start.replace(tzinfo=UTC), end.replace(tzinfo=UTC), catalog_file, usage_file)
    )
    seconds = time.perf_counter() - started
    months = by_month(invoices)
    if as_json:
        rows: list[dict[str, Any]] = [
            {"month": month, "currency": currency, "invoices": count, "total_amount": total}
            for (month, currency), (count, total) in months.items()
        ]
        echo_json({"months": rows, "invoices": len(invoices), "seconds": round(seconds, 3)})
        return
    highest = max((total for _, total in months.values()), default=0) or 1
    print_table(
        ["month", "invoices", "total", ""],
        [
            (
                month,
                f"{count:,}",
                f"{currency.upper()} {format_minor(total, currency)}",
                "█" * max(0, round(_BAR_WIDTH * total / highest)),
            )
            for (month, currency), (count, total) in months.items()
        ],
        right=["invoices", "total"],
    )
    click.echo(f"{len(invoices):,} invoices of {(end - start).days:,} days in {seconds:.1f} seconds.")


async def _simulate(start: datetime, end: datetime, catalog_file: Path, usage_file: Path) -> list[Invoice]:
    catalog = read_catalog(catalog_file)
    if catalog.default_plan is None:
        raise InvalidCatalog(f"{catalog_file}: no plan has default = true; tenants are subscribed to it")
    async with TestClock(start, catalog=catalog) as clock:
        with usage_file.open("rb") as stream:
            lines = read_usage(stream, str(usage_file))
            await UsageImport(clock.runtime.session_factory, lines, name=str(usage_file)).run()
        tenants = await clock.do(lambda s: s.scalars(select(UsageEvent.tenant_id).distinct()).all())
        plan_key = catalog.default_plan.key
        await clock.subscribe_many([NewSubscription(each, plan_key, start) for each in sorted(tenants)])
        await clock.advance_to(end + _BILLED_AFTER)
        return await clock.invoices()
