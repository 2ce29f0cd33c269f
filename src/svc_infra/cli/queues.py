"""``queues``: what waits in each queue; pause and resume one."""

from __future__ import annotations

import click

from svc_infra.canonical import canonical_instant
from svc_infra.cli.acting import actor_option, echo_act, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.jobs.pausing import list_queues, pause_queue, resume_queue


@click.group()
def queues() -> None:
    """List queues; pause and resume them."""


@queues.command(name="list")
@json_option
@settings_options
def list_(settings: Settings, as_json: bool) -> None:
    """List the queues that have unfinished jobs or are paused."""
    rows = [
        {
            "name": queue.name,
            "available": queue.available,
            "running": queue.running,
            "paused_at": None if queue.paused_at is None else canonical_instant(queue.paused_at),
        }
        for queue in in_transaction(settings, list_queues)
    ]
    if as_json:
        echo_json(rows)
    else:
        columns = ["name", "available", "running", "paused_at"]
        print_table(columns, [list(row.values()) for row in rows], right=["available", "running"])


@queues.command()
@click.argument("name")
@json_option
@actor_option
@settings_options
def pause(settings: Settings, name: str, actor: str, as_json: bool) -> None:
    """Let no worker claim jobs of queue NAME until it is resumed. Jobs that run end."""
    now = SystemClock().now()
    in_transaction(settings, lambda session: pause_queue(session, name, actor=actor, now=now))
    echo_act(as_json, "paused", queue=name)


@queues.command()
@click.argument("name")
@json_option
@actor_option
@settings_options
def resume(settings: Settings, name: str, actor: str, as_json: bool) -> None:
    """Let the jobs of queue NAME be claimed again."""
    now = SystemClock().now()
    in_transaction(settings, lambda session: resume_queue(session, name, actor=actor, now=now))
    echo_act(as_json, "resumed", queue=name)
