"""``demo``: bill a history in simulated time, deliver every webhook, and prove every amount."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from svc_infra.billing.money import format_minor
from svc_infra.cli import EXIT_FAILED, EXIT_USAGE
from svc_infra.cli.context import echo_json, run_async
from svc_infra.db.migration import packaged_folder
from svc_infra.exceptions import InvalidCatalog, InvalidUsage
from svc_infra.logs import configure_logging
from svc_infra.simulation.demo import USAGE_FILE, Demo, DemoReport
from svc_infra.simulation.demo import Progress as OnProgress

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--usage", "usage_file", type=_FILE, help="Usage to bill; default: a quarter of a web shop.")
@click.option("--catalog", "catalog_file", type=_FILE, help="Plans and prices; default: config/catalog.toml.")
@click.option("--database-url", help="An empty database to use instead of a temporary SQLite file.")
@click.option("--keep", type=click.Path(dir_okay=False, path_type=Path), help="Keep the SQLite file here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def demo(
    usage_file: Path | None,
    catalog_file: Path | None,
    database_url: str | None,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Bill a history with the real scheduler, worker, relay and sender, in simulated time.

    Every tenant is subscribed to the catalog's default plan from the month of its first event and gets one
    invoice per month. A receiver on this machine verifies every webhook with a foreign library, and every
    invoice is recomputed from the files by code that shares nothing with the product. Exit 0 only if all is
    billed, verified and equal; 1 if not; 2 for a bad line, a bad catalog or prices in several currencies.
    """
    if database_url and keep:
        raise click.UsageError("--keep names a SQLite file, --database-url a database: give one of them")
    if keep and keep.exists() and keep.stat().st_size:
        raise click.UsageError(f"{keep} exists already; the demo fills a database of its own")
    configure_logging("warning")
    # Ended like by Ctrl-C, so that the temporary database and the receiver go away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _database(database_url, keep) as url, _progress() as on_progress:
        demo_run = Demo(
            usage_file or USAGE_FILE,
            catalog_file or packaged_folder("config") / "catalog.toml",
            url,
            progress=on_progress,
        )
        try:
            report = run_async(demo_run.run())
        except (InvalidCatalog, InvalidUsage) as error:
            if keep:
                keep.unlink(missing_ok=True)  # ours and useless, and it would be in the way of the next try
            click.echo(f"Error: {error}", err=True)
            sys.exit(EXIT_USAGE)
    if as_json:
        _say_faults(report, Console(stderr=True))
        echo_json(report.as_json())
    else:
        _print_summary(report, Console())
    sys.exit(0 if report.is_proved else EXIT_FAILED)


@contextmanager
def _database(database_url: str | None, keep: Path | None) -> Iterator[str]:
    if database_url:
        yield database_url
    elif keep:
        yield f"sqlite:///{keep.absolute()}"
    else:
        with TemporaryDirectory(prefix="svc-demo-") as folder:
            yield f"sqlite:///{folder}/demo.sqlite"


@contextmanager
def _progress() -> Iterator[OnProgress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=40),
        TextColumn("{task.percentage:>3.0f}%"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, share: float) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, completed=1.0)
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=share)

        yield show


def _print_summary(report: DemoReport, console: Console) -> None:
    counts = report.counts
    table = Table(title="What was billed", show_header=False, title_justify="left", min_width=58)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for label, value in (
        ("Tenants", f"{counts.tenants:,}"),
        ("Usage events", f"{report.usage_events:,}"),
        ("Repeated lines left out", f"{report.duplicates:,}"),
        ("Daily aggregates", f"{counts.aggregates:,}"),
        ("Invoices", f"{counts.invoices:,}"),
        ("Invoice lines", f"{counts.invoice_lines:,}"),
        ("Invoiced", _money(counts.invoiced_minor, report.currency)),
        ("Jobs completed", f"{report.jobs_completed:,}"),
        ("Webhooks delivered", f"{counts.deliveries:,}"),
        ("Webhooks verified by the receiver", f"{report.deliveries_verified:,}"),
        ("Seconds", f"{report.seconds:.1f}"),
    ):
        table.add_row(label, value)
    console.print(table)
    if report.top_invoices:
        console.print(_top_invoices(report))
    _say_faults(report, console)
    if report.is_proved:
        console.print(
            f"[green]Proved:[/] all {report.reconciliation.compared:,} invoices equal their recomputation "
            "from the usage file, line by line; every webhook arrived once and verified."
        )


def _top_invoices(report: DemoReport) -> Table:
    table = Table(title="The five largest invoices", title_justify="left", min_width=58)
    table.add_column("Tenant")
    table.add_column("Month")
    table.add_column("Total", justify="right")
    for tenant_id, period_start, total in report.top_invoices:
        table.add_row(escape(tenant_id), f"{period_start:%B %Y}", _money(total, report.currency))
    return table


def _say_faults(report: DemoReport, console: Console) -> None:
    if report.unpriced_metrics:
        metrics = escape(", ".join(report.unpriced_metrics))
        console.print(f"Used but without a price, so not billed: {metrics}", highlight=False)
    for fault in (*report.faults, *report.reconciliation.differences):
        console.print(f"[red]Not proved:[/] {escape(fault)}", highlight=False)


def _money(amount: int, currency: str) -> str:
    return f"{format_minor(amount, currency)} {currency.upper()}"
