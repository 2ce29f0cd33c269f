"""``tenants``: erase one."""

from __future__ import annotations

import click

from svc_infra.billing.erasure import count_erasable, erase_tenant
from svc_infra.cli.acting import actor_option, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.clock import SystemClock
from svc_infra.config import Settings


@click.group()
def tenants() -> None:
    """Erase a tenant's usage."""


@tenants.command()
@click.argument("tenant_id")
@click.option("--yes", is_flag=True, help="Do it; without this only what would be deleted is counted.")
@click.option("--reason", default="erasure requested", show_default=True, help="Why; it is kept.")
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
