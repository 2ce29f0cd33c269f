"""``doctor``: is everything there that a worker needs?"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import click
import httpcore
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.application import Application
from svc_infra.billing.money import normalize_currency
from svc_infra.canonical import canonical_instant
from svc_infra.cli.check import FAILED, OK, SKIPPED, WARNING, Check, first_line
from svc_infra.cli.context import echo_json, engine_of, json_option, run_async, settings_options
from svc_infra.cli.database_checks import database_checks
from svc_infra.cli.schedules import schedules_of_worker
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.db.migration import head_revision, require_head
from svc_infra.db.readiness import DATABASE_ERRORS
from svc_infra.db.session import make_session_factory
from svc_infra.exceptions import (
    AddressRefused,
    InvalidCurrency,
    InvalidSchedule,
    InvalidSettings,
    SchemaMissing,
)
from svc_infra.jobs.timing import NEVER
from svc_infra.webhooks.dialer import Dialer
from svc_infra.webhooks.endpoint_rules import key_ring
from svc_infra.webhooks.endpoints import Endpoint, list_endpoints
from svc_infra.webhooks.guard import PublicAddresses

MAX_CLOCK_SKEW_SECONDS = 5.0
_DIAL_SECONDS = 5.0


@click.command()
@click.option("--endpoints", "with_endpoints", is_flag=True, help="Also connect to every enabled endpoint.")
@json_option
@settings_options
def doctor(settings: Settings, with_endpoints: bool, as_json: bool) -> None:
    """Check what a worker needs, from settings and database to schedules and, if wanted, endpoints.

    Changes nothing. Exit 1 if a check failed.
    """
    checks = run_async(_examine(settings, with_endpoints))
    if as_json:
        echo_json([asdict(check) for check in checks])
    else:
        print_table(["check", "outcome", "detail"], [(c.name, c.outcome, c.detail) for c in checks])
    if any(check.outcome == FAILED for check in checks):
        sys.exit(1)


async def _examine(settings: Settings, with_endpoints: bool) -> list[Check]:
    engine = engine_of(settings)
    try:
        checks = [_settings(settings), await _database(engine)]
        if checks[-1].outcome == OK:
            checks += [await _migrations(engine), await _clock(engine)]
            checks += [check async for check in database_checks(engine, settings)]
        else:
            checks += [
                Check(name, SKIPPED, "the database does not answer") for name in ("migrations", "clock")
            ]
        checks += _schedules(settings)
        checks.append(_secret_keys(settings))
        if not with_endpoints:
            return [*checks, Check("endpoints", SKIPPED, "add --endpoints to connect to each of them")]
        if any(check.name == "migrations" and check.outcome != OK for check in checks):
            return [*checks, Check("endpoints", SKIPPED, "they are in the database, which is not ready")]
        return [*checks, *[check async for check in _endpoints(settings, engine)]]
    finally:
        await engine.dispose()


def _settings(settings: Settings) -> Check:
    try:
        normalize_currency(settings.billing.currency)
    except InvalidCurrency as error:
        return Check("settings", FAILED, f"billing.currency: {error}")
    return Check("settings", OK, "every key is known and every value can be used")


async def _database(engine: AsyncEngine) -> Check:
    shown = engine.url.render_as_string(hide_password=True)
    if _is_missing_file(engine.url):
        return Check("database", FAILED, f"{shown}: no such file; 'worker.py migrate' makes it")
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            version = ".".join(map(str, connection.dialect.server_version_info or ()))
    except DATABASE_ERRORS as error:
        advice = "check the address, the user and that the server runs"
        return Check("database", FAILED, f"{shown} does not answer: {first_line(error)}; {advice}")
    return Check("database", OK, f"{shown} answers, version {version}")


def _is_missing_file(url: URL) -> bool:
    """Whether it is a SQLite file that connecting would make: a check changes nothing."""
    is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return is_file and not Path(str(url.database)).is_file()


async def _migrations(engine: AsyncEngine) -> Check:
    try:
        await require_head(engine)
    except SchemaMissing as error:
        return Check("migrations", FAILED, str(error))
    return Check("migrations", OK, f"at the head, {head_revision()}")


async def _clock(engine: AsyncEngine) -> Check:
    if engine.dialect.name == "sqlite":
        return Check("clock", SKIPPED, "SQLite has no clock of its own")
    async with engine.connect() as connection:
        before = datetime.now(UTC)
        theirs = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
        after = datetime.now(UTC)
    # Whatever lies between sending and receiving may be the way, not the clock.
    skew = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0.0)
    if skew > MAX_CLOCK_SKEW_SECONDS:
        advice = "synchronize both clocks: leases, signatures and fires depend on them"
        return Check("clock", FAILED, f"the database's clock differs by {skew:.1f} s; {advice}")
    return Check("clock", OK, f"the database's clock differs by {skew:.3f} s at most")


def _secret_keys(settings: Settings) -> Check:
    try:
        keys = key_ring(settings.webhooks)
    except InvalidSettings as error:
        return Check("webhook secrets", FAILED, str(error))
    if keys is None:
        advice = "'worker.py webhooks new-key' makes a key for webhooks.secret_keys"
        return Check("webhook secrets", WARNING, f"signing secrets are stored as they are; {advice}")
    return Check("webhook secrets", OK, "signing secrets are sealed")


def _schedules(settings: Settings) -> Iterator[Check]:
    now = SystemClock().now()
    try:
        schedules = schedules_of_worker(settings, Application())
    except InvalidSchedule as error:
        yield Check("schedules", FAILED, f"{error}; mend [scheduler] in the settings")
        return
    if not settings.scheduler.is_enabled:
        yield Check("schedules", SKIPPED, "scheduler.is_enabled is false: this worker runs none")
        return
    for schedule in schedules:
        next_fire_at = schedule.cron.next_fire(now)
        fire_at = "never" if next_fire_at == NEVER else canonical_instant(next_fire_at)
        cron = f"{schedule.cron.expression!r} in {schedule.cron.timezone}"
        yield Check(f"schedule {schedule.name}", OK, f"{cron}, next fire {fire_at}")


async def _endpoints(settings: Settings, engine: AsyncEngine) -> AsyncIterator[Check]:
    async with make_session_factory(engine)() as session:
        found = await session.run_sync(list_endpoints)
    if not found:
        yield Check("endpoints", SKIPPED, "there are none; 'worker.py endpoints add' makes one")
    dialer = Dialer(PublicAddresses(settings.webhooks.allow_networks))
    for endpoint in found:
        if endpoint.is_enabled:
            yield await _reach(endpoint, dialer)
        else:
            yield Check(f"endpoint {endpoint.url}", SKIPPED, f"disabled: {endpoint.disabled_reason}")


async def _reach(endpoint: Endpoint, dialer: Dialer) -> Check:
    """Connect and hang up: a request would be a webhook that nobody published."""
    name = f"endpoint {endpoint.url}"
    parts = urlsplit(endpoint.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(2 * _DIAL_SECONDS):
            stream = await dialer.connect_tcp(parts.hostname or "", port, timeout=_DIAL_SECONDS)
            await stream.aclose()
    except (AddressRefused, httpcore.NetworkError, httpcore.TimeoutException, TimeoutError) as error:
        return Check(name, FAILED, f"cannot connect: {first_line(error)}; check the URL, or disable it")
    return Check(name, OK, "a connection can be made")
