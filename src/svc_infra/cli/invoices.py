"""``invoices list``, ``show``, ``export`` and ``make``."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, timedelta
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, TextIO, cast

import click
from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.billing.invoices import EXPORT_COLUMNS, export_rows, get_invoice, invoice_lines, list_invoices
from svc_infra.billing.models import Invoice, InvoiceLine
from svc_infra.billing.money import format_minor
from svc_infra.billing.periods import Period, month_bounds
from svc_infra.billing.runs import RUN_MONTHLY_INVOICING
from svc_infra.canonical import canonical_decimal, canonical_instant
from svc_infra.cli.acting import echo_act
from svc_infra.cli.context import echo_json, json_option, open_database, run_async, settings_options
from svc_infra.cli.invoice_acts import COMMANDS
from svc_infra.cli.invoice_explain import explain, preview
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.exceptions import InvalidPeriod, NotFound
from svc_infra.jobs import SqlJobQueue

_SPOOLED_BYTES = 8 * 1024 * 1024


def month(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Period | None:
    """Read a calendar month, ``YYYY-MM``, wherever on earth the tenant is."""
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}", value):
        raise click.BadParameter(f"{value!r} is not a month like 2025-01")
    try:
        found = month_bounds(int(value[:4]), int(value[5:]), UTC)
    except InvalidPeriod as error:
        raise click.BadParameter(str(error)) from None
    # The zones reach from 14 hours ahead of UTC to 12 behind it; no other month fits in.
    return Period(found.start - timedelta(hours=14), found.end + timedelta(hours=12))


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--tenant`` and ``--period``."""
    command = click.option("--period", callback=month, metavar="YYYY-MM", help="Only this month's.")(command)
    return click.option("--tenant", help="Only this tenant's.")(command)


@click.group()
def invoices() -> None:
    """List, show and export invoices; move them on, credit them."""


for _command in (*COMMANDS, explain, preview):
    invoices.add_command(_command)


@invoices.command(name="list")
@filter_options
@click.option("--limit", type=click.IntRange(min=1), default=100, help="At most so many.")
@json_option
@settings_options
def list_(settings: Settings, tenant: str | None, period: Period | None, limit: int, as_json: bool) -> None:
    """List invoices by tenant, each tenant's in the order they were made."""
    # One more than is shown tells whether there are more.
    found = run_async(_list(settings, tenant, period, limit + 1))
    shown = found[:limit]
    if as_json:
        echo_json([_summary(invoice) for invoice in shown])
    else:
        columns = ["id", "tenant", "number", "from", "to", "status", "total"]
        print_table(columns, [_cells(invoice) for invoice in shown], right=["total"])
    if len(found) > limit:
        click.echo(f"There are more than {limit:,}: raise --limit, or use 'invoices export'.", err=True)


@invoices.command()
@click.argument("invoice_id", metavar="ID")
@click.option("--tenant", help="Find it only if it is this tenant's.")
@json_option
@settings_options
def show(settings: Settings, invoice_id: str, tenant: str | None, as_json: bool) -> None:
    """Show an invoice with its lines."""
    invoice, lines = run_async(_show(settings, invoice_id, tenant))
    if as_json:
        echo_json({**_summary(invoice), "lines": [_line(line) for line in lines]})
        return
    click.echo(f"Invoice {_number(invoice)} of tenant {invoice.tenant_id} ({invoice.status})")
    click.echo(f"{_day(invoice.period_start)} to {_day(invoice.period_end)}, the end not included")
    currency = invoice.currency
    rows: list[tuple[object, ...]] = [
        (
            line.position,
            line.description or line.metric or line.kind,
            f"{_day(line.period_start)} to {_day(line.period_end)}",
            canonical_decimal(line.quantity),
            format_minor(line.amount, currency),
        )
        for line in lines
    ]
    rows.append(("", "total", "", "", f"{currency.upper()} {format_minor(invoice.total_amount, currency)}"))
    print_table(["#", "line", "period", "quantity", "amount"], rows, right=["#", "quantity", "amount"])


@invoices.command()
@filter_options
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "jsonl"]),
    default="csv",
    help="jsonl: a JSON object for each row.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File; standard output without.")
@settings_options
def export(
    settings: Settings, tenant: str | None, period: Period | None, kind: str, out: Path | None
) -> None:
    """Write one row for each invoice line, with the columns of its invoice; amounts are minor units.

    An invoice without lines has one row, too. Memory does not grow with the number of invoices.
    """
    run_async(_export(settings, tenant, period, kind, out))


@invoices.command()
@click.option(
    "--period", callback=month, metavar="YYYY-MM", required=True, help="The month, which has ended."
)
@json_option
@settings_options
def make(settings: Settings, period: Period, as_json: bool) -> None:
    """Have the invoices of a month made, for every tenant concerned that has none of it yet.

    Enqueues what billing.monthly enqueues on the first of the next month; a worker makes the invoices.
    """
    now = SystemClock().now()
    if period.end > now:
        raise click.UsageError(
            "this month has not ended everywhere yet; 'invoices preview' says what it comes to"
        )

    async def enqueue() -> str:
        async with open_database(settings) as session_factory, session_factory.begin() as session:
            queue = SqlJobQueue(session_factory).bind(session)
            return queue.enqueue(RUN_MONTHLY_INVOICING, {"fire_at": canonical_instant(period.end)}).id

    job_id = run_async(enqueue())
    echo_act(as_json, f"enqueued job {job_id}; a worker ('worker.py run') makes the invoices", job_id=job_id)


async def _list(settings: Settings, tenant: str | None, period: Period | None, limit: int) -> list[Invoice]:
    async with open_database(settings) as session_factory, session_factory() as session:
        return await session.run_sync(list_invoices, tenant_id=tenant, period=period, limit=limit)


async def _show(settings: Settings, invoice_id: str, tenant: str | None) -> tuple[Invoice, list[InvoiceLine]]:
    def read(session: Session) -> tuple[Invoice, list[InvoiceLine]]:
        owner = tenant
        if owner is None:
            owner = session.scalar(select(Invoice.tenant_id).where(Invoice.id == invoice_id))
        if owner is None:
            raise NotFound(f"there is no invoice {invoice_id!r}; 'worker.py invoices list' shows them")
        return get_invoice(session, owner, invoice_id), invoice_lines(session, owner, invoice_id)

    async with open_database(settings) as session_factory, session_factory() as session:
        return await session.run_sync(read)


async def _export(
    settings: Settings, tenant: str | None, period: Period | None, kind: str, out: Path | None
) -> None:
    def write(session: Session, file: TextIO) -> None:
        put = _row_writer(file, kind)
        for row in export_rows(session, tenant_id=tenant, period=period):
            put(row)

    with _output(out) as file:
        async with open_database(settings) as session_factory, session_factory() as session:
            await session.run_sync(write, file)


@contextmanager
def _output(out: Path | None) -> Iterator[TextIO]:
    """A file to write to; what goes to standard output is collected first.

    Whoever reads a pipe slowly must not hold the transaction open, on SQLite the lock of the whole file.
    """
    if out is not None:
        try:
            opened = out.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise click.UsageError(f"cannot write {out}: {error.strerror}") from None
        with opened:
            yield opened
        return
    with SpooledTemporaryFile(_SPOOLED_BYTES, mode="w+", encoding="utf-8", newline="") as spool:
        yield cast(TextIO, spool)
        spool.seek(0)
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]  # a real stream has it
        shutil.copyfileobj(spool, sys.stdout)
        sys.stdout.flush()


def _row_writer(file: TextIO, kind: str) -> Callable[[Mapping[str, Any]], object]:
    if kind == "csv":
        writer = csv.DictWriter(file, EXPORT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        return writer.writerow
    return lambda row: file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def _summary(invoice: Invoice) -> dict[str, Any]:
    return {
        "id": invoice.id,
        "tenant_id": invoice.tenant_id,
        "series": invoice.series,
        "number": invoice.number,
        "status": invoice.status,
        "currency": invoice.currency,
        "period_start": canonical_instant(invoice.period_start),
        "period_end": canonical_instant(invoice.period_end),
        "total_amount": invoice.total_amount,
        "credited_amount": invoice.credited_amount,
        "kind": invoice.kind,
        "issued_at": canonical_instant(invoice.issued_at) if invoice.issued_at else None,
        "due_at": canonical_instant(invoice.due_at) if invoice.due_at else None,
    }


def _line(line: InvoiceLine) -> dict[str, Any]:
    return {
        "position": line.position,
        "kind": line.kind,
        "metric": line.metric,
        "description": line.description,
        "period_start": canonical_instant(line.period_start),
        "period_end": canonical_instant(line.period_end),
        "quantity": canonical_decimal(line.quantity),
        "amount": line.amount,
    }


def _cells(invoice: Invoice) -> tuple[str, ...]:
    return (
        invoice.id,
        invoice.tenant_id,
        _number(invoice),
        _day(invoice.period_start),
        _day(invoice.period_end),
        invoice.status,
        f"{invoice.currency.upper()} {format_minor(invoice.total_amount, invoice.currency)}",
    )


def _number(invoice: Invoice) -> str:
    return "draft" if invoice.number is None else f"{invoice.series}-{invoice.number}"


def _day(instant: Any) -> str:
    """The date alone where it is midnight in UTC, which for most tenants it always is."""
    text = canonical_instant(instant)
    return text.removesuffix("T00:00:00Z")
