"""``usage``: import usage events from a file; the commands on single events are in ``usage_events``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, TextIO

import click

from svc_infra.billing.usage_file import UsageLine, read_usage
from svc_infra.billing.usage_import import ImportCounts, UsageImport
from svc_infra.cli.context import echo_json, json_option, open_database, run_async, settings_options
from svc_infra.cli.usage_archive import archive
from svc_infra.cli.usage_events import amend, limits_in, meters, rejected, trace, void
from svc_infra.config import Settings
from svc_infra.exceptions import SvcInfraError


@click.group()
def usage() -> None:
    """Import and archive usage events; trace, void and amend single ones; set what a metric measures."""


for command in (trace, void, amend, rejected, meters, archive):
    usage.add_command(command)


@usage.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--skip-bad",
    "rejects_file",
    metavar="OUT.jsonl",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write bad lines to this file, as {file, line, reason, raw}, and go on.",
)
@json_option
@settings_options
def import_usage(settings: Settings, file: str, rejects_file: Path | None, as_json: bool) -> None:
    """Import usage events from FILE, or from standard input if FILE is '-'.

    CSV with the header tenant_id,metric,amount,at,idempotency_key (and, if wanted, metadata as JSON), or
    JSON lines with the same keys; either may be gzipped. 'amount' is a decimal string, 'at' ISO 8601 with an
    offset. Safe to run again: what is recorded already counts as duplicate.

    A bad line ends the import with exit 1 and FILE:LINE: reason; the chunks before it stay. With --skip-bad
    such lines are set aside and the exit code is 0.
    """
    counts = run_async(_import(settings, file, rejects_file, as_json))
    if as_json:
        echo_json(asdict(counts))
    else:
        click.echo(_sentence(counts))


async def _import(settings: Settings, file: str, rejects_file: Path | None, as_json: bool) -> ImportCounts:
    with ExitStack() as opened:
        stream = opened.enter_context(_open(file))
        async with open_database(settings) as session_factory:
            rejects = opened.enter_context(_create(rejects_file, file)) if rejects_file else None
            usage_import = UsageImport(
                session_factory,
                read_usage(stream, file),
                name=file,
                limits=limits_in(settings),
                on_rejected=_writer(rejects, file) if rejects else None,
                on_chunk=opened.enter_context(_progress(stream)),
            )
            try:
                return await usage_import.run()
            except SvcInfraError:
                if as_json:
                    echo_json(asdict(usage_import.counts))
                elif usage_import.counts.read:
                    before = _sentence(usage_import.counts)
                    click.echo(f"What stands before the bad line's chunk stays. {before}", err=True)
                raise


@contextmanager
def _open(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = open(file, "rb")
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from None
    with stream:
        yield stream


@contextmanager
def _create(rejects_file: Path, file: str) -> Iterator[TextIO]:
    if file != "-" and rejects_file.exists() and rejects_file.samefile(file):
        raise click.UsageError("--skip-bad would overwrite the file that is imported; name another")
    try:
        rejects = rejects_file.open("w", encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"cannot write {rejects_file}: {error.strerror}") from None
    with rejects:
        yield rejects


def _writer(rejects: TextIO, file: str) -> Callable[[UsageLine], None]:
    def write(line: UsageLine) -> None:
        reject = {"file": file, "line": line.number, "reason": line.reason, "raw": line.printable}
        rejects.write(json.dumps(reject, ensure_ascii=False) + "\n")

    return write


@contextmanager
def _progress(stream: BinaryIO) -> Iterator[Callable[[ImportCounts], None] | None]:
    """A bar over the bytes of the file, on standard error and only if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    size = _size(stream)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[events]:,} events"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Importing", total=size, events=0)

        def show(counts: ImportCounts) -> None:
            read = stream.tell() if size is not None else None
            progress.update(task, completed=read, events=counts.read)

        yield show


def _size(stream: BinaryIO) -> int | None:
    if not stream.seekable():
        return None
    start = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(start)
    return size


def _sentence(counts: ImportCounts) -> str:
    return (
        f"{counts.read:,} read: {counts.inserted:,} inserted, {counts.duplicate:,} duplicate, "
        f"{counts.rejected:,} rejected."
    )
