"""``api``: the HTTP API as a process of its own."""

from __future__ import annotations

import asyncio

import click

from svc_infra.application import Application, load_application
from svc_infra.cli.context import engine_of, require_file, run_async, settings_options
from svc_infra.cli.monitored import monitored
from svc_infra.cli.run import stop_on_signals
from svc_infra.cli.schedules import schedules_of_worker
from svc_infra.config import Settings
from svc_infra.db.migration import require_head
from svc_infra.db.tenant_isolation import require_isolation
from svc_infra.exceptions import InvalidSettings
from svc_infra.logs import configure_logging
from svc_infra.webhooks.endpoint_rules import endpoint_rules


@click.command()
@click.option("--host", help="Address to listen on, before api.host.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on, before api.port; 0 takes a free one."
)
@click.option(
    "--app",
    "application",
    metavar="MODULE:ATTRIBUTE",
    help="As given to 'run': its topics and schedules are shown, too.",
)
@settings_options
def api(settings: Settings, host: str | None, port: int | None, application: str | None) -> None:
    """Serve the HTTP API. Keys come from 'worker.py keys create'; only health is open.

    SIGTERM or SIGINT closes the port, lets requests that run end within worker.grace_seconds, and exits 0.
    Jobs and webhooks are not run here: that is 'worker.py run'.
    """
    configure_logging(settings.log.level)
    own = load_application(application) if application else Application()
    run_async(_serve(settings, own, host or settings.api.host, settings.api.port if port is None else port))


async def _serve(settings: Settings, own: Application, host: str, port: int) -> None:
    try:
        from svc_infra.api.fastapi.service import make_app
        from svc_infra.cli.http_server import serve_http
        from svc_infra.cli.usage_events import limits_in
    except ImportError as error:
        raise InvalidSettings(f"the HTTP API needs the extra 'api': {error}") from None

    engine = engine_of(settings)
    stop = asyncio.Event()
    stop_on_signals(stop)
    try:
        require_file(engine)
        await require_head(engine)
        if settings.database.tenant_role:
            async with engine.connect() as connection:
                await connection.run_sync(require_isolation, settings.database.tenant_role)
        async with monitored(settings.monitoring, engine, stop):
            app = make_app(
                engine,
                limits_in(settings),
                has_provider=settings.billing.provider != "none",
                rules=endpoint_rules(settings.webhooks),
                topics=own.topics,
                tenant_role=settings.database.tenant_role,
                schedules=schedules_of_worker(settings, own),
            )
            grace_seconds = settings.worker.grace_seconds
            await serve_http(app, stop, host=host, port=port, grace_seconds=grace_seconds)
    finally:
        await engine.dispose()
