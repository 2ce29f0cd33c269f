"""The commands of ``webhooks`` about signing secrets and the keys that seal them."""

from __future__ import annotations

import click

from svc_infra.cli.acting import actor_option, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.cli.endpoint_options import secret_option
from svc_infra.cli.endpoints import endpoint_row
from svc_infra.config import Settings
from svc_infra.exceptions import InvalidSettings
from svc_infra.webhooks.endpoint_rules import key_ring
from svc_infra.webhooks.sealing import new_sealing_key
from svc_infra.webhooks.secret_rotation import reseal_secrets
from svc_infra.webhooks.secret_rotation import rotate_secret as rotate


@click.command(name="rotate-secret")
@click.argument("endpoint_id")
@click.option(
    "--overlap-seconds",
    type=float,
    default=86_400,
    help="So long the old ones sign, too; 0 ends them at once.",
)
@secret_option("The new secret; otherwise one is made.")
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


@click.command(name="new-key")
@click.argument("key_id")
@json_option
def new_key(key_id: str, as_json: bool) -> None:
    """Make a key for webhooks.secret_keys. KEY_ID is a name of your own, like '2025-01'."""
    key = new_sealing_key(key_id)
    if as_json:
        echo_json({"key": key})
    else:
        click.echo(key)


@click.command()
@json_option
@settings_options
def reseal(settings: Settings, as_json: bool) -> None:
    """Seal every stored secret with the newest key of webhooks.secret_keys."""
    keys = key_ring(settings.webhooks)
    if keys is None:
        raise InvalidSettings(
            "there is no key in webhooks.secret_keys; 'worker.py webhooks new-key' makes one"
        )
    count = in_transaction(settings, lambda session: reseal_secrets(session, keys))
    if as_json:
        echo_json({"resealed": count})
    else:
        click.echo(f"{count:,} endpoints were sealed anew.")
