"""``healthcheck``: ask a running worker or API how it is, for containers without curl."""

from __future__ import annotations

import sys
from http.client import HTTPConnection, HTTPException

import click

from svc_infra.cli.context import settings_options
from svc_infra.config import Settings

_SECONDS = 8


@click.command()
@click.option("--ready", "path", flag_value="/readyz", help="Ask whether it takes work, and not only lives.")
@click.option("--alive", "path", flag_value="/livez", default=True, help="Ask whether it lives; the default.")
@click.option("--host", default="127.0.0.1", help="Where it listens.")
@click.option("--port", type=click.IntRange(1, 65535), help="Its monitoring.port, unless the settings say.")
@settings_options
def healthcheck(settings: Settings, path: str, host: str, port: int | None) -> None:
    """Ask the process on this machine; exit 0 if it is well, 1 with the reason if not."""
    port = port or settings.monitoring.port
    if not port:
        raise click.UsageError("name the --port, or set monitoring.port")
    try:
        connection = HTTPConnection(host, port, timeout=_SECONDS)
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read(1_000).decode(errors="replace")
    except (OSError, HTTPException) as error:
        click.echo(f"no answer on {host}:{port}: {error}", err=True)
        sys.exit(1)
    click.echo(text)
    sys.exit(0 if answer.status == 200 else 1)
