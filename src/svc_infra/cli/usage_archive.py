"""``usage archive``: move events that were invoiced long ago out of the way of ingestion."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta

import click

from svc_infra.billing.usage_archive import EVENTS_AT_A_TIME, archive_usage
from svc_infra.cli.context import echo_json, json_option, open_database, run_async, settings_options
from svc_infra.clock import SystemClock
from svc_infra.config import ARCHIVE_DAYS, Settings


@dataclass
class _Counts:
    days: int = 0
    events: int = 0


@click.command()
@click.option(
    "--older-than",
    "days",
    type=click.IntRange(min=ARCHIVE_DAYS),
    metavar="DAYS",
    help="What is older is archived; by default billing.usage_archive_days.",
)
@json_option
@settings_options
def archive(settings: Settings, days: int | None, as_json: bool) -> None:
    """Move usage events that were invoiced long ago into the archive, to the end.

    They count as before: a repeated key is still a duplicate, and traces, explanations, corrections and the
    audit find them. The worker does it every hour where billing.usage_archive_days is set.
    """
    kept = days or settings.billing.usage_archive_days
    if not kept:
        raise click.UsageError("say with --older-than how many days stay, or set billing.usage_archive_days")
    counts = run_async(_archive(settings, timedelta(days=max(kept, settings.billing.usage_past_days))))
    if as_json:
        echo_json(asdict(counts))
    else:
        click.echo(f"Archived {counts.events:,} events; {counts.days:,} days are archived whole.")


async def _archive(settings: Settings, kept: timedelta) -> _Counts:
    counts, now, place = _Counts(), SystemClock().now(), None
    async with open_database(settings) as session_factory:
        while True:
            async with session_factory.begin() as session:
                done = await session.run_sync(archive_usage, before=now - kept, now=now, after=place)
            counts.days += done.days
            counts.events += done.events
            place = done.place
            if place is None and done.events < EVENTS_AT_A_TIME:
                return counts
