"""``schedules``: what fires when; pause, resume and run one."""

from __future__ import annotations

from typing import Any

import click

from svc_infra.application import load_application
from svc_infra.canonical import canonical_instant
from svc_infra.cli.acting import actor_option, echo_act, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.exceptions import NotFound
from svc_infra.jobs.pausing import list_schedules, pause_schedule, resume_schedule, run_schedule
from svc_infra.jobs.scheduler import Schedule
from svc_infra.jobs.timing import NEVER
from svc_infra.runtime import default_schedules

app_option = click.option("--app", "application", metavar="MODULE:ATTRIBUTE", help="As given to 'run'.")


@click.group()
def schedules() -> None:
    """List schedules and their next fires; pause, resume and run them."""


@schedules.command(name="list")
@app_option
@json_option
@settings_options
def list_(settings: Settings, application: str | None, as_json: bool) -> None:
    """List the schedules of the settings and of --app."""
    now = SystemClock().now()
    stored = {schedule.name: schedule for schedule in in_transaction(settings, list_schedules)}
    rows: list[dict[str, Any]] = []
    for schedule in known_schedules(settings, application):
        found = stored.get(schedule.name)
        rows.append(
            {
                "name": schedule.name,
                "cron": schedule.cron.expression,
                "timezone": schedule.cron.timezone,
                "job": schedule.job_name,
                "next_fire_at": None
                if (at := schedule.cron.next_fire(now)) == NEVER
                else canonical_instant(at),
                "fired_until": canonical_instant(found.fired_until) if found else None,
                "paused_at": canonical_instant(found.paused_at) if found and found.paused_at else None,
            }
        )
    if as_json:
        echo_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])


@schedules.command(name="next")
@click.argument("name")
@click.option("-n", "count", default=5, show_default=True, type=click.IntRange(1, 1_000))
@app_option
@json_option
@settings_options
def next_(settings: Settings, name: str, count: int, application: str | None, as_json: bool) -> None:
    """Print the next fires of schedule NAME, in UTC."""
    schedule = _named(settings, application, name)
    fire_at, fires = SystemClock().now(), []
    for _ in range(count):
        fire_at = schedule.cron.next_fire(fire_at)
        if fire_at == NEVER:
            break
        fires.append(canonical_instant(fire_at))
    if as_json:
        echo_json(fires)
    else:
        click.echo("\n".join(fires))


@schedules.command()
@click.argument("name")
@app_option
@json_option
@actor_option
@settings_options
def run(settings: Settings, name: str, application: str | None, actor: str, as_json: bool) -> None:
    """Fire schedule NAME now, paused or not, and print the id of its job."""
    schedule, now = _named(settings, application, name), SystemClock().now()
    job_id = in_transaction(settings, lambda session: run_schedule(session, schedule, actor=actor, now=now))
    if as_json:
        echo_json({"job_id": job_id})
    else:
        click.echo(job_id)


@schedules.command()
@click.argument("name")
@json_option
@actor_option
@settings_options
def pause(settings: Settings, name: str, actor: str, as_json: bool) -> None:
    """Record the fires of schedule NAME as missed until it is resumed."""
    now = SystemClock().now()
    in_transaction(settings, lambda session: pause_schedule(session, name, actor=actor, now=now))
    echo_act(as_json, "paused", schedule=name)


@schedules.command()
@click.argument("name")
@json_option
@actor_option
@settings_options
def resume(settings: Settings, name: str, actor: str, as_json: bool) -> None:
    """Let schedule NAME fire again, from its next fire on."""
    now = SystemClock().now()
    in_transaction(settings, lambda session: resume_schedule(session, name, actor=actor, now=now))
    echo_act(as_json, "resumed", schedule=name)


def known_schedules(settings: Settings, application: str | None) -> list[Schedule]:
    """Return the schedules of the settings and of the application that is named."""
    own = load_application(application).schedules if application else []
    return [*default_schedules(settings), *own]


def _named(settings: Settings, application: str | None, name: str) -> Schedule:
    for schedule in known_schedules(settings, application):
        if schedule.name == name:
            return schedule
    raise NotFound(f"no schedule {name!r} in the settings or in --app; see 'worker.py schedules list'")
