"""Moving a database: every row of ours from a SQLite file to PostgreSQL, all or nothing."""

from __future__ import annotations

from sqlalchemy import Connection, Table, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from svc_infra.db.migration import require_head
from svc_infra.db.schema import metadata
from svc_infra.exceptions import InvalidSettings

_ROWS_AT_ONCE = 1_000


async def copy_database(source: AsyncEngine, target: AsyncEngine) -> dict[str, int]:
    """Copy all tables from a SQLite file to an empty PostgreSQL database; return the rows of each.

    Both must have the schema of this version. Reading holds the file's write lock, so nobody changes what is
    being copied. The target gets everything in one transaction, and its rows are counted before it commits.

    Raises:
        InvalidSettings: the source is no SQLite file, or the target is no PostgreSQL or has rows of ours.
        SchemaMissing: one of them has another version's schema, or none.
    """
    if (source.dialect.name, target.dialect.name) != ("sqlite", "postgresql"):
        raise InvalidSettings(
            "a database is copied from a SQLite file to PostgreSQL: "
            "worker.py copy --database-url sqlite:///svc_infra.db postgresql://…"
        )
    for engine in (source, target):
        await require_head(engine)
    async with source.connect() as reading, target.begin() as writing:
        tables = metadata().sorted_tables
        await writing.run_sync(_require_empty, tables)
        await writing.run_sync(_switch_triggers, tables, "DISABLE")
        copied = {table.name: await _copy(reading, writing, table) for table in tables}
        await writing.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))  # a line may stand before its invoice
        await writing.run_sync(_switch_triggers, tables, "ENABLE")
    return copied


async def _copy(reading: AsyncConnection, writing: AsyncConnection, table: Table) -> int:
    rows = await reading.stream(select(table))
    read = 0
    async for some in rows.mappings().partitions(_ROWS_AT_ONCE):
        await writing.execute(insert(table), [dict(row) for row in some])
        read += len(some)
    written = (await writing.execute(select(func.count()).select_from(table))).scalar_one()
    assert written == read, f"{table.name}: {read} rows were read and {written} written"
    return read


def _require_empty(connection: Connection, tables: list[Table]) -> None:
    for table in tables:
        if connection.execute(select(table).limit(1)).first() is not None:
            raise InvalidSettings(
                f"the target has rows in {table.name}; copy into a database that was just migrated"
            )


def _switch_triggers(connection: Connection, tables: list[Table], switch: str) -> None:
    """What guards issued invoices would refuse them in the order of tables; foreign keys and keys stay."""
    for table in tables:
        connection.execute(text(f'ALTER TABLE "{table.name}" {switch} TRIGGER USER'))
