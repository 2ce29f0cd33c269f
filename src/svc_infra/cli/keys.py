"""``keys``: who may use the HTTP API."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import click

from svc_infra.api.keys import OPERATOR_SCOPES, ApiKey, create_key, list_keys, revoke_key
from svc_infra.canonical import canonical_instant
from svc_infra.cli.acting import actor_option, echo_act, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings

_COLUMNS = ["id", "prefix", "name", "tenant", "scopes", "state", "expires_at", "last_used_at"]


@click.group()
def keys() -> None:
    """Make, list and revoke the keys of the HTTP API."""


@keys.command()
@click.option("--name", required=True, help="Who will use it, for the list.")
@click.option("--tenant", "tenant_id", help="The tenant that it is bound to.")
@click.option("--operator", "is_operator", is_flag=True, help="For all tenants; each request names one.")
@click.option(
    "--scope", "scopes", multiple=True, required=True, help=f"{', '.join(OPERATOR_SCOPES)}; or billing.* …"
)
@click.option("--expires-days", type=click.FloatRange(min=0, min_open=True), help="Valid for so long.")
@actor_option
@json_option
@settings_options
def create(
    settings: Settings,
    name: str,
    tenant_id: str | None,
    is_operator: bool,
    scopes: tuple[str, ...],
    expires_days: float | None,
    actor: str,
    as_json: bool,
) -> None:
    """Make a key and print it. It is shown this once and cannot be recovered."""
    if is_operator == (tenant_id is not None):
        raise click.UsageError("say whose key it is: --tenant TENANT, or --operator for all tenants")
    now = SystemClock().now()
    key, text = in_transaction(
        settings,
        lambda session: create_key(
            session,
            name=name,
            tenant_id=tenant_id,
            scopes=scopes,
            actor=actor,
            now=now,
            expires_at=None if expires_days is None else now + timedelta(days=expires_days),
        ),
    )
    if as_json:
        echo_json({**_row(key, now), "key": text})
    else:
        click.echo(f"Key {key.id}; keep it now, it is not shown again. Send it as Authorization: Bearer …")
        click.echo(text)


@keys.command(name="list")
@click.option("--tenant", "tenant_id", help="Only this tenant's.")
@json_option
@settings_options
def list_(settings: Settings, tenant_id: str | None, as_json: bool) -> None:
    """List the keys, by what may be shown of them."""
    now = SystemClock().now()
    found = in_transaction(settings, lambda session: list_keys(session, tenant_id=tenant_id))
    rows = [_row(key, now) for key in found]
    if as_json:
        echo_json(rows)
    else:
        shown = [{**row, "scopes": " ".join(row["scopes"])} for row in rows]
        print_table(_COLUMNS, [[row[column] for column in _COLUMNS] for row in shown])


@keys.command()
@click.argument("key_id")
@json_option
@actor_option
@settings_options
def revoke(settings: Settings, key_id: str, actor: str, as_json: bool) -> None:
    """Let the key KEY_ID open nothing more."""
    now = SystemClock().now()
    in_transaction(settings, lambda session: revoke_key(session, key_id, actor=actor, now=now))
    echo_act(as_json, "revoked", id=key_id)


def _row(key: ApiKey, now: datetime) -> dict[str, Any]:
    state = "valid" if key.is_valid(now) else "expired" if key.revoked_at is None else "revoked"
    return {
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "tenant": key.tenant_id,
        "scopes": sorted(key.scopes),
        "state": state,
        "expires_at": None if key.expires_at is None else canonical_instant(key.expires_at),
        "last_used_at": None if key.last_used_at is None else canonical_instant(key.last_used_at),
    }
