"""``webhooks``: look at deliveries, send again, rotate secrets, receive and verify."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from svc_infra.application import Application, load_application
from svc_infra.canonical import canonical_instant
from svc_infra.cli.acting import actor_option, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.cli.endpoints import endpoints
from svc_infra.cli.receiving import listen, verify
from svc_infra.cli.table import print_table
from svc_infra.cli.webhook_secrets import new_key, reseal, rotate_secret
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.runtime import catalogue
from svc_infra.simulation.audit_job import audit_topics
from svc_infra.webhooks.backlog import measure_backlog
from svc_infra.webhooks.catalogue import TopicCatalogue
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


@click.group()
def webhooks() -> None:
    """Endpoints, deliveries, replays, secrets; a receiver for development."""


for _command in (endpoints, rotate_secret, new_key, reseal, listen, verify):
    webhooks.add_command(_command)


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
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, help="At most so many.")
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
@json_option
@settings_options
def redeliver(settings: Settings, delivery_id: str, actor: str, as_json: bool) -> None:
    """Send one delivery again, whatever became of it, with a whole new schedule."""
    now = SystemClock().now()
    in_transaction(settings, lambda session: redeliver_one(session, delivery_id, now=now, actor=actor))
    if as_json:
        echo_json({"delivery_id": delivery_id, "run_at": canonical_instant(now)})
    else:
        click.echo("due now")


@webhooks.command()
@click.argument("endpoint_id")
@click.option("--since", callback=_instant, help="What occurred from then on; without it, everything kept.")
@click.option("--until", callback=_instant, help="What occurred until then; without it, until now.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(REPLAYABLE), help="Only these; several times."
)
@click.option("--topic", "topics", multiple=True, help="Only these topics, wildcards allowed; several times.")
@click.option("--rate", type=float, default=DEFAULT_RATE_PER_SECOND, help="Per second.")
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
@json_option
@settings_options
def backlog(settings: Settings, as_json: bool) -> None:
    """Say what waits to be sent, why, and for how long the oldest has."""
    now = SystemClock().now()
    found = in_transaction(settings, lambda session: measure_backlog(session, now=now))
    rows = [
        {"waits_for": reason.value, "count": one.count, "oldest_seconds": round(one.age_seconds(now))}
        for reason, one in found.waiting.items()
    ]
    _show(rows, as_json)


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


@webhooks.command()
@click.option("--app", "application", metavar="MODULE:ATTRIBUTE", help="Your application, for its topics.")
@click.option("--openapi", is_flag=True, help="Print the webhooks section of an OpenAPI document.")
@json_option
def topics(application: str | None, openapi: bool, as_json: bool) -> None:
    """List the topics that can be published; with --json, their JSON Schemas."""
    known = topics_of_worker(load_application(application) if application else Application())
    if openapi:
        echo_json(known.openapi_webhooks())
    elif as_json:
        echo_json({topic.topic: known.json_schema(topic.topic) for topic in known})
    else:
        print_table(["topic", "version", "description"], [(t.topic, t.version, t.description) for t in known])


def topics_of_worker(application: Application) -> TopicCatalogue:
    """Return all topics that a worker with this application may publish."""
    known = catalogue(application)
    known.include(audit_topics())
    return known


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
