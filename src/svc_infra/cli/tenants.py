"""``tenants show``, ``set`` and ``erase``: how a tenant is billed, and taking its usage away."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from sqlalchemy.orm import Session

from svc_infra.billing.erasure import count_erasable, erase_tenant
from svc_infra.billing.tenants import LATE_POLICIES, TenantSettings, change_settings, settings_of
from svc_infra.cli.acting import actor_option, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.clock import SystemClock
from svc_infra.config import Settings


@click.group()
def tenants() -> None:
    """Show and change how a tenant is billed; erase its usage."""


@tenants.command()
@click.argument("tenant")
@json_option
@settings_options
def show(settings: Settings, tenant: str, as_json: bool) -> None:
    """Show the settings of TENANT; one that has none has the defaults."""
    _print(_call(settings, tenant, {}), as_json)


@tenants.command(name="set")
@click.argument("tenant")
@click.option("--timezone", help="IANA zone; fixed once the tenant has usage.")
@click.option("--late-policy", type=click.Choice(LATE_POLICIES), help="What becomes of late usage.")
@click.option("--grace-seconds", type=click.IntRange(min=0), help="How long an invoice stays a draft.")
@click.option("--number-series", help="What its invoice numbers begin with.")
@click.option("--due-days", type=click.IntRange(min=0), help="Days to pay.")
@json_option
@settings_options
def set_(settings: Settings, tenant: str, as_json: bool, **given: Any) -> None:
    """Change what is given and keep the rest."""
    if all(value is None for value in given.values()):
        raise click.UsageError("give at least one setting to change")
    _print(_call(settings, tenant, given), as_json)


@tenants.command()
@click.argument("tenant_id")
@click.option("--yes", is_flag=True, help="Do it; without this only what would be deleted is counted.")
@click.option("--reason", default="erasure requested", help="Why; it is kept.")
@actor_option
@json_option
@settings_options
def erase(settings: Settings, tenant_id: str, yes: bool, reason: str, actor: str, as_json: bool) -> None:
    """Delete the usage of TENANT_ID for good and close the tenant; issued invoices stay as they are."""
    now = SystemClock().now()
    erased = in_transaction(
        settings,
        lambda session: (
            erase_tenant(session, tenant_id, reason=reason, actor=actor, now=now)
            if yes
            else count_erasable(session, tenant_id)
        ),
    )
    if as_json:
        echo_json({"tenant_id": tenant_id, "is_erased": yes, "rows": erased.rows})
        return
    parts = ", ".join(f"{count:,} {table}" for table, count in erased.rows.items() if count) or "nothing"
    click.echo(f"{tenant_id}: {parts} {'deleted' if yes else 'would be deleted; add --yes to do it'}.")


def _call(settings: Settings, tenant: str, given: dict[str, Any]) -> TenantSettings:
    def act(session: Session) -> TenantSettings:
        if not given:
            return settings_of(session, tenant)
        return change_settings(session, tenant, now=SystemClock().now(), **given)

    return in_transaction(settings, act)


def _print(found: TenantSettings, as_json: bool) -> None:
    if as_json:
        echo_json(asdict(found))
        return
    for name, value in asdict(found).items():
        click.echo(f"{name:<14} {value}")
