"""``endpoints``: who is sent webhooks; make, change, enable and disable them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from svc_infra.canonical import canonical_instant
from svc_infra.cli.acting import actor_option, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.runtime import endpoint_rules
from svc_infra.webhooks.audit import list_acts
from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.endpoint_switch import disable_endpoint, enable_endpoint
from svc_infra.webhooks.endpoints import Endpoint, add_endpoint, get_endpoint, list_endpoints

T = TypeVar("T")


@click.group()
def endpoints() -> None:
    """Add, list, show, enable and disable webhook endpoints."""


def _pair(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read NAME=VALUE options."""
    pairs = {}
    for text in values:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(f"{text!r} has no '='; write NAME=VALUE")
        pairs[name] = value
    return pairs


def _filter(_ctx: click.Context, _param: click.Parameter, value: str | None) -> dict[str, Any] | None:
    try:
        return None if value is None else json.loads(value)
    except ValueError:
        raise click.BadParameter("""write the filter as JSON, like '{"plan.name": "gold"}'""") from None


def _options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options of an endpoint beside its URL and topics."""
    for option in (
        click.option(
            "--filter", "payload_filter", callback=_filter, help="What payloads must hold, as JSON."
        ),
        click.option("--header", "headers", multiple=True, callback=_pair, help="NAME=VALUE sent each time."),
        click.option("--label", "labels", multiple=True, callback=_pair, help="NAME=VALUE of your own."),
        click.option("--ordering", type=click.Choice(["none", "key"]), default="none", show_default=True),
        click.option(
            "--content-mode",
            type=click.Choice(["standard", "cloudevents"]),
            default="standard",
            show_default=True,
        ),
        click.option("--rate", "rate_per_second", type=float, help="Requests a second of one worker."),
        click.option("--in-flight", "in_flight_cap", type=int, help="Requests of one worker at a time."),
    ):
        command = option(command)
    return command


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
@click.option(
    "--signing",
    type=click.Choice(["v1", "v1a"]),
    default="v1",
    show_default=True,
    help="v1: a shared secret; v1a: ed25519, the subscriber gets a public key.",
)
@click.option("--description", default="", help="What it is for.")
@_options
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
    labels: dict[str, str],
    payload_filter: dict[str, Any] | None,
    headers: dict[str, str],
    **more: Any,
) -> None:
    """Send the messages of these topics to URL. The signing secret is shown now and never again."""
    endpoint = {key: more.pop(key) for key in ("secret", "signing", "description")}
    options = EndpointOptions(payload_filter, headers, labels, **more)
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
    print_table(["", ""], [(key, json.dumps(value)) for key, value in endpoint_row(found).items()])
    print_table(
        ["at", "who", "what", "detail"],
        [[*list(act.values())[:3], json.dumps(act["detail"])] for act in listed],
    )


@endpoints.command()
@click.argument("endpoint_id")
@click.option("--reason", required=True, help="Why; shown to whoever looks at the endpoint.")
@actor_option
@settings_options
def disable(settings: Settings, endpoint_id: str, reason: str, actor: str) -> None:
    """Stop sending to an endpoint; what is published meanwhile is held."""
    now = SystemClock().now()

    def act(session: Any) -> bool:
        get_endpoint(session, endpoint_id)
        return disable_endpoint(session, endpoint_id, reason=reason, now=now, actor=actor)

    click.echo("disabled" if in_transaction(settings, act) else "It was disabled already.")


@endpoints.command()
@click.argument("endpoint_id")
@click.option("--replay-held", is_flag=True, help="Send what was held meanwhile, too.")
@actor_option
@settings_options
def enable(settings: Settings, endpoint_id: str, replay_held: bool, actor: str) -> None:
    """Send to an endpoint again."""
    now = SystemClock().now()
    count = in_transaction(
        settings,
        lambda session: enable_endpoint(session, endpoint_id, now=now, replay_held=replay_held, actor=actor),
    )
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
