"""``audit``: recompute every invoice from raw events, and say what is not as it must be."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, timedelta

import click

from svc_infra.billing.periods import Period, month_bounds
from svc_infra.cli import EXIT_FAILED
from svc_infra.cli.context import echo_json, json_option, open_database, run_async, settings_options
from svc_infra.cli.invoice_explain import year_and_month
from svc_infra.config import Settings
from svc_infra.simulation.audit import AuditReport
from svc_infra.simulation.audit import audit as run_audit


@click.command()
@click.option("--tenant", help="Only this tenant.")
@click.option("--period", callback=year_and_month, metavar="YYYY-MM", help="Only invoices of this month.")
@json_option
@settings_options
def audit(settings: Settings, tenant: str | None, period: tuple[int, int] | None, as_json: bool) -> None:
    """Recompute every invoice from raw events with a second implementation that shares no code with billing.

    Checks every kind of line, and that totals are the sums of their lines, numbers have no gaps, periods do
    not overlap, day totals are what their events come to, nothing that was priced was left out, and credit
    notes are right. Exit 1 if anything differs. The worker does the same every night (scheduler.audit_cron).
    """
    report = run_async(_audit(settings, tenant, period))
    if as_json:
        echo_json({**asdict(report), "clean": report.is_clean})
    else:
        _print(report)
    sys.exit(0 if report.is_clean else EXIT_FAILED)


async def _audit(settings: Settings, tenant: str | None, month: tuple[int, int] | None) -> AuditReport:
    period = None
    if month is not None:
        found = month_bounds(*month, UTC)
        # The zones reach from 14 hours ahead of UTC to 12 behind it; no other month fits in.
        period = Period(found.start - timedelta(hours=14), found.end + timedelta(hours=12))
    async with open_database(settings) as session_factory:
        return await run_audit(session_factory, tenant_id=tenant, period=period)


def _print(report: AuditReport) -> None:
    for each in report.differences:
        place = f"{each.tenant_id} {each.invoice_id or ''}".strip()
        click.echo(f"{each.kind}: {place}: {each.text}")
    if report.difference_count > len(report.differences):
        click.echo(f"… and {report.difference_count - len(report.differences):,} more.")
    archived = f" ({report.archived:,} of them archived)" if report.archived else ""
    click.echo(
        f"{report.tenants:,} tenants, {report.invoices:,} invoices with {report.lines:,} lines, "
        f"{report.events:,} events{archived}: "
        f"{report.difference_count:,} differences."
    )
    if report.waiting:
        click.echo(f"{report.waiting:,} prices wait for late usage to be settled.")
    if report.unknown:
        click.echo(f"{report.unknown:,} lines keep no terms that the audit could recompute.")
