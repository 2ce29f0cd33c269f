"""Migrations: they agree with the models, go up and down, and two runners at once are safe."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from svc_infra.db.migration import (
    VERSION_TABLE,
    current_revision,
    head_revision,
    migrate,
    require_head,
)
from svc_infra.db.schema import metadata
from svc_infra.db.session import make_engine
from svc_infra.exceptions import SchemaMissing

ROOT = Path(__file__).resolve().parents[2]


def _differences(connection: Connection) -> list[object]:
    def is_compared(item: Any, name: str | None, *_: object) -> bool:
        only_on = getattr(item, "_ddl_if", None)
        return name != VERSION_TABLE and (only_on is None or only_on.dialect == connection.dialect.name)

    context = MigrationContext.configure(
        connection,
        opts={
            "compare_type": True,
            "include_object": is_compared,
        },
    )
    return list(compare_metadata(context, metadata()))


def _constraint_names(connection: Connection) -> set[tuple[str, str | None]]:
    inspector = inspect(connection)
    return {
        (table, constraint["name"])
        for table in inspector.get_table_names()
        if table != VERSION_TABLE
        for found in (
            inspector.get_check_constraints(table),
            inspector.get_unique_constraints(table),
            inspector.get_foreign_keys(table),
            [inspector.get_pk_constraint(table)],
            inspector.get_indexes(table),
        )
        for constraint in found
    }


def _triggers(connection: Connection) -> set[tuple[str, ...]]:
    """Every trigger and its function as text, with the white space made one."""
    if connection.dialect.name == "postgresql":
        query = (
            "SELECT pg_get_triggerdef(t.oid), pg_get_functiondef(t.tgfoid) FROM pg_trigger t "
            "WHERE NOT t.tgisinternal"
        )
    else:
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    return {tuple(" ".join(part.split()) for part in row) for row in connection.execute(text(query))}


async def test_migrations_and_models_make_the_same_schema(empty_database_url: str, database_url: str) -> None:
    migrated, modelled = make_engine(empty_database_url), make_engine(database_url)
    await migrate(migrated)
    async with migrated.connect() as by_migrations, modelled.connect() as by_models:
        assert await by_migrations.run_sync(_differences) == []
        assert await by_migrations.run_sync(_constraint_names) == await by_models.run_sync(_constraint_names)
        triggers = await by_migrations.run_sync(_triggers)
        assert triggers == await by_models.run_sync(_triggers)
        assert triggers
    await migrated.dispose()
    await modelled.dispose()


async def test_migrations_go_down_to_nothing_and_up_again(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)
    await migrate(engine)
    await migrate(engine, "base")
    async with engine.connect() as connection:
        tables = await connection.run_sync(lambda sync: set(inspect(sync).get_table_names()))
        assert tables <= {VERSION_TABLE}
    with pytest.raises(SchemaMissing, match=r"worker\.py migrate"):
        await require_head(engine)
    await migrate(engine)
    await require_head(engine)
    await engine.dispose()


async def test_migrating_again_changes_nothing(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)
    await migrate(engine)
    await migrate(engine)
    async with engine.connect() as connection:
        assert await connection.run_sync(current_revision) == head_revision()
    await engine.dispose()


async def test_four_processes_that_migrate_at_once_all_succeed(empty_database_url: str) -> None:
    runners = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "worker.py"),
            "migrate",
            "--database-url",
            empty_database_url,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(4)
    ]
    results = [(await runner.communicate())[1] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0, 0, 0], results
    engine = make_engine(empty_database_url)
    await require_head(engine)
    await engine.dispose()
