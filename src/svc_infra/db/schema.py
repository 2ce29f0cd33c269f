"""Making and checking the schema.

Production databases are made by the migrations (``worker.py migrate``). ``create_schema`` makes the same
tables from the models, for tests and for in-memory databases, which no migration tool could reach.
"""

from __future__ import annotations

from importlib import import_module

from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.db.base import Base
from svc_infra.exceptions import SchemaMissing

MODEL_MODULES = (
    "svc_infra.db.outbox",
    "svc_infra.jobs.models",
    "svc_infra.webhooks.models",
    "svc_infra.billing.models",
    "svc_infra.billing.quota_models",
    "svc_infra.billing.provider_models",
    "svc_infra.api.models",
)


def metadata() -> MetaData:
    """Return the metadata with the tables of every package loaded into it."""
    # By name, because this layer may not know the ones above it; whoever has tables is listed here.
    for module in MODEL_MODULES:
        import_module(module)
    return Base.metadata


def create_tables(connection: Connection) -> None:
    """Create all tables that do not exist yet, in the connection's transaction."""
    if connection.dialect.name == "postgresql":
        # For the constraint that refuses overlapping invoice periods; a trusted extension since version 13.
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS btree_gist"))
    metadata().create_all(connection)


async def create_schema(engine: AsyncEngine) -> None:
    """Create all tables that do not exist yet."""
    async with engine.begin() as connection:
        await connection.run_sync(create_tables)


def require_schema(connection: Connection) -> None:
    """Make the tables of an in-memory SQLite database on first use; elsewhere they must be there.

    Raises:
        SchemaMissing: the database has no tables of ours; the message names the command that makes them.
    """
    if inspect(connection).has_table("usage_events"):
        return
    if connection.dialect.name == "sqlite" and connection.engine.url.database in (None, "", ":memory:"):
        create_tables(connection)
        return
    raise SchemaMissing("the database has no svc_infra tables; run 'worker.py migrate' once")
