"""``webhooks``: look at deliveries, send again, rotate secrets, receive and verify."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime
from typing import Any, BinaryIO

import click

from svc_infra.application import Application, load_application
from svc_infra.canonical import canonical_instant
from svc_infra.cli.acting import actor_option, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.cli.endpoints import endpoint_row, endpoints
from svc_infra.cli.listening import make_receiver
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.exceptions import InvalidSettings, VerificationFailed
from svc_infra.runtime import catalogue, key_ring
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.delivery_log import list_attempts, list_deliveries
from svc_infra.webhooks.redelivery import redeliver as redeliver_one
from svc_infra.webhooks.redelivery import send_test
from svc_infra.webhooks.replay import (
    DEFAULT_RATE_PER_SECOND,
    REPLAYABLE,
    cancel_replay,
    list_replays,
    start_replay,
)
from svc_infra.webhooks.sealing import new_sealing_key
from svc_infra.webhooks.secret_rotation import reseal_secrets
from svc_infra.webhooks.secret_rotation import rotate_secret as rotate
from svc_infra.webhooks.signature import verify as verify_message


@click.group()
def webhooks() -> None:
    """Endpoints, deliveries, replays, secrets; a receiver for development."""


webhooks.add_command(endpoints)


def _instant(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    try:
        instant = None if value is None else datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no ISO 8601 instant, like 2025-01-31T12:00:00Z") from None
    if instant is not None and instant.tzinfo is None:
        raise click.BadParameter(f"{value!r} has no UTC offset; end it with Z")
    return instant


@webhooks.command()
@click.argument("delivery_id", required=False)
@click.option("--endpoint", "endpoint_id", help="Only this endpoint's.")
@click.option("--tenant", "tenant_id", help="Only those of this tenant's endpoints.")
@click.option(
    "--state", type=click.Choice([state.value for state in DeliveryState]), help="Only in this state."
)
@click.option("--topic", help="Only of this topic.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
@settings_options
def deliveries(settings: Settings, delivery_id: str | None, as_json: bool, **chosen: Any) -> None:
    """List deliveries, newest first; given DELIVERY_ID, its attempts."""
    if delivery_id is None:
        listed = in_transaction(settings, lambda session: list_deliveries(session, **chosen))
        rows = [_plain(asdict(one)) for one in listed]
    else:
        attempts = in_transaction(settings, lambda session: list_attempts(session, delivery_id))
        rows = [_plain(asdict(one)) for one in attempts]
    _show(rows, as_json)


@webhooks.command()
@click.argument("delivery_id")
@actor_option
@settings_options
def redeliver(settings: Settings, delivery_id: str, actor: str) -> None:
    """Send one delivery again, whatever became of it, with a whole new schedule."""
    now = SystemClock().now()
    in_transaction(settings, lambda session: redeliver_one(session, delivery_id, now=now, actor=actor))
    click.echo("due now")


@webhooks.command()
@click.argument("endpoint_id")
@click.option("--since", callback=_instant, help="What occurred from then on; without it, everything kept.")
@click.option("--until", callback=_instant, help="What occurred until then; without it, until now.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(REPLAYABLE), help="Only these; several times."
)
@click.option("--topic", "topics", multiple=True, help="Only these topics, wildcards allowed; several times.")
@click.option("--rate", type=float, default=DEFAULT_RATE_PER_SECOND, show_default=True, help="Per second.")
@actor_option
@json_option
@settings_options
def replay(
    settings: Settings,
    endpoint_id: str,
    since: datetime | None,
    until: datetime | None,
    states: tuple[str, ...],
    topics: tuple[str, ...],
    rate: float,
    actor: str,
    as_json: bool,
) -> None:
    """Send an endpoint again what was published.

    The workers do it, also after a restart; 'webhooks replays' shows how far it is.
    """
    started = in_transaction(
        settings,
        lambda session: start_replay(
            session,
            endpoint_id,
            since=since,
            until=until,
            states=states or REPLAYABLE,
            topics=topics,
            rate_per_second=rate,
            actor=actor,
            now=SystemClock().now(),
        ),
    )
    if as_json:
        echo_json(_plain(asdict(started)))
    else:
        click.echo(started.id)


@webhooks.command()
@click.option("--endpoint", "endpoint_id", help="Only this endpoint's.")
@click.option("--cancel", "cancelled_id", metavar="ID", help="Cancel this one first.")
@actor_option
@json_option
@settings_options
def replays(
    settings: Settings, endpoint_id: str | None, cancelled_id: str | None, actor: str, as_json: bool
) -> None:
    """List replays, newest first; cancel one."""
    if cancelled_id is not None:
        now = SystemClock().now()
        in_transaction(settings, lambda session: cancel_replay(session, cancelled_id, now=now, actor=actor))
    listed = in_transaction(settings, lambda session: list_replays(session, endpoint_id=endpoint_id))
    _show([_plain(asdict(one)) for one in listed], as_json)


@webhooks.command()
@click.argument("endpoint_id")
@actor_option
@json_option
@settings_options
def test(settings: Settings, endpoint_id: str, actor: str, as_json: bool) -> None:
    """Send the event 'webhooks.test' to an endpoint; a running worker delivers it."""
    now = SystemClock().now()
    message_id = in_transaction(
        settings, lambda session: send_test(session, endpoint_id, now=now, actor=actor)
    )
    if as_json:
        echo_json({"message_id": message_id})
    else:
        click.echo(message_id)


@webhooks.command(name="rotate-secret")
@click.argument("endpoint_id")
@click.option(
    "--overlap-seconds",
    type=float,
    default=86_400,
    show_default=True,
    help="So long the old ones sign, too; 0 ends them at once.",
)
@click.option("--secret", help="The new secret; otherwise one is made.")
@actor_option
@json_option
@settings_options
def rotate_secret(
    settings: Settings,
    endpoint_id: str,
    overlap_seconds: float,
    secret: str | None,
    actor: str,
    as_json: bool,
) -> None:
    """Give an endpoint a new signing secret, shown now and never again."""
    rotated = in_transaction(
        settings,
        lambda session: rotate(
            session,
            endpoint_id,
            overlap_seconds=overlap_seconds,
            secret=secret,
            keys=key_ring(settings.webhooks),
            actor=actor,
        ),
    )
    if as_json:
        echo_json({**endpoint_row(rotated), "secret": rotated.secret})
    else:
        click.echo(rotated.secret or rotated.public_keys[0])


@webhooks.command(name="new-key")
@click.argument("key_id")
def new_key(key_id: str) -> None:
    """Make a key for webhooks.secret_keys. KEY_ID is a name of your own, like '2025-01'."""
    click.echo(new_sealing_key(key_id))


@webhooks.command()
@settings_options
def reseal(settings: Settings) -> None:
    """Seal every stored secret with the newest key of webhooks.secret_keys."""
    keys = key_ring(settings.webhooks)
    if keys is None:
        raise InvalidSettings(
            "there is no key in webhooks.secret_keys; 'worker.py webhooks new-key' makes one"
        )
    count = in_transaction(settings, lambda session: reseal_secrets(session, keys))
    click.echo(f"{count:,} endpoints were sealed anew.")


@webhooks.command()
@click.option("--app", "application", metavar="MODULE:ATTRIBUTE", help="Your application, for its topics.")
@click.option("--openapi", is_flag=True, help="Print the webhooks section of an OpenAPI document.")
@json_option
def topics(application: str | None, openapi: bool, as_json: bool) -> None:
    """List the topics that can be published; with --json, their JSON Schemas."""
    known = catalogue(load_application(application) if application else Application())
    if openapi:
        echo_json(known.openapi_webhooks())
    elif as_json:
        echo_json({topic.topic: known.json_schema(topic.topic) for topic in known})
    else:
        print_table(["topic", "version", "description"], [(t.topic, t.version, t.description) for t in known])


_secrets_option = click.option(
    "--secret",
    "secrets",
    multiple=True,
    required=True,
    envvar="WEBHOOK_SECRET",
    help="Signing secret or whpk_ public key; several times, or in WEBHOOK_SECRET.",
)


@webhooks.command()
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True)
@click.option("--answer", type=click.IntRange(200, 599), default=204, show_default=True, help="Status code.")
@_secrets_option
@json_option
def listen(port: int, answer: int, secrets: tuple[str, ...], as_json: bool) -> None:
    """Receive webhooks on this machine, verify and print them, until interrupted."""

    def show(seen: dict[str, Any]) -> None:
        if as_json:
            echo_json(seen)
        elif seen["is_verified"]:
            click.echo(f"verified  {seen['id']}  {seen['topic']}  {seen['data']}")
        else:
            click.echo(f"refused   {seen['id']}  {seen['reason']}")

    server = make_receiver(port, secrets, show, answer=answer)
    click.echo(f"listening on http://127.0.0.1:{server.server_port}/", err=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
    finally:
        server.server_close()


@webhooks.command()
@click.argument("body", type=click.File("rb"))
@click.option("--header", "-H", "headers", multiple=True, metavar="'NAME: VALUE'", help="As received.")
@click.option("--tolerance-seconds", type=int, default=300, show_default=True)
@_secrets_option
def verify(
    body: BinaryIO, headers: tuple[str, ...], tolerance_seconds: int, secrets: tuple[str, ...]
) -> None:
    """Verify a webhook that was received: BODY is a file with its raw bytes, or '-'.

    Exit 1 if it was not signed with one of the secrets, or is too old.
    """
    named = dict(_header(text) for text in headers)
    try:
        verify_message(named, body.read(), secrets, tolerance_seconds=tolerance_seconds)
    except VerificationFailed as error:
        click.echo(f"refused: {error}", err=True)
        sys.exit(1)
    click.echo("verified")


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator:
        raise click.BadParameter(f"{text!r} has no ':'; write 'NAME: VALUE'")
    return name.strip(), value.strip()


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: canonical_instant(value) if isinstance(value, datetime) else value for key, value in row.items()
    }


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        echo_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        click.echo("none")
