"""What ``doctor`` looks at in a database that answers: what it promises, who we are there, what wakes us."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from svc_infra.cli.check import FAILED, OK, SKIPPED, WARNING, Check
from svc_infra.config import Settings
from svc_infra.db.session import make_engine, sqlite_journal_mode
from svc_infra.db.tenant_isolation import require_isolation
from svc_infra.exceptions import InvalidSettings
from svc_infra.ids import new_hex

_NOTIFIED_WITHIN_SECONDS = 2.0
_MB = 1024 * 1024
_FEW_MB, _TOO_FEW_MB = 1_024, 100


async def database_checks(engine: AsyncEngine, settings: Settings) -> AsyncIterator[Check]:
    """Look at durability, the role, notifications and room on the disk; change nothing."""
    if engine.dialect.name == "sqlite":
        yield _file(engine)
        yield _room(engine)
        return
    async with engine.connect() as connection:
        yield await _durability(connection)
        yield await _role(connection)
        if settings.database.tenant_role:
            yield await _second_wall(connection, settings.database.tenant_role)
    yield await _notifications(engine, settings)


def _file(engine: AsyncEngine) -> Check:
    mode = sqlite_journal_mode()
    if sqlite3.sqlite_version_info < (3, 35):
        advice = "RETURNING needs 3.35 or newer: use a Python that is linked to one"
        return Check("sqlite", FAILED, f"SQLite {sqlite3.sqlite_version}; {advice}")
    return Check(
        "sqlite", OK, f"SQLite {sqlite3.sqlite_version}, journal {mode}, synchronous full, one writer"
    )


def _room(engine: AsyncEngine) -> Check:
    if engine.url.database in (None, "", ":memory:"):
        return Check("disk", SKIPPED, "the database is in memory")
    free = shutil.disk_usage(Path(str(engine.url.database)).absolute().parent).free // _MB
    if free < _FEW_MB:
        outcome = FAILED if free < _TOO_FEW_MB else WARNING
        return Check("disk", outcome, f"{free:,} MB are free beside the file; make room, or move it")
    return Check("disk", OK, f"{free:,} MB are free beside the file")


async def _durability(connection: AsyncConnection) -> Check:
    names = ["fsync", "full_page_writes", "synchronous_commit"]
    shown = {name: (await connection.execute(text(f"SHOW {name}"))).scalar_one() for name in names}
    if off := [name for name in names if shown[name] == "off"]:
        loss = "takes back commits that were answered" if off == names[2:] else "can destroy the database"
        return Check("durability", WARNING, f"off: {', '.join(off)}; a crash {loss}, so turn it on")
    return Check("durability", OK, ", ".join(f"{name} {value}" for name, value in shown.items()))


async def _role(connection: AsyncConnection) -> Check:
    flags = "SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
    name, is_superuser, bypasses = (await connection.execute(text(flags))).one()
    if is_superuser or bypasses:
        what = "is a superuser" if is_superuser else "bypasses row-level security"
        return Check("role", WARNING, f"{name!r} {what}; log in as one that owns the tables and is neither")
    return Check("role", OK, f"{name!r} is no superuser")


async def _second_wall(connection: AsyncConnection, role: str) -> Check:
    try:
        await connection.run_sync(require_isolation, role)
    except InvalidSettings as error:
        return Check("tenant role", FAILED, str(error))
    return Check("tenant role", OK, f"{role!r} is held back by every policy")


async def _notifications(engine: AsyncEngine, settings: Settings) -> Check:
    if settings.database.behind_transaction_pooler:
        return Check("notifications", SKIPPED, "behind a transaction pooler workers poll")
    channel, has_come = f"svc_infra_doctor_{new_hex()}", asyncio.Event()
    listening = make_engine(engine.url, behind_transaction_pooler=True)  # which has no pool of its own
    try:
        async with listening.connect() as connection, engine.connect() as notifying:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.add_listener(channel, lambda *_: has_come.set())
            await notifying.execute(text("SELECT pg_notify(:channel, '')"), {"channel": channel})
            await notifying.commit()
            async with asyncio.timeout(_NOTIFIED_WITHIN_SECONDS):
                await has_come.wait()
    except TimeoutError:
        advice = "behind a transaction pooler set database.behind_transaction_pooler = true"
        return Check("notifications", FAILED, f"a NOTIFY does not arrive; {advice}")
    finally:
        await listening.dispose()
    return Check("notifications", OK, "a NOTIFY arrives: no worker waits for its next poll")
