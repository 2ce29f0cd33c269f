"""Bringing a database to the schema of this version, safely also when several processes start at once."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.db.session import READING
from svc_infra.exceptions import InvalidSettings, SchemaMissing

VERSION_TABLE = "svc_infra_alembic_version"
_LOCK_KEY = 7_239_601_542_881_103


def packaged_folder(name: str) -> Path:
    """Return the folder ``migrations`` or ``config``: inside the wheel, or at the top of a checkout."""
    packaged = Path(str(resources.files("svc_infra"))) / f"_{name}"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / name


@cache
def head_revision() -> str:
    """Return the newest revision that this version of the code knows."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def current_revision(connection: Connection) -> str | None:
    """Return the revision that the database is at, or None for a database without our tables."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


async def migrate(engine: AsyncEngine, revision: str = "head") -> None:
    """Upgrade (or, to an older revision or ``base``, downgrade) in one transaction.

    A second runner waits for the first and then finds nothing to do: on PostgreSQL by a transaction-level
    advisory lock, which works behind a transaction pooler too, on SQLite by the file's write lock.
    """
    async with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        await connection.run_sync(_migrate, revision)


async def require_head(engine: AsyncEngine) -> None:
    """Check that the database has the schema of this version.

    Raises:
        SchemaMissing: it has none or another; the message names the command that mends it.
    """
    async with engine.execution_options(**READING).connect() as connection:
        current = await connection.run_sync(current_revision)
    if current != head_revision():
        raise SchemaMissing(
            f"the database is at schema {current or 'none'}, this version needs {head_revision()}: "
            "run 'worker.py migrate'"
        )


def _migrate(connection: Connection, revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    current = current_revision(connection)
    script = ScriptDirectory.from_config(config)
    known = {each.revision for each in script.walk_revisions()} | {"head", "base"}
    if revision not in known:
        raise InvalidSettings(f"there is no revision {revision!r}; use one of {', '.join(sorted(known))}")
    is_downgrade = revision == "base" or (
        revision != "head"
        and current is not None
        and script.get_revision(revision) in list(script.iterate_revisions(current, "base"))
    )
    (command.downgrade if is_downgrade else command.upgrade)(config, revision)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(packaged_folder("migrations")).replace("%", "%%"))
    return config
