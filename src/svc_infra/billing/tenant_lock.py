"""The lock under which a tenant's subscriptions and invoices are written, one transaction at a time.

It is the tenant's settings row. Rows and not advisory locks: a batch takes a thousand, and a server has room
for a few thousand advisory locks in all. A tenant without settings gets a row with the defaults.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import cache
from typing import Any

from sqlalchemy import Executable, bindparam, literal, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session

from svc_infra.billing.models import Tenant, TenantText
from svc_infra.billing.periods import zone
from svc_infra.db.base import Base, UtcDateTime
from svc_infra.db.rowset import Rowset

_TENANTS = Rowset("locked", tenant_id=TenantText)
_tenants = Base.metadata.tables[Tenant.__tablename__]


@dataclass(frozen=True, slots=True)
class LockedTenant:
    """What billing needs to know of a tenant; ``parked_at`` says since when it is not invoiced."""

    zone: tzinfo
    number_series: str
    late_policy: str
    grace_seconds: int
    due_days: int
    parked_at: datetime | None


def lock_tenants(session: Session, tenant_ids: Iterable[str], *, now: datetime) -> dict[str, LockedTenant]:
    """Hold these tenants until the end of the transaction and return their settings.

    What others committed under the lock is visible to every later statement (read committed; on SQLite
    because there is one writer). Locks are taken in the order of the ids, so that two batches never wait for
    each other in a circle.
    """
    dialect = session.get_bind().dialect.name
    parameters = _TENANTS.parameters(dialect, [(tenant_id,) for tenant_id in sorted(set(tenant_ids))])
    # First the missing rows, also because it is the write that makes SQLite take its lock before it reads.
    session.execute(_insert_missing(dialect), {**parameters, "created_at": now})
    rows = session.execute(_lock(dialect), parameters)
    return {tenant_id: LockedTenant(zone(name), *more) for tenant_id, name, *more in rows}


@cache
def _insert_missing(dialect: str) -> Executable:
    wanted = _TENANTS.table(dialect)
    missing = (
        select(
            wanted.c.tenant_id,
            literal("UTC"),
            literal("carry_forward"),
            literal(0),
            literal("INV"),
            literal(0),
            bindparam("created_at", type_=UtcDateTime),
        )
        # Without a WHERE, SQLite would read the ON of ON CONFLICT as a join condition.
        .where(wanted.c.tenant_id.is_not(None))
        .order_by(wanted.c.tenant_id)
    )
    columns = ["tenant_id", "timezone", "late_policy", "grace_seconds", "number_series"]
    columns += ["due_days", "created_at"]
    insert: Any = postgresql_insert if dialect == "postgresql" else sqlite_insert
    statement: Executable = insert(_tenants).from_select(columns, missing).on_conflict_do_nothing()
    return statement


@cache
def _lock(dialect: str) -> Executable:
    wanted = _TENANTS.table(dialect)
    return (
        select(
            _tenants.c.tenant_id,
            _tenants.c.timezone,
            _tenants.c.number_series,
            _tenants.c.late_policy,
            _tenants.c.grace_seconds,
            _tenants.c.due_days,
            _tenants.c.parked_at,
        )
        .join(wanted, wanted.c.tenant_id == _tenants.c.tenant_id)
        .order_by(_tenants.c.tenant_id)
        .with_for_update(of=_tenants)
    )
