"""``endpoints``: who is sent webhooks; make, change, remove, enable and disable them."""

from __future__ import annotations

import json
from typing import Any

import click
from sqlalchemy.orm import Session

from svc_infra.canonical import canonical_instant
from svc_infra.cli.acting import actor_option, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.cli.endpoint_options import changeable_options, changed_options, secret_option
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.webhooks.audit import list_acts
from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.endpoint_removal import remove_endpoint
from svc_infra.webhooks.endpoint_rules import endpoint_rules
from svc_infra.webhooks.endpoint_switch import disable_endpoint, enable_endpoint
from svc_infra.webhooks.endpoints import (
    Endpoint,
    add_endpoint,
    change_endpoint,
    get_endpoint,
    list_endpoints,
)


@click.group()
def endpoints() -> None:
    """Add, list, show, change, remove, enable and disable webhook endpoints."""


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
@secret_option("The signing secret, if there is one already; otherwise a new one is made.")
@click.option(
    "--signing",
    type=click.Choice(["v1", "v1a"]),
    default="v1",
    help="v1: a shared secret; v1a: ed25519, the subscriber gets a public key.",
)
@click.option("--description", default="", help="What it is for.")
@click.option(
    "--ordering",
    type=click.Choice(["none", "key"]),
    default="none",
    help="key: messages of one key go one after the other.",
)
@changeable_options
@actor_option
@json_option
@settings_options
def add(
    settings: Settings,
    url: str,
    topics: tuple[str, ...],
    tenant: str | None,
    as_json: bool,
    actor: str,
    **more: Any,
) -> None:
    """Send the messages of these topics to URL. The signing secret is shown now and never again."""
    endpoint = {key: more.pop(key) for key in ("secret", "signing", "description")}
    options = changed_options(EndpointOptions(ordering=more.pop("ordering")), **more)
    added = in_transaction(
        settings,
        lambda session: add_endpoint(
            session,
            url=url,
            topics=topics,
            tenant_id=tenant,
            options=options,
            rules=endpoint_rules(settings.webhooks),
            actor=actor,
            now=SystemClock().now(),
            **endpoint,
        ),
    )
    if as_json:
        echo_json({**endpoint_row(added), "secret": added.secret})
        return
    click.echo(f"id      {added.id}")
    if added.secret is None:
        click.echo(f"key     {added.public_keys[0]}")
        click.echo("Verify with this public key; the private one never leaves the worker.", err=True)
    else:
        click.echo(f"secret  {added.secret}")
        click.echo("Keep the secret: it is not shown again.", err=True)


@endpoints.command(name="list")
@click.option("--tenant", help="Only this tenant's.")
@json_option
@settings_options
def list_(settings: Settings, tenant: str | None, as_json: bool) -> None:
    """List endpoints in the order of their making."""
    found = in_transaction(settings, lambda session: list_endpoints(session, tenant_id=tenant))
    if as_json:
        echo_json([endpoint_row(endpoint) for endpoint in found])
        return
    rows = [
        (
            endpoint.id,
            endpoint.url,
            ", ".join(endpoint.topics),
            endpoint.tenant_id,
            _state(endpoint),
            endpoint.description,
        )
        for endpoint in found
    ]
    print_table(["id", "url", "topics", "tenant", "state", "description"], rows)


@endpoints.command()
@click.argument("endpoint_id")
@json_option
@settings_options
def show(settings: Settings, endpoint_id: str, as_json: bool) -> None:
    """Show one endpoint and the newest acts on it."""
    found, acts = in_transaction(
        settings, lambda session: (get_endpoint(session, endpoint_id), list_acts(session, endpoint_id))
    )
    listed = [
        {
            "acted_at": canonical_instant(act.acted_at),
            "actor": act.actor,
            "action": act.action,
            "detail": act.detail,
        }
        for act in acts
    ]
    if as_json:
        echo_json({**endpoint_row(found), "acts": listed})
        return
    for key, value in endpoint_row(found).items():
        click.echo(f"{key:<16}  {json.dumps(value, ensure_ascii=False)}")
    print_table(
        ["at", "who", "what", "detail"],
        [[*list(act.values())[:3], json.dumps(act["detail"])] for act in listed],
    )


@endpoints.command()
@click.argument("endpoint_id")
@click.option("--url", help="Where it is from now on.")
@click.option("--topic", "topics", multiple=True, help="All topics that it wants from now on; several times.")
@click.option("--description", help="What it is for.")
@click.option("--drop-header", "dropped", multiple=True, metavar="NAME", help="Send this header no more.")
@changeable_options
@actor_option
@json_option
@settings_options
def change(
    settings: Settings,
    endpoint_id: str,
    url: str | None,
    topics: tuple[str, ...],
    description: str | None,
    actor: str,
    as_json: bool,
    **more: Any,
) -> None:
    """Change what is given; the rest stays. --filter null, --rate 0 and --in-flight 0 take one away."""

    def act(session: Session) -> Endpoint:
        current = get_endpoint(session, endpoint_id).options
        changed = changed_options(current, **more)
        return change_endpoint(
            session,
            endpoint_id,
            url=url,
            topics=topics or None,
            description=description,
            options=None if changed == current else changed,
            rules=endpoint_rules(settings.webhooks),
            actor=actor,
        )

    changed = in_transaction(settings, act)
    if as_json:
        echo_json(endpoint_row(changed))
    else:
        click.echo("changed")


@endpoints.command()
@click.argument("endpoint_id")
@click.confirmation_option("--yes", prompt="It cannot be undone. Remove the endpoint?", help="Do not ask.")
@actor_option
@json_option
@settings_options
def remove(settings: Settings, endpoint_id: str, actor: str, as_json: bool) -> None:
    """Remove an endpoint and its secrets; what waits for it is given up.

    Its deliveries stay readable until the retention deletes them.
    """
    now = SystemClock().now()
    count = in_transaction(
        settings, lambda session: remove_endpoint(session, endpoint_id, now=now, actor=actor)
    )
    if as_json:
        echo_json({"id": endpoint_id, "given_up": count})
    else:
        click.echo(f"removed; {count:,} deliveries that waited were given up")


@endpoints.command()
@click.argument("endpoint_id")
@click.option("--reason", required=True, help="Why; shown to whoever looks at the endpoint.")
@actor_option
@json_option
@settings_options
def disable(settings: Settings, endpoint_id: str, reason: str, actor: str, as_json: bool) -> None:
    """Stop sending to an endpoint; what is published meanwhile is held."""
    now = SystemClock().now()

    def act(session: Any) -> bool:
        get_endpoint(session, endpoint_id)
        return disable_endpoint(session, endpoint_id, reason=reason, now=now, actor=actor)

    has_changed = in_transaction(settings, act)
    if as_json:
        echo_json({"id": endpoint_id, "is_enabled": False, "has_changed": has_changed})
    else:
        click.echo("disabled" if has_changed else "It was disabled already.")


@endpoints.command()
@click.argument("endpoint_id")
@click.option("--replay-held", is_flag=True, help="Send what was held meanwhile, too.")
@actor_option
@json_option
@settings_options
def enable(settings: Settings, endpoint_id: str, replay_held: bool, actor: str, as_json: bool) -> None:
    """Send to an endpoint again."""
    now = SystemClock().now()
    count = in_transaction(
        settings,
        lambda session: enable_endpoint(session, endpoint_id, now=now, replay_held=replay_held, actor=actor),
    )
    if as_json:
        echo_json({"id": endpoint_id, "is_enabled": True, "replayed": count})
    else:
        click.echo(f"enabled; {count:,} held deliveries are due now")


def endpoint_row(endpoint: Endpoint) -> dict[str, Any]:
    """Return an endpoint as JSON shows it."""
    options = endpoint.options
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "topics": list(endpoint.topics),
        "tenant_id": endpoint.tenant_id,
        "description": endpoint.description,
        "is_enabled": endpoint.is_enabled,
        "disabled_reason": endpoint.disabled_reason,
        "paused_until": None if endpoint.paused_until is None else canonical_instant(endpoint.paused_until),
        "public_keys": list(endpoint.public_keys),
        "filter": options.payload_filter,
        "headers": dict(options.headers),
        "metadata": dict(options.metadata),
        "ordering": options.ordering,
        "content_mode": options.content_mode,
        "rate_per_second": options.rate_per_second,
        "in_flight_cap": options.in_flight_cap,
        "created_at": canonical_instant(endpoint.created_at),
    }


def _state(endpoint: Endpoint) -> str:
    if not endpoint.is_enabled:
        return f"disabled: {endpoint.disabled_reason}"
    if endpoint.paused_until is not None:
        return f"enabled, failing: paused until {canonical_instant(endpoint.paused_until)}"
    return "enabled"
