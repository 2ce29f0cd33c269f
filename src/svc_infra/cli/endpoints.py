"""``endpoints add`` and ``list``: who is sent webhooks."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from svc_infra.canonical import canonical_instant
from svc_infra.cli.context import echo_json, json_option, open_database, run_async, settings_options
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.webhooks.endpoints import Endpoint, add_endpoint, list_endpoints


@click.group()
def endpoints() -> None:
    """Add and list webhook endpoints."""


@endpoints.command()
@click.argument("url")
@click.option(
    "--topic",
    "topics",
    multiple=True,
    required=True,
    help="A topic, 'billing.*' for all below billing, or '*'; may be given several times.",
)
@click.option("--tenant", help="The tenant whose messages it gets; without it, those of every tenant.")
@click.option("--secret", help="Signing secret, if there is one already; otherwise a new one is made.")
@click.option("--description", default="", help="What it is for.")
@json_option
@settings_options
def add(
    settings: Settings,
    url: str,
    topics: tuple[str, ...],
    tenant: str | None,
    secret: str | None,
    description: str,
    as_json: bool,
) -> None:
    """Send the messages of these topics to URL. The signing secret is shown now and never again."""
    make = partial(
        add_endpoint,
        url=url,
        topics=topics,
        tenant_id=tenant,
        secret=secret,
        description=description,
        now=SystemClock().now(),
    )
    added = run_async(_add(settings, make))
    if as_json:
        echo_json({**_row(added), "secret": added.secret})
    else:
        click.echo(f"id      {added.id}")
        click.echo(f"secret  {added.secret}")
        click.echo("Keep the secret: it is not shown again.", err=True)


@endpoints.command(name="list")
@click.option("--tenant", help="Only this tenant's.")
@json_option
@settings_options
def list_(settings: Settings, tenant: str | None, as_json: bool) -> None:
    """List endpoints in the order of their making."""
    found = run_async(_list(settings, tenant))
    if as_json:
        echo_json([_row(endpoint) for endpoint in found])
        return
    rows = [
        (
            endpoint.id,
            endpoint.url,
            ", ".join(endpoint.topics),
            endpoint.tenant_id,
            "enabled" if endpoint.is_enabled else f"disabled: {endpoint.disabled_reason}",
            endpoint.description,
        )
        for endpoint in found
    ]
    print_table(["id", "url", "topics", "tenant", "state", "description"], rows)


async def _add(settings: Settings, make: partial[Endpoint]) -> Endpoint:
    async with open_database(settings) as session_factory, session_factory.begin() as session:
        return await session.run_sync(make)


async def _list(settings: Settings, tenant: str | None) -> list[Endpoint]:
    async with open_database(settings) as session_factory, session_factory() as session:
        return await session.run_sync(list_endpoints, tenant_id=tenant)


def _row(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "topics": list(endpoint.topics),
        "tenant_id": endpoint.tenant_id,
        "description": endpoint.description,
        "is_enabled": endpoint.is_enabled,
        "disabled_reason": endpoint.disabled_reason,
        "created_at": canonical_instant(endpoint.created_at),
    }
