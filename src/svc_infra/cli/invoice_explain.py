"""``invoices explain`` and ``invoices preview``: why it is so much, and what the next will be."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.billing.catalog import Catalog
from svc_infra.billing.explanation import ExplainedLine, Explanation, explain_invoice
from svc_infra.billing.models import Invoice
from svc_infra.billing.money import format_minor
from svc_infra.billing.preview import InvoicePreview, PreviewLine, preview_invoices
from svc_infra.canonical import canonical_decimal, canonical_instant
from svc_infra.cli.catalog import read_catalog
from svc_infra.cli.context import echo_json, json_option, open_database, run_async, settings_options
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.exceptions import NotFound


def year_and_month(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read ``YYYY-MM``."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{4})-(0[1-9]|1[0-2])", value)
    if not found:
        raise click.BadParameter(f"{value!r} is not a month like 2025-01")
    return int(found[1]), int(found[2])


@click.command()
@click.argument("invoice_id", metavar="ID")
@click.option("--tenant", help="Find it only if it is this tenant's.")
@json_option
@settings_options
def explain(settings: Settings, invoice_id: str, tenant: str | None, as_json: bool) -> None:
    """Say of each line of an invoice how its amount comes about.

    Its price as it was rated, tier by tier; the days and their totals; how many events, the first and last.
    """
    found = run_async(_explain(settings, invoice_id, tenant))
    if as_json:
        echo_json(explanation_json(found))
        return
    invoice = found.invoice
    currency = invoice.currency
    click.echo(f"Invoice {invoice.id} of tenant {invoice.tenant_id} ({invoice.status}), {_span(invoice)}")
    for each in found.lines:
        _print_line(each, currency)
    click.echo(f"\nTotal: {currency.upper()} {format_minor(invoice.total_amount, currency)}")


@click.command()
@click.argument("tenant")
@click.option("--period", callback=year_and_month, metavar="YYYY-MM", help="Default: the current month.")
@click.option(
    "--catalog",
    "catalog_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Also what it would be under this catalog.",
)
@json_option
@settings_options
def preview(
    settings: Settings,
    tenant: str,
    period: tuple[int, int] | None,
    catalog_file: Path | None,
    as_json: bool,
) -> None:
    """Say what TENANT's invoice of a month would be, from the usage recorded so far. Nothing is kept."""
    catalog = None if catalog_file is None else read_catalog(catalog_file)
    as_it_is, under_catalog = run_async(_preview(settings, tenant, period, catalog, SystemClock().now()))
    if as_json:
        other = {} if catalog is None else {"under_catalog": [preview_json(each) for each in under_catalog]}
        echo_json({"invoices": [preview_json(each) for each in as_it_is], **other})
        return
    if not as_it_is:
        click.echo(f"No price applies to tenant {tenant}.")
    for each in as_it_is:
        _print_preview(each, "")
    for each in under_catalog:
        _print_preview(each, f" under {catalog_file}")
    if catalog is not None:
        before = {each.currency: each.total_amount for each in as_it_is}
        for each in under_catalog:
            change = each.total_amount - before.get(each.currency, 0)
            click.echo(f"Difference: {each.currency.upper()} {format_minor(change, each.currency)}")


async def _explain(settings: Settings, invoice_id: str, tenant: str | None) -> Explanation:
    def read(session: Session) -> Explanation:
        owner = tenant or session.scalar(select(Invoice.tenant_id).where(Invoice.id == invoice_id))
        if owner is None:
            raise NotFound(f"there is no invoice {invoice_id!r}; 'worker.py invoices list' shows them")
        return explain_invoice(session, owner, invoice_id)

    async with open_database(settings) as session_factory, session_factory() as session:
        return await session.run_sync(read)


async def _preview(
    settings: Settings,
    tenant: str,
    month: tuple[int, int] | None,
    catalog: Catalog | None,
    now: datetime,
) -> tuple[list[InvoicePreview], list[InvoicePreview]]:
    async with open_database(settings) as session_factory, session_factory() as session:
        as_it_is = await session.run_sync(preview_invoices, tenant, month=month, now=now)
        if catalog is None:
            return as_it_is, []
        changed = await session.run_sync(preview_invoices, tenant, month=month, catalog=catalog, now=now)
        return as_it_is, changed


def explanation_json(found: Explanation) -> dict[str, Any]:
    """An explanation for programs: money in minor units, quantities as canonical text."""
    invoice = found.invoice
    return {
        "id": invoice.id,
        "tenant_id": invoice.tenant_id,
        "status": invoice.status,
        "currency": invoice.currency,
        "period_start": canonical_instant(invoice.period_start),
        "period_end": canonical_instant(invoice.period_end),
        "total_amount": invoice.total_amount,
        "lines": [_line_json(each) for each in found.lines],
    }


def preview_json(found: InvoicePreview) -> dict[str, Any]:
    """A preview for programs."""
    return {
        "tenant_id": found.tenant_id,
        "currency": found.currency,
        "period_start": canonical_instant(found.period.start),
        "period_end": canonical_instant(found.period.end),
        "total_amount": found.total_amount,
        "lines": [_preview_line_json(line) for line in found.lines],
    }


def _preview_line_json(line: PreviewLine) -> dict[str, Any]:
    return {
        "kind": line.kind,
        "metric": line.metric,
        "description": line.description,
        "period_start": canonical_instant(line.period.start),
        "period_end": canonical_instant(line.period.end),
        "quantity": canonical_decimal(line.quantity),
        "amount": line.amount,
    }


def _line_json(each: ExplainedLine) -> dict[str, Any]:
    line = each.line
    return {
        "position": line.position,
        "kind": line.kind,
        "description": line.description,
        "metric": line.metric,
        "quantity": canonical_decimal(line.quantity),
        "amount": line.amount,
        "price": line.price_snapshot,
        "details": line.details,
        "tiers": [
            {
                "tier": tier.position + 1,
                "quantity": canonical_decimal(tier.quantity),
                "unit_amount": canonical_decimal(tier.unit_amount),
                "flat_amount": canonical_decimal(tier.flat_amount),
                "amount": canonical_decimal(tier.amount),
            }
            for tier in each.tiers
        ],
        "days": [{"day_start": canonical_instant(at), "total": canonical_decimal(n)} for at, n in each.days],
        "events": each.events,
        "archived_events": each.archived_events,
        "first_event_at": None if each.first_event_at is None else canonical_instant(each.first_event_at),
        "last_event_at": None if each.last_event_at is None else canonical_instant(each.last_event_at),
    }


def _print_line(each: ExplainedLine, currency: str) -> None:
    line, terms = each.line, each.terms
    money = format_minor(line.amount, currency)
    click.echo(f"\n{line.position}. {line.description or line.metric or line.kind}: {money}")
    click.echo(f"   {line.kind}, {_span(line)}, quantity {canonical_decimal(line.quantity)}")
    if terms is not None:
        bounds = [
            f"{name} {canonical_decimal(amount)}"
            for name, amount in (("at least", terms.minimum_amount), ("at most", terms.maximum_amount))
            if amount is not None
        ]
        click.echo(f"   price {terms.key!r}, {terms.model.value}" + "".join(f", {each}" for each in bounds))
    for name, value in (line.details or {}).items():
        click.echo(f"   {name.replace('_', ' ')}: {value}")
    if each.tiers:
        rows = [
            (
                tier.position + 1,
                canonical_decimal(tier.quantity),
                canonical_decimal(tier.unit_amount),
                canonical_decimal(tier.flat_amount),
                canonical_decimal(tier.amount),
            )
            for tier in each.tiers
        ]
        columns = ["tier", "quantity", "unit (minor)", "flat (minor)", "amount (minor)"]
        print_table(columns, rows, right=columns)
    if each.days:
        # What came after the invoice is among it, and on a later one.
        click.echo("   recorded of its period by now:")
        print_table(
            ["day", "total"], [(_day(at), canonical_decimal(n)) for at, n in each.days], right=["total"]
        )
    if each.first_event_at and each.last_event_at:
        first, last = canonical_instant(each.first_event_at), canonical_instant(each.last_event_at)
        archived = f" ({each.archived_events:,} of them archived)" if each.archived_events else ""
        click.echo(f"   {each.events:,} events{archived}, the first at {first}, the last at {last}")


def _print_preview(found: InvoicePreview, under: str) -> None:
    click.echo(f"{_day(found.period.start)} to {_day(found.period.end)}{under}")
    currency = found.currency
    rows: list[tuple[object, ...]] = [
        (
            line.description or line.metric or line.kind,
            canonical_decimal(line.quantity),
            format_minor(line.amount, currency),
        )
        for line in found.lines
    ]
    rows.append(("total", "", f"{currency.upper()} {format_minor(found.total_amount, currency)}"))
    print_table(["line", "quantity", "amount"], rows, right=["quantity", "amount"])


def _span(found: Any) -> str:
    return f"{_day(found.period_start)} to {_day(found.period_end)}"


def _day(instant: datetime) -> str:
    return canonical_instant(instant).removesuffix("T00:00:00Z")
