"""What every command shares: the settings options, the engine, and how results are printed."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.config import LoadedSettings, Settings, load_with_sources
from svc_infra.db.migration import require_head
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.exceptions import InvalidSettings, SchemaMissing
from svc_infra.logs import configure_logging

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_CONFIG = Path("config/worker.toml")
_THREAD_SECONDS = 1.0
_GARBAGE_THRESHOLDS = (100_000, 20, 50)


def settings_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command ``--config``, ``--database-url`` and ``--set``, and pass it the loaded ``settings``."""

    @loaded_settings_options
    @wraps(command)
    def with_settings(loaded: LoadedSettings, **parameters: Any) -> T:
        return command(settings=loaded.settings, **parameters)

    return with_settings


def loaded_settings_options(command: Callable[..., T]) -> Callable[..., T]:
    """Do as ``settings_options`` does, and pass ``loaded``: the settings and where they come from."""

    @click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Settings file; config/worker.toml is read when it is there.",
    )
    @click.option("--database-url", help="Database to use, before DATABASE_URL and the settings file.")
    @click.option(
        "--set", "flags", multiple=True, metavar="SECTION.KEY=VALUE", help="Any setting, before all else."
    )
    @wraps(command)
    def with_loaded(
        config_file: Path | None, database_url: str | None, flags: tuple[str, ...], **parameters: Any
    ) -> T:
        if config_file is None and DEFAULT_CONFIG.is_file():
            config_file = DEFAULT_CONFIG
        loaded = load_with_sources(config_file, database_url=database_url, flags=dict(map(_flag, flags)))
        # A command answers and is gone; only the worker keeps a log (and sets the level of it).
        configure_logging("warning")
        return command(loaded=loaded, **parameters)

    return with_loaded


def _flag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidSettings(f"--set {text}: write it as section.key=value, like worker.concurrency=8")
    return name.strip(), value


def json_option(command: Callable[P, T]) -> Callable[P, T]:
    """Give a command ``--json``, passed as ``as_json``."""
    option: Callable[[Callable[P, T]], Callable[P, T]] = click.option(
        "--json", "as_json", is_flag=True, help="Print JSON for programs instead of a table for people."
    )
    return option(command)


def run_async(main: Coroutine[Any, Any, T], *, is_worker: bool = False) -> T:
    """Run a command's coroutine to its end; that of a worker on the quicker loop of the extra ``speed``."""
    collect_garbage_rarely()
    with asyncio.Runner(loop_factory=_quick_loop() if is_worker else None) as runner:
        return runner.run(_until_quiet(main))


async def _until_quiet(main: Coroutine[Any, Any, T]) -> T:
    """Await ``main``, and then the threads of SQLite connections that failed: they answer the loop once more.

    Ended before that, the loop would make them print a traceback beside the one sentence of the error.
    """
    try:
        return await main
    finally:
        for thread in threading.enumerate():
            if "_connection_worker_thread" in thread.name:
                await asyncio.to_thread(thread.join, _THREAD_SECONDS)


def collect_garbage_rarely() -> None:
    """Let Python look for garbage in cycles less often, as every command does.

    Batches make many short-lived objects and hardly a cycle: looking at all of them every 700 objects, as
    Python does by default, costs a tenth of the time and finds nothing.
    """
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


def _quick_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def engine_of(settings: Settings) -> AsyncEngine:
    """Make the engine that the settings describe."""
    database = settings.database
    return make_engine(
        database.url,
        pool_size=database.pool_size,
        statement_timeout_seconds=database.statement_timeout_seconds,
        lock_timeout_seconds=database.lock_timeout_seconds,
        idle_in_transaction_timeout_seconds=database.idle_in_transaction_timeout_seconds,
        behind_transaction_pooler=database.behind_transaction_pooler,
    )


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    """Open the database for one command; its schema must be at this version's head."""
    engine = engine_of(settings)
    require_file(engine)
    try:
        await require_head(engine)
        yield make_session_factory(engine)
    finally:
        await engine.dispose()


def require_file(engine: AsyncEngine) -> None:
    """Refuse a SQLite file that is not there: connecting would make an empty one, even to read."""
    file = engine.url.database
    if engine.dialect.name == "sqlite" and file and not Path(file).exists():
        raise SchemaMissing(f"there is no database file {file}; run 'worker.py migrate' to make it")


def echo_json(value: Any) -> None:
    """Print ``value`` as one line of JSON; money and quantities are already text or integers."""
    click.echo(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
