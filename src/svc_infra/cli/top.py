"""``top``: what goes on, live: queues, names, leases, schedules, what is paused and what failed."""

from __future__ import annotations

import asyncio
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from svc_infra.canonical import canonical_instant
from svc_infra.cli.context import echo_json, json_option, open_database, run_async, settings_options
from svc_infra.cli.schedules import app_option, known_schedules
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.db.session import begin_reading
from svc_infra.jobs.loop import wait_any
from svc_infra.jobs.overview import Overview, overview
from svc_infra.jobs.pausing import StoredSchedule, list_schedules
from svc_infra.jobs.scheduler import Schedule
from svc_infra.jobs.timing import NEVER

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_INTERVAL_SECONDS = 2.0
# Counting a million waiting jobs takes time: looking shall take no more than this part of it.
_MOST_OF_THE_TIME = 1 / 20


@dataclass(frozen=True, slots=True)
class ListedSchedule:
    """A schedule and when it fires next; None is never."""

    name: str
    next_fire_at: datetime | None
    fired_until: datetime | None
    paused_at: datetime | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at everything, and how long it took."""

    database: str
    jobs: Overview
    schedules: list[ListedSchedule]
    seconds: float


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3_600),
    help=f"Seconds between two looks ({_INTERVAL_SECONDS:g}); with --json, go on looking.",
)
@click.option("--once", is_flag=True, help="Look once and end; so it does where the output is no terminal.")
@app_option
@json_option
@settings_options
def top(
    settings: Settings, interval: float | None, once: bool, application: str | None, as_json: bool
) -> None:
    """Show what goes on, live: queues, names, leases, schedules, failures. End it with q or Ctrl-C.

    Rates are those of the last minute. A look that takes long is made less often.
    """
    is_live = not once and (interval is not None if as_json else sys.stdout.isatty())
    schedules = known_schedules(settings, application)
    show = _show_json if as_json else _show
    if is_live and not as_json:
        from svc_infra.cli.top_screen import live_screen

        with live_screen() as show_live:
            run_async(_watch(settings, schedules, show_live, interval or _INTERVAL_SECONDS))
    else:
        run_async(_watch(settings, schedules, show, (interval or _INTERVAL_SECONDS) if is_live else None))


async def _watch(
    settings: Settings,
    schedules: list[Schedule],
    show: Callable[[Snapshot], None],
    interval: float | None,
) -> None:
    """Look and show until somebody ends it, or once without an interval."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with open_database(settings) as session_factory:
        with _ending_by_hand(stop) if interval is not None else nullcontext():
            while True:
                started_at = loop.time()
                async with session_factory() as session:
                    await begin_reading(session)
                    found = await session.run_sync(lambda sync: _look(sync, schedules))
                seconds = loop.time() - started_at
                show(Snapshot(_name_of(settings), *found, round(seconds, 4)))
                if interval is None:
                    return
                await wait_any(stop, timeout_seconds=max(interval, seconds / _MOST_OF_THE_TIME))
                if stop.is_set():
                    return


def _look(session: Session, schedules: list[Schedule]) -> tuple[Overview, list[ListedSchedule]]:
    now = SystemClock().now()
    stored = {schedule.name: schedule for schedule in list_schedules(session)}
    listed = [_listed(schedule, stored.pop(schedule.name, None), now) for schedule in schedules]
    for each in stored.values():
        if each.added is not None:
            listed.append(_listed(each.added, each, now))
        else:
            # Only another worker's application knows it: when it fires is not stored.
            listed.append(ListedSchedule(each.name, None, each.fired_until, each.paused_at))
    listed.sort(key=lambda each: (each.next_fire_at is None, each.next_fire_at or now, each.name))
    return overview(session, now=now), listed


def _listed(schedule: Schedule, stored: StoredSchedule | None, now: datetime) -> ListedSchedule:
    next_fire_at = schedule.cron.next_fire(now)
    return ListedSchedule(
        schedule.name,
        None if next_fire_at == NEVER else next_fire_at,
        stored.fired_until if stored else None,
        stored.paused_at if stored else None,
    )


def _name_of(settings: Settings) -> str:
    from sqlalchemy import make_url

    url = make_url(settings.database.url)
    # Without user and password.
    return str(url.database) if url.host is None else f"{url.host}/{url.database}"


def _show_json(snapshot: Snapshot) -> None:
    echo_json(_plain(asdict(snapshot)))
    sys.stdout.flush()


def _show(snapshot: Snapshot) -> None:
    from svc_infra.cli.top_screen import print_once

    print_once(snapshot)


def _plain(value: Any) -> Any:
    """Return the value with instants as text."""
    if isinstance(value, datetime):
        return canonical_instant(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


@contextmanager
def _ending_by_hand(stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` at SIGINT and SIGTERM, and when q is pressed in a terminal."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def on_key() -> None:
        if sys.stdin.read(1) in ("q", "Q", "\x1b", ""):
            stop.set()

    tty.setcbreak(terminal)
    loop.add_reader(terminal, on_key)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
