"""``worker.py copy``: from a SQLite file to PostgreSQL, everything or nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import MetaData, select, text
from sqlalchemy.exc import DBAPIError

from svc_infra.cli import cli
from svc_infra.db.schema import metadata
from svc_infra.db.session import make_engine
from svc_infra.exceptions import InvalidSettings, SchemaMissing

pytestmark = pytest.mark.postgres_only

USAGE = "tenant_id,metric,amount,at,idempotency_key\n" + "".join(
    f"t{number % 3},cds,{number}.25,2024-0{1 + number % 2}-1{number % 9}T12:00:00Z,{number}\n"
    for number in range(40)
)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def billed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with two billed months: usage, invoices, jobs, messages, deliveries. Nobody changes it."""
    folder = tmp_path_factory.mktemp("billed")
    (folder / "usage.csv").write_text(USAGE)
    run("demo", "--usage", folder / "usage.csv", "--keep", folder / "billed.sqlite")
    return f"sqlite+aiosqlite:///{folder / 'billed.sqlite'}"


@pytest.fixture
def migrated(empty_database_url: str) -> str:
    """The URL of an empty PostgreSQL database at this version's schema."""
    run("migrate", "--database-url", empty_database_url)
    return empty_database_url


def everything(url: str) -> dict[str, list[Any]]:
    """Every row of every table, as Python values."""

    async def read() -> dict[str, list[Any]]:
        engine = make_engine(url)
        tables: MetaData = metadata()
        async with engine.connect() as connection:
            rows = {
                table.name: sorted((tuple(row) for row in await connection.execute(select(table))), key=repr)
                for table in tables.sorted_tables
            }
        await engine.dispose()
        return rows

    return asyncio.run(read())


def test_every_row_arrives_and_what_was_issued_stays_guarded(billed: str, migrated: str) -> None:
    copied = json.loads(run("copy", "--database-url", billed, "--json", migrated))
    before, after = everything(billed), everything(migrated)
    assert after == before
    assert copied == {name: len(rows) for name, rows in before.items()}
    assert min(copied[name] for name in ("usage_events", "invoices", "invoice_lines", "jobs")) > 0
    run("audit", "--database-url", migrated)

    async def forge() -> None:
        engine = make_engine(migrated)
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE invoice_lines SET amount = amount + 1"))

    with pytest.raises(DBAPIError, match="invoice"):
        asyncio.run(forge())
    with pytest.raises(InvalidSettings, match="has rows in"):
        run("copy", "--database-url", billed, migrated)


def test_nothing_is_written_when_a_row_cannot_be_copied(billed: str, migrated: str, tmp_path: Path) -> None:
    shutil.copy(billed.removeprefix("sqlite+aiosqlite:///"), tmp_path / "odd.sqlite")
    file = sqlite3.connect(tmp_path / "odd.sqlite")
    file.execute("PRAGMA ignore_check_constraints = 1")
    file.execute("UPDATE jobs SET attempt = 99999999999 WHERE id = (SELECT max(id) FROM jobs)")
    file.commit()
    file.close()
    with pytest.raises(DBAPIError):
        run("copy", "--database-url", f"sqlite:///{tmp_path / 'odd.sqlite'}", migrated)
    assert not any(everything(migrated).values())


def test_only_a_migrated_postgresql_is_a_target(billed: str, tmp_path: Path, empty_database_url: str) -> None:
    with pytest.raises(InvalidSettings, match="from a SQLite file to PostgreSQL"):
        run("copy", "--database-url", billed, f"sqlite:///{tmp_path / 'other.sqlite'}")
    with pytest.raises(SchemaMissing, match="migrate"):
        run("copy", "--database-url", billed, empty_database_url)
    with pytest.raises(SchemaMissing, match="no database file"):
        run("copy", "--database-url", f"sqlite:///{tmp_path / 'missing.sqlite'}", empty_database_url)
