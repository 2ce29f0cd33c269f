"""What an operator does to invoices: finalize, pay, give up, void, credit; and unparking tenants."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.billing.credit_notes import credit_invoice
from svc_infra.billing.invoice_bounds import parked_tenants, unpark
from svc_infra.billing.invoice_states import mark_paid, mark_uncollectible, void_invoice
from svc_infra.billing.invoicing import finalize_invoices
from svc_infra.billing.models import CreditNote, Invoice, PendingLine
from svc_infra.billing.money import format_minor
from svc_infra.billing.provider import enqueue_sync
from svc_infra.canonical import canonical_decimal, canonical_instant
from svc_infra.cli.acting import echo_act
from svc_infra.cli.context import echo_json, json_option, open_database, run_async, settings_options
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.exceptions import NotFound

_INVOICE = click.argument("invoice_id", metavar="ID")
_REASON = click.option("--reason", required=True, help="Why; it is kept with the invoice.")


@click.command()
@_INVOICE
@json_option
@settings_options
def finalize(settings: Settings, invoice_id: str, as_json: bool) -> None:
    """Issue a draft now, without waiting for the end of its grace."""

    def act(session: Session, tenant_id: str, now: datetime) -> Invoice:
        [result] = finalize_invoices(session, [(tenant_id, invoice_id)], now=now, is_early=True)
        if result.error is not None:
            raise result.error
        if result.is_issued and settings.billing.provider != "none":
            enqueue_sync(session, [(tenant_id, invoice_id)], now=now)
        return session.get_one(Invoice, (tenant_id, invoice_id), populate_existing=True)

    _say(_act(settings, invoice_id, act), as_json)


@click.command()
@_INVOICE
@json_option
@settings_options
def paid(settings: Settings, invoice_id: str, as_json: bool) -> None:
    """Note that an issued invoice was paid."""
    _say(_act(settings, invoice_id, lambda s, owner, now: mark_paid(s, owner, invoice_id, now=now)), as_json)


@click.command()
@_INVOICE
@_REASON
@json_option
@settings_options
def uncollectible(settings: Settings, invoice_id: str, reason: str, as_json: bool) -> None:
    """Give up on an issued invoice; it can still be paid or voided."""

    def act(session: Session, tenant_id: str, now: datetime) -> Invoice:
        return mark_uncollectible(session, tenant_id, invoice_id, reason=reason, now=now)

    _say(_act(settings, invoice_id, act), as_json)


@click.command()
@_INVOICE
@_REASON
@json_option
@settings_options
def void(settings: Settings, invoice_id: str, reason: str, as_json: bool) -> None:
    """Take an issued invoice back; its number stays used, and its period can be invoiced again."""

    def act(session: Session, tenant_id: str, now: datetime) -> Invoice:
        return void_invoice(session, tenant_id, invoice_id, reason=reason, now=now)

    _say(_act(settings, invoice_id, act), as_json)


@click.command()
@_INVOICE
@_REASON
@click.option("--actor", required=True, help="Who credits it.")
@click.option("--amount", type=click.IntRange(min=1), help="Minor units, spread over the lines.")
@click.option("--line", "lines", type=int, multiple=True, help="Credit all that is left of this line.")
@json_option
@settings_options
def credit(
    settings: Settings,
    invoice_id: str,
    reason: str,
    actor: str,
    amount: int | None,
    lines: tuple[int, ...],
    as_json: bool,
) -> None:
    """Make a credit note against an issued invoice: all that is left, an amount, or chosen lines."""
    if amount is not None and lines:
        raise click.UsageError("give --amount or --line, not both")

    def act(session: Session, tenant_id: str, now: datetime) -> CreditNote:
        chosen = dict.fromkeys(lines) if lines else None
        return credit_invoice(
            session, tenant_id, invoice_id, reason=reason, actor=actor, amount=amount, lines=chosen, now=now
        )

    note = _act(settings, invoice_id, act)
    if as_json:
        echo_json(
            {"id": note.id, "number": f"{note.series}-{note.number}", "total_amount": note.total_amount}
        )
    else:
        money = f"{note.currency.upper()} {format_minor(note.total_amount, note.currency)}"
        click.echo(f"credit note {note.series}-{note.number} of {money}")


@click.command()
@click.option("--tenant", help="Only this tenant's.")
@json_option
@settings_options
def pending(settings: Settings, tenant: str | None, as_json: bool) -> None:
    """List what waits for a next invoice: late usage, and credits that are carried."""

    def read(session: Session) -> list[PendingLine]:
        waiting = select(PendingLine).order_by(PendingLine.tenant_id, PendingLine.id)
        return list(
            session.scalars(waiting if tenant is None else waiting.where(PendingLine.tenant_id == tenant))
        )

    rows = [
        {
            "tenant_id": line.tenant_id,
            "kind": line.kind,
            "description": line.description,
            "period_start": canonical_instant(line.period_start),
            "quantity": canonical_decimal(line.quantity),
            "amount": line.amount,
            "currency": line.currency,
        }
        for line in run_async(_read(settings, read))
    ]
    if as_json:
        echo_json(rows)
    else:
        columns = ["tenant", "kind", "line", "period from", "quantity", "amount", "currency"]
        print_table(columns, [list(row.values()) for row in rows], right=["quantity", "amount"])


@click.command()
@json_option
@settings_options
def parked(settings: Settings, as_json: bool) -> None:
    """List the tenants that are not invoiced because they would have exceeded the safety bound."""
    rows = [
        {
            "tenant_id": tenant.tenant_id,
            "parked_at": canonical_instant(tenant.parked_at) if tenant.parked_at else None,
            "reason": tenant.parked_reason,
        }
        for tenant in run_async(_read(settings, parked_tenants))
    ]
    if as_json:
        echo_json(rows)
    else:
        print_table(["tenant", "since", "reason"], [list(row.values()) for row in rows])


@click.command(name="unpark")
@click.argument("tenant")
@json_option
@settings_options
def unpark_tenant(settings: Settings, tenant: str, as_json: bool) -> None:
    """Let TENANT be invoiced again; its waiting jobs go on within the hour."""
    run_async(_read(settings, lambda session: unpark(session, tenant)))
    echo_act(as_json, "invoiced again", tenant_id=tenant)


COMMANDS = (finalize, paid, uncollectible, void, credit, pending, parked, unpark_tenant)


def _act(settings: Settings, invoice_id: str, act: Callable[..., Any]) -> Any:
    def of_owner(session: Session) -> Any:
        owner = session.scalar(select(Invoice.tenant_id).where(Invoice.id == invoice_id))
        if owner is None:
            raise NotFound(f"there is no invoice {invoice_id!r}; 'worker.py invoices list' shows them")
        return act(session, owner, SystemClock().now())

    return run_async(_read(settings, of_owner))


async def _read(settings: Settings, function: Callable[[Session], Any]) -> Any:
    async with open_database(settings) as session_factory, session_factory.begin() as session:
        return await session.run_sync(function)


def _say(invoice: Invoice, as_json: bool) -> None:
    number = None if invoice.number is None else f"{invoice.series}-{invoice.number}"
    if as_json:
        echo_json({"id": invoice.id, "number": number, "status": invoice.status})
    else:
        click.echo(f"invoice {number or 'draft'} is {invoice.status}")
