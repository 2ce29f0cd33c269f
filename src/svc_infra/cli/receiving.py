"""The commands of ``webhooks`` for who receives them: a receiver for development, and a check by hand."""

from __future__ import annotations

import sys
from typing import Any, BinaryIO

import click

from svc_infra.cli.context import echo_json, json_option
from svc_infra.cli.listening import make_receiver
from svc_infra.exceptions import VerificationFailed
from svc_infra.webhooks.signature import verify as verify_message

_secrets_option = click.option(
    "--secret",
    "secrets",
    multiple=True,
    required=True,
    envvar="WEBHOOK_SECRET",
    help="Signing secret or whpk_ public key; several times, or in WEBHOOK_SECRET.",
)


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=9000, help="Where to listen; 0 takes a free one."
)
@click.option("--answer", type=click.IntRange(200, 599), default=204, help="Status code.")
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


@click.command()
@click.argument("body", type=click.File("rb"))
@click.option("--header", "-H", "headers", multiple=True, metavar="'NAME: VALUE'", help="As received.")
@click.option("--tolerance-seconds", type=int, default=300, help="How far the timestamp may be from now.")
@_secrets_option
@json_option
def verify(
    body: BinaryIO,
    headers: tuple[str, ...],
    tolerance_seconds: int,
    secrets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Verify a webhook that was received: BODY is a file with its raw bytes, or '-'.

    Exit 1 if it was not signed with one of the secrets, or is too old.
    """
    named = dict(_header(text) for text in headers)
    reason = None
    try:
        verify_message(named, body.read(), secrets, tolerance_seconds=tolerance_seconds)
    except VerificationFailed as error:
        reason = str(error)
    if as_json:
        echo_json({"is_verified": reason is None, "reason": reason})
    elif reason is None:
        click.echo("verified")
    else:
        click.echo(f"refused: {reason}", err=True)
    if reason is not None:
        sys.exit(1)


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator:
        raise click.BadParameter(f"{text!r} has no ':'; write 'NAME: VALUE'")
    return name.strip(), value.strip()
