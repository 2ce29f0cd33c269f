"""Alembic's entry: runs the scripts on the connection, and in the transaction, that the caller gives."""

from __future__ import annotations

from alembic import context

from svc_infra.db.migration import VERSION_TABLE
from svc_infra.db.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata(),
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
