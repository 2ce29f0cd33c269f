"""Row-level security on PostgreSQL: a second wall behind the queries, for what is done for one tenant.

The wall is a role that sees the rows of the tenant that is named in its transaction, and none without one.
Whoever owns the tables logs in as before; a transaction that acts for a tenant steps down to the role first
(``act_for``), and the next one is the owner's again. It keeps a query that forgot its tenant from finding
another's rows. It does not keep out SQL that a stranger could choose: that could step up again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Table, event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra.db.schema import metadata
from svc_infra.exceptions import InvalidSettings

_SETTING = "svc_infra.tenant_id"
_POLICY = "svc_infra_tenant"
_ROLE = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# NULL, which no tenant is, also after an earlier transaction of the connection has left the empty text.
_TENANT = f"NULLIF(current_setting('{_SETTING}', true), '')"
_OF_TENANT = f"tenant_id = {_TENANT}"
_EVERYTHING = "SELECT, INSERT, UPDATE, DELETE"

# What has no tenant of its own: the rows that belong to a row which can be seen.
_BY_PARENT = {
    "webhook_replays": "EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.id = endpoint_id)",
    "webhook_delivery_attempts": "EXISTS (SELECT FROM webhook_deliveries AS d WHERE d.id = delivery_id)",
    # Beside its tenant's message, for that goes to the operator's endpoints, too.
    "webhook_deliveries": (
        f"{_OF_TENANT} AND EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.id = endpoint_id)"
    ),
}
# Foreign keys look past policies: what names another row by its id alone must see that row to be written.
_WRITTEN_IF = {
    "webhook_deliveries": " AND EXISTS (SELECT FROM outbox_messages AS m WHERE m.id = message_id)",
}
# What all tenants share, and what may be done there. An idempotent answer is found by a digest of its caller.
_SHARED = {
    "plans": "SELECT",
    "plan_entitlements": "SELECT",
    "prices": "SELECT",
    "usage_meters": "SELECT",
    "idempotent_answers": "SELECT, INSERT",
    "installation_secrets": "SELECT, INSERT",
    "admin_acts": "INSERT",
    "svc_infra_alembic_version": "SELECT",
}
_APPEND_ONLY = {"webhook_audit": "SELECT, INSERT"}
_NOT_FOR_TENANTS = {"api_keys"}


def check_role(role: str) -> str:
    """Return ``role`` if it can be the name of one.

    Raises:
        InvalidSettings: it cannot.
    """
    if not _ROLE.fullmatch(role):
        raise InvalidSettings("database.tenant_role is 1 to 63 lower-case letters, digits and underscores")
    return role


def isolate(connection: Connection, role: str) -> None:
    """Make the role and its policies for every table of a tenant, in the connection's transaction.

    Safe to repeat; ``migrate`` does so where ``database.tenant_role`` is set.

    Raises:
        InvalidSettings: the database is not PostgreSQL, or the role would not be held back by policies.
    """
    check_role(role)
    if connection.dialect.name != "postgresql":
        raise InvalidSettings("database.tenant_role needs PostgreSQL; SQLite has no row-level security")
    if not connection.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}).all():
        connection.exec_driver_sql(f'CREATE ROLE "{role}" NOLOGIN')
    connection.exec_driver_sql(f'GRANT "{role}" TO CURRENT_USER')
    _let_into_schema(connection, role)
    for table in metadata().sorted_tables:
        connection.exec_driver_sql(f'REVOKE ALL ON {table.name} FROM "{role}"')
        if (condition := condition_of(table)) is not None:
            _wall(connection, table.name, condition, role)
    for name, privileges in _SHARED.items():
        if _exists(connection, name):
            connection.exec_driver_sql(f'GRANT {privileges} ON {name} TO "{role}"')
    require_isolation(connection, role)


def condition_of(table: Table) -> str | None:
    """Return what a row of ``table`` must meet to be a tenant's; None if tenants have no rows there."""
    if table.name in _BY_PARENT:
        return _BY_PARENT[table.name]
    return _OF_TENANT if "tenant_id" in table.c and table.name not in _NOT_FOR_TENANTS else None


def require_isolation(connection: Connection, role: str) -> None:
    """Check that the role is held back: it exists, is no superuser, owns nothing, and every policy is there.

    Raises:
        InvalidSettings: it is not; the message names the command that mends it.
    """
    found = connection.execute(
        text(
            "SELECT rolsuper OR rolbypassrls AS is_above, "
            "EXISTS (SELECT FROM pg_class WHERE relowner = r.oid) AS is_owner "
            "FROM pg_roles AS r WHERE rolname = :role"
        ),
        {"role": check_role(role)},
    ).one_or_none()
    if found is None:
        raise InvalidSettings(f"there is no role {role!r} (database.tenant_role): run 'worker.py migrate'")
    if found.is_above or found.is_owner:
        raise InvalidSettings(
            f"policies do not hold the role {role!r} back: it is a superuser, bypasses them or owns tables; "
            "name another as database.tenant_role"
        )
    walled = set(
        connection.execute(
            text(
                "SELECT c.relname FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid "
                "WHERE p.polname = :policy AND c.relrowsecurity"
            ),
            {"policy": _POLICY},
        ).scalars()
    )
    expected = {table.name for table in metadata().sorted_tables if condition_of(table) is not None}
    if missing := sorted(expected - walled):
        raise InvalidSettings(f"these tables have no policy: {', '.join(missing)}; run 'worker.py migrate'")


def act_for(session: AsyncSession, tenant_id: str, role: str) -> None:
    """Let every transaction of this session be that of ``role``, for one tenant and no other.

    Raises:
        InvalidSettings: no tenant is named.
    """
    if not tenant_id:
        raise InvalidSettings("a transaction that acts for a tenant has to name one")
    parameters = {"role": check_role(role), "tenant": tenant_id}

    @event.listens_for(session.sync_session, "after_begin")
    def _step_down(_session: Session, _transaction: Any, connection: Connection) -> None:
        # Local to the transaction, or the next one of the pooled connection would inherit it.
        connection.execute(_STEP_DOWN, parameters)


@contextmanager
def as_owner(session: Session) -> Iterator[None]:
    """Step up within a tenant's transaction, to try something that no tenant may do and that is not kept."""
    connection = session.connection()
    is_held = connection.dialect.name == "postgresql"
    role = connection.execute(_ROLE_NOW).scalar_one() if is_held else None
    if is_held:
        connection.execute(_SET_ROLE, {"role": "none"})
    yield
    # Not after an error: what is rolled back then brings the role back, and until then nothing can be run.
    if is_held:
        connection.execute(_SET_ROLE, {"role": role})


_ROLE_NOW = text("SELECT current_setting('role')")
_SET_ROLE = text("SELECT set_config('role', :role, true)")
_STEP_DOWN = text(f"SELECT set_config('{_SETTING}', :tenant, true), set_config('role', :role, true)")


def _let_into_schema(connection: Connection, role: str) -> None:
    """Grant the use of our schema where it is not everybody's, for only its owner can."""
    has_usage = "SELECT has_schema_privilege(:role, current_schema(), 'USAGE')"
    if not connection.execute(text(has_usage), {"role": role}).scalar_one():
        schema = str(connection.exec_driver_sql("SELECT current_schema()").scalar_one())
        quoted = connection.dialect.identifier_preparer.quote(schema)
        connection.exec_driver_sql(f'GRANT USAGE ON SCHEMA {quoted} TO "{role}"')


def _wall(connection: Connection, table: str, condition: str, role: str) -> None:
    connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    connection.exec_driver_sql(f"DROP POLICY IF EXISTS {_POLICY} ON {table}")
    written = condition + _WRITTEN_IF.get(table, "")
    connection.exec_driver_sql(
        f'CREATE POLICY {_POLICY} ON {table} FOR ALL TO "{role}" USING ({condition}) WITH CHECK ({written})'
    )
    connection.exec_driver_sql(f'GRANT {_APPEND_ONLY.get(table, _EVERYTHING)} ON {table} TO "{role}"')


def _exists(connection: Connection, table: str) -> bool:
    return connection.execute(text("SELECT to_regclass(:name)"), {"name": table}).scalar() is not None
