"""The screen of ``top``: tables that fit a terminal of 80 columns, and say first what needs a look."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from svc_infra.cli.top import Snapshot

_OLD_SECONDS = 300
_EXPIRING_SECONDS = 5
_ROWS = 12
_BAD, _ODD, _QUIET = "bold red", "yellow", "dim"


@contextmanager
def live_screen() -> Iterator[Callable[[Snapshot], None]]:
    """Take the terminal's other screen until the end, and give a function that shows a snapshot there."""
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def show(snapshot: Snapshot) -> None:
            live.update(_screen(snapshot, height=console.height), refresh=True)

        yield show


def print_once(snapshot: Snapshot) -> None:
    """Print a snapshot where the output goes on; in a file it is as wide as it needs to be."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(_screen(snapshot, height=None))


def _screen(snapshot: Snapshot, *, height: int | None) -> RenderableType:
    jobs = snapshot.jobs
    parts: list[RenderableType] = [
        _headline(snapshot),
        _queues(snapshot),
        _names(snapshot),
        _leases(snapshot),
        _schedules(snapshot),
    ]
    if jobs.failures:
        parts.append(_failures(snapshot))
    if height is not None:
        parts.append(Text("q ends it", style=_QUIET))
    return Group(*parts)


def _headline(snapshot: Snapshot) -> Text:
    jobs = snapshot.jobs
    due = sum(queue.due for queue in jobs.queues)
    running = sum(queue.running for queue in jobs.queues)
    rate = sum(queue.completed_per_minute for queue in jobs.queues)
    line = Text.assemble(
        (snapshot.database, "bold"),
        f"  {jobs.at:%H:%M:%S} UTC  ",
        (f"{due:,} due", "bold" if due else _QUIET),
        f"  {running:,} running  {rate:,} completed a minute",
    )
    paused = [queue.name for queue in jobs.queues if queue.paused_at]
    paused += [schedule.name for schedule in snapshot.schedules if schedule.paused_at]
    if paused:
        line.append(f"  paused: {', '.join(paused)}", style=_ODD)
    if snapshot.seconds >= 1:
        line.append(f"  (a look takes {snapshot.seconds:.1f} s)", style=_QUIET)
    return line


def _queues(snapshot: Snapshot) -> Table:
    at = snapshot.jobs.at
    rows = (
        [
            Text(queue.name, style=_ODD if queue.paused_at else ""),
            _count(queue.due),
            _age(at, queue.oldest_due_at),
            _count(queue.scheduled),
            _count(queue.running),
            _count(queue.completed_per_minute),
            Text(f"since {_since(at, queue.paused_at)}", style=_ODD) if queue.paused_at else "",
        ]
        for queue in sorted(snapshot.jobs.queues, key=lambda queue: -queue.due)
    )
    return _table(["queue", ">due", ">oldest", ">scheduled", ">running", ">done/min", "paused"], rows)


def _names(snapshot: Snapshot) -> Table:
    rows = (
        [
            Text(name.name),
            _count(name.waiting),
            _count(name.retrying, style=_ODD),
            _count(name.running),
            _count(name.completed_per_minute),
            _count(name.discarded_per_minute, style=_BAD),
            _count(name.cancelled_per_minute),
        ]
        for name in sorted(
            snapshot.jobs.names, key=lambda name: (-name.completed_per_minute, -name.waiting, name.name)
        )
    )
    columns = ["job", ">waiting", ">retrying", ">running", ">done/min", ">discarded/min", ">cancelled/min"]
    return _table(columns, rows)


def _leases(snapshot: Snapshot) -> Table:
    rows = (
        [
            lease.lease_id[-12:],
            _count(lease.jobs),
            Text(lease.name),
            Text(f"{lease.seconds_left:.0f} s", style=_BAD if lease.seconds_left < _EXPIRING_SECONDS else ""),
        ]
        for lease in snapshot.jobs.leases
    )
    return _table(["lease", ">jobs", "of", ">ends in"], rows)


def _schedules(snapshot: Snapshot) -> Table:
    at = snapshot.jobs.at
    rows = (
        [
            Text(schedule.name, style=_ODD if schedule.paused_at else ""),
            _until(at, schedule.next_fire_at),
            _since(at, schedule.fired_until),
            Text(f"since {_since(at, schedule.paused_at)}", style=_ODD) if schedule.paused_at else "",
        ]
        for schedule in snapshot.schedules
    )
    return _table(["schedule", ">fires in", ">looked at", "paused"], rows)


def _failures(snapshot: Snapshot) -> Table:
    at = snapshot.jobs.at
    rows = (
        [
            Text(f"{_since(at, failure.finished_at)} ago"),
            Text(failure.name),
            str(failure.attempt),
            Text((failure.error or "").partition("\n")[0], style=_BAD),
        ]
        for failure in snapshot.jobs.failures
    )
    return _table(["=discarded", "=job", ">attempts", "error"], rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Make a table, of a dozen rows at most.

    A column whose name begins with > is aligned to the right; it is as wide as it has to be, as is one that
    begins with =. The others share what is left.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True, header_style=_QUIET)
    for column in columns:
        is_right = column.startswith(">")
        table.add_column(
            column.lstrip(">="),
            justify="right" if is_right else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=None if column[0] in ">=" else 1,
        )
    listed = list(rows)
    for row in listed[:_ROWS]:
        # Text, because a job may be called [red].
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    if len(listed) > _ROWS:
        table.add_row(Text(f"and {len(listed) - _ROWS} more", style=_QUIET))
    if not listed:
        table.add_row(Text("none", style=_QUIET))
    return table


def _count(number: int, *, style: str = "") -> Text:
    return Text(f"{number:,}", style=style if number else _QUIET)


def _age(at: datetime, since: datetime | None) -> Text:
    if since is None:
        return Text("")
    is_old = (at - since).total_seconds() > _OLD_SECONDS
    return Text(_since(at, since), style=_BAD if is_old else "")


def _since(at: datetime, since: datetime | None) -> str:
    return "" if since is None else _duration((at - since).total_seconds())


def _until(at: datetime, until: datetime | None) -> str:
    return "" if until is None else _duration((until - at).total_seconds())


def _duration(seconds: float) -> str:
    """Return the two largest units: ``3 d 4 h``, ``5 min 12 s``."""
    left, parts = max(0, round(seconds)), list[str]()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number or (unit == "s" and not parts):
            parts.append(f"{number} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])
