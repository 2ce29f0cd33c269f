"""``run``: the worker process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import click
import structlog

from svc_infra.application import Application, load_application
from svc_infra.cli.context import engine_of, require_file, run_async, settings_options
from svc_infra.cli.monitored import monitored
from svc_infra.cli.supervisor import SUPERVISED, child_command, supervise
from svc_infra.config import Settings
from svc_infra.db.migration import require_head
from svc_infra.db.session import make_session_factory
from svc_infra.logs import configure_logging
from svc_infra.runtime import Runtime, guarded_sender
from svc_infra.simulation.audit_job import add_audit

log = structlog.get_logger(__name__)

# Supervisors signal a process and then its group: the same wish, told twice.
SAME_SIGNAL_SECONDS = 1.0


@click.command()
@click.option(
    "--app", "application", metavar="MODULE:ATTRIBUTE", help="Your own handlers, schedules, topics."
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    help="Run this many workers; one that dies is started again.",
)
@click.option(
    "--until-idle", is_flag=True, help="End when nothing is due any more, instead of waiting for more."
)
@click.option(SUPERVISED, "index", type=int, hidden=True, help="The index of this process of --processes.")
@settings_options
def run(
    settings: Settings, application: str | None, processes: int | None, until_idle: bool, index: int | None
) -> None:
    """Run the worker: jobs, cron, webhook relay and sender in one process.

    Any number of workers may share one PostgreSQL. SIGTERM or SIGINT stops gracefully: nothing new is
    claimed, what runs gets worker.grace_seconds, the rest is given back. A second signal stops at once; with
    --until-idle the first one does.
    """
    if until_idle and processes is not None:
        raise click.UsageError("--until-idle is for one process; leave --processes away")
    configure_logging(settings.log.level)
    if processes is not None:
        sys.exit(run_async(supervise(child_command(sys.argv), processes)))
    loaded = load_application(application) if application else None
    run_async(_run(settings, loaded, index, until_idle), is_worker=True)


async def _run(
    settings: Settings, application: Application | None, index: int | None, until_idle: bool
) -> None:
    engine = engine_of(settings)
    sender = guarded_sender(settings.webhooks)
    stop = asyncio.Event()
    if not until_idle:
        stop_on_signals(stop)
    if index is not None:
        _stop_with_supervisor(stop)
    try:
        require_file(engine)
        await require_head(engine)
        application = application or Application()
        add_audit(application, make_session_factory(engine), settings.scheduler)
        runtime = Runtime(settings, engine, sender, application=application)
        try:
            async with monitored(
                settings.monitoring,
                engine,
                stop,
                keeps_leases=lambda: runtime.worker.keeps_leases,
                schedules=lambda: runtime.scheduler.schedules,
                index=index or 0,
            ):
                log.info("worker.ready", pid=os.getpid(), database=engine.dialect.name)
                await (_until_idle(runtime, stop) if until_idle else runtime.run(stop))
        finally:
            await runtime.aclose()
    finally:
        await sender.aclose()
        await engine.dispose()


async def _until_idle(runtime: Runtime, stop: asyncio.Event) -> None:
    """Do what is due now; a signal meanwhile ends the process like a crash, which is what leases are for."""
    try:
        if runtime.settings.scheduler.is_enabled:
            await runtime.scheduler.tick()
        while await runtime.usage_follower.follow():
            pass
        await runtime.drain()
        log.info(
            "worker.idle", attempts=runtime.worker.stats.attempts, delivered=runtime.deliverer.stats.delivered
        )
    finally:
        stop.set()


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set ``stop`` at the first SIGTERM or SIGINT, and end the process at once at a later one."""
    loop = asyncio.get_running_loop()
    first_at = 0.0

    def on_signal(name: str) -> None:
        nonlocal first_at
        if stop.is_set():
            if loop.time() - first_at < SAME_SIGNAL_SECONDS:
                return
            # Whatever was running is rescued when its lease ends; that is what leases are for.
            log.warning("worker.stopped_at_once", signal=name)
            os._exit(1)
        first_at = loop.time()
        stop.set()
        log.info("worker.stopping", signal=name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)


def _stop_with_supervisor(stop: asyncio.Event) -> None:
    """Set ``stop`` when the supervisor is gone: then standard input, which it never writes to, ends."""
    loop = asyncio.get_running_loop()

    def on_end() -> None:
        loop.remove_reader(sys.stdin.fileno())
        log.warning("worker.supervisor_gone")
        stop.set()

    loop.add_reader(sys.stdin.fileno(), on_end)
