"""``jobs``: look at jobs, retry, cancel and requeue them, purge old ones."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click
from sqlalchemy.orm import Session

from svc_infra.canonical import canonical_instant
from svc_infra.cli.acting import actor_option, echo_act, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.jobs import administration
from svc_infra.jobs.acts import list_acts
from svc_infra.jobs.job import FINISHED, JobState
from svc_infra.jobs.queue import StoredJob

_BATCH = 1_000
_STATES = click.Choice([state.value for state in JobState])
_FINISHED = click.Choice(sorted(state.value for state in FINISHED))


@click.group()
def jobs() -> None:
    """Look at jobs; retry, cancel, requeue and purge them."""


@jobs.command(name="list")
@click.option("--state", type=_STATES, help="Only in this state.")
@click.option("--name", help="Only jobs of this name.")
@click.option("--queue", help="Only of this queue.")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--error-like", help="An SQL pattern for the last error: % is any text.")
@click.option("--after", metavar="ID", help="Begin after this job: the last one of the page before.")
@click.option("--limit", default=100, type=click.IntRange(1, 10_000), help="At most so many.")
@json_option
@settings_options
def list_(settings: Settings, state: str | None, tenant: str | None, as_json: bool, **filters: Any) -> None:
    """List jobs, the oldest first."""
    wanted = {**filters, "state": JobState(state) if state else None, "tenant_id": tenant}
    found = in_transaction(settings, lambda session: administration.list_jobs(session, **wanted))
    if as_json:
        echo_json([_row(stored) for stored in found])
        return
    columns = ["id", "name", "queue", "state", "run_at", "attempt", "last_error"]
    print_table(columns, [[_row(stored)[column] for column in columns] for stored in found])


@jobs.command()
@click.argument("job_id", metavar="ID")
@json_option
@settings_options
def show(settings: Settings, job_id: str, as_json: bool) -> None:
    """Show a job, its payload and what was done to it by hand."""

    def look(session: Session) -> tuple[StoredJob, list[dict[str, Any]]]:
        acts = [
            {**asdict(act), "at": canonical_instant(act.at)} for act in list_acts(session, subject=job_id)
        ]
        return administration.show_job(session, job_id), acts

    stored, acts = in_transaction(settings, look)
    row = {**_row(stored), "payload": stored.job.payload, "acts": acts}
    if as_json:
        echo_json(row)
    else:
        print_table(["field", "value"], row.items())


@jobs.command()
@click.argument("job_id", metavar="ID")
@json_option
@actor_option
@settings_options
def retry(settings: Settings, job_id: str, actor: str, as_json: bool) -> None:
    """Make a dead letter or a waiting job due now; a dead letter gets all its attempts anew."""
    now = SystemClock().now()
    in_transaction(settings, lambda session: administration.retry_job(session, job_id, actor=actor, now=now))
    echo_act(as_json, "due now", id=job_id)


@jobs.command()
@click.argument("job_id", metavar="ID")
@json_option
@actor_option
@settings_options
def cancel(settings: Settings, job_id: str, actor: str, as_json: bool) -> None:
    """Cancel a job. One that runs is ended by its worker within a third of worker.lease_seconds."""
    now = SystemClock().now()
    was = in_transaction(
        settings, lambda session: administration.cancel_job(session, job_id, actor=actor, now=now)
    )
    done = "asked its worker to end it" if was is JobState.RUNNING else "cancelled"
    echo_act(as_json, done, id=job_id)


@jobs.command()
@click.option("--error-like", help="An SQL pattern for the last error: % is any text.")
@click.option("--fingerprint", help="All with the same error; 'jobs errors' lists fingerprints.")
@click.option("--name", help="Only jobs of this name.")
@json_option
@actor_option
@settings_options
def requeue(settings: Settings, actor: str, as_json: bool, **which: Any) -> None:
    """Give the dead letters with an error all their attempts anew."""
    now = SystemClock().now()
    count = in_transaction(
        settings, lambda session: administration.requeue_dead(session, actor=actor, now=now, **which)
    )
    _echo_count(count, as_json)


@jobs.command()
@click.option("--name", help="Only jobs of this name.")
@json_option
@settings_options
def errors(settings: Settings, name: str | None, as_json: bool) -> None:
    """Count the dead letters by error."""
    groups = in_transaction(settings, lambda session: administration.error_groups(session, name=name))
    if as_json:
        echo_json([asdict(group) for group in groups])
    else:
        rows = [(group.fingerprint, group.jobs, group.pattern) for group in groups]
        print_table(["fingerprint", "jobs", "error"], rows, right=["jobs"])


@jobs.command()
@click.option(
    "--state", "states", type=_FINISHED, multiple=True, required=True, help="How they ended; several times."
)
@click.option("--older-than-days", type=click.FloatRange(0), required=True, help="Counted from their end.")
@json_option
@actor_option
@settings_options
def purge(
    settings: Settings, states: tuple[str, ...], older_than_days: float, actor: str, as_json: bool
) -> None:
    """Delete finished jobs, a thousand in one transaction."""
    now = SystemClock().now()
    chosen = {JobState(state) for state in states}
    before, purged = now - timedelta(days=older_than_days), 0

    def purge_batch(session: Session) -> int:
        return administration.purge_jobs(
            session, actor=actor, now=now, states=chosen, finished_before=before, limit=_BATCH
        )

    while count := in_transaction(settings, purge_batch):
        purged += count
    _echo_count(purged, as_json)


def _echo_count(count: int, as_json: bool) -> None:
    if as_json:
        echo_json({"jobs": count})
    else:
        click.echo(f"{count} jobs")


def _row(stored: StoredJob) -> dict[str, Any]:
    job = stored.job
    return {
        "id": job.id,
        "name": job.name,
        "queue": job.queue,
        "tenant_id": job.tenant_id,
        "state": stored.state.value,
        "priority": job.priority,
        "run_at": canonical_instant(job.run_at),
        "created_at": canonical_instant(job.created_at),
        "finished_at": None if stored.finished_at is None else canonical_instant(stored.finished_at),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "rescues": job.rescues,
        "last_error": job.last_error,
    }
