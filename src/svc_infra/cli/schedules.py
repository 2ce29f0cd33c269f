"""``schedules``: what fires when; pause, resume and run one."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click
from pydantic import ValidationError

from svc_infra.application import Application, load_application
from svc_infra.canonical import canonical_instant
from svc_infra.cli.acting import actor_option, echo_act, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import ScheduleSettings, Settings
from svc_infra.exceptions import NotFound
from svc_infra.jobs.pausing import (
    StoredSchedule,
    list_schedules,
    pause_schedule,
    resume_schedule,
    run_schedule,
)
from svc_infra.jobs.scheduler import Schedule
from svc_infra.jobs.stored_schedules import add_schedule, remove_schedule
from svc_infra.jobs.timing import NEVER
from svc_infra.runtime import default_schedules
from svc_infra.simulation.audit_job import audit_schedule

app_option = click.option("--app", "application", metavar="MODULE:ATTRIBUTE", help="As given to 'run'.")


@click.group()
def schedules() -> None:
    """List schedules and their next fires; pause, resume and run them."""


@schedules.command(name="list")
@app_option
@json_option
@settings_options
def list_(settings: Settings, application: str | None, as_json: bool) -> None:
    """List the schedules of the settings, of --app, and those that were added by hand."""
    now = SystemClock().now()
    stored = {schedule.name: schedule for schedule in in_transaction(settings, list_schedules)}
    known = known_schedules(settings, application)
    known += [each.added for each in stored.values() if each.added is not None]
    rows = [_row(schedule, stored.get(schedule.name), now) for schedule in known]
    if as_json:
        echo_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])


@schedules.command(name="next")
@click.argument("name")
@click.option("-n", "count", default=5, type=click.IntRange(1, 1_000), help="How many.")
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
@click.option("--job", required=True, help="The name of the job that each fire enqueues.")
@click.option("--cron", help="Five fields, or @daily and the like.")
@click.option("--every-seconds", type=int, help="Instead of --cron: an interval.")
@click.option("--at", metavar="INSTANT", help="Instead of --cron: once, like 2030-01-01T00:00:00Z.")
@click.option("--timezone", default="UTC", help="Of --cron.")
@click.option("--payload", default="{}", metavar="JSON", help="What each job is given, beside fire_at.")
@click.option("--queue", default="default", help="The queue of its jobs.")
@click.option(
    "--catch-up",
    type=click.Choice(["all", "latest", "none"]),
    default="all",
    help="Which fires that were missed are made up for.",
)
@click.option("--cap", type=int, default=1_000, help="Missed fires taken at once.")
@click.option(
    "--overlap",
    type=click.Choice(["parallel", "queue", "skip"]),
    default="parallel",
    help="What a fire does while the job of the one before has not finished.",
)
@click.option("--jitter-seconds", type=float, default=0, help="Spread the starts over so long.")
@json_option
@actor_option
@settings_options
def add(settings: Settings, actor: str, as_json: bool, **fields: Any) -> None:
    """Add schedule NAME, or change one that was added. Workers that run take it up within seconds."""
    now = SystemClock().now()
    try:
        schedule = ScheduleSettings(**{**fields, "payload": json.loads(fields["payload"])})
    except (ValidationError, json.JSONDecodeError) as error:
        raise click.UsageError(f"--payload or --at cannot be read: {error}") from None
    in_transaction(settings, lambda session: add_schedule(session, schedule, actor=actor, now=now))
    echo_act(as_json, "added", schedule=schedule.name)


@schedules.command()
@click.argument("name")
@json_option
@actor_option
@settings_options
def remove(settings: Settings, name: str, actor: str, as_json: bool) -> None:
    """Remove schedule NAME, which was added by hand. Its jobs stay."""
    now = SystemClock().now()
    in_transaction(settings, lambda session: remove_schedule(session, name, actor=actor, now=now))
    echo_act(as_json, "removed", schedule=name)


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


def schedules_of_worker(settings: Settings, application: Application) -> list[Schedule]:
    """Return the schedules that a worker with this application runs, beside those that were added by hand."""
    return [*default_schedules(settings), audit_schedule(settings.scheduler), *application.schedules]


def known_schedules(settings: Settings, application: str | None) -> list[Schedule]:
    """Return the schedules of a worker with the application that is named."""
    return schedules_of_worker(settings, load_application(application) if application else Application())


def _named(settings: Settings, application: str | None, name: str) -> Schedule:
    added = [each.added for each in in_transaction(settings, list_schedules) if each.added is not None]
    for schedule in [*known_schedules(settings, application), *added]:
        if schedule.name == name:
            return schedule
    raise NotFound(
        f"no schedule {name!r} in the settings, in --app or added by hand; see 'worker.py schedules list'"
    )


def _row(schedule: Schedule, stored: StoredSchedule | None, now: datetime) -> dict[str, Any]:
    next_fire_at = schedule.cron.next_fire(now)
    return {
        "name": schedule.name,
        "cron": schedule.cron.expression,
        "timezone": schedule.cron.timezone,
        "job": schedule.job_name,
        "next_fire_at": None if next_fire_at == NEVER else canonical_instant(next_fire_at),
        "fired_until": canonical_instant(stored.fired_until) if stored else None,
        "paused_at": canonical_instant(stored.paused_at) if stored and stored.paused_at else None,
    }
