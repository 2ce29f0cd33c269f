"""Refusing late usage of tenants that want it refused, before it is recorded.

``reject`` refuses usage of a period that has an invoice, even a draft; ``grace`` that of a period whose
invoice is issued; ``carry_forward`` none. What is refused is kept with its reason. An event that was recorded
in time may be repeated at any time. What slips through while a period closes is accepted, and whatever is
accepted is billed: it is carried forward like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache

from sqlalchemy import Select, and_, or_, select, tuple_
from sqlalchemy.orm import Session

from svc_infra.billing.columns import TenantText
from svc_infra.billing.invoice_draft import PERIOD_KIND
from svc_infra.billing.invoice_models import Invoice
from svc_infra.billing.models import Tenant
from svc_infra.billing.usage_event import NewUsage
from svc_infra.billing.usage_models import RECORDED
from svc_infra.db.rowset import Rowset

# Usage that is recorded as it happens costs no look-up: its period cannot have been invoiced for long.
_LIVE = timedelta(minutes=15)
_TENANTS = Rowset("late_tenants", tenant_id=TenantText)


def late_refusals(session: Session, events: Sequence[NewUsage], now: datetime) -> dict[int, str]:
    """Why events are refused as late, by their place; {} where no tenant of them refuses late usage."""
    old = {at: event for at, event in enumerate(events) if event.at < now - _LIVE}
    if not old:
        return {}
    dialect = session.get_bind().dialect.name
    tenant_ids = sorted({event.tenant_id for event in old.values()})
    parameters = _TENANTS.parameters(dialect, [(tenant_id,) for tenant_id in tenant_ids])
    closed: dict[str, list[tuple[datetime, datetime]]] = {}
    for row in session.connection().execute(_closed(dialect), parameters):
        tenant_id, start, end = row
        closed.setdefault(tenant_id, []).append((start, end))
    late = {
        at: f"its period was invoiced until {end.isoformat()}, and the tenant refuses late usage"
        for at, event in old.items()
        for start, end in closed.get(event.tenant_id, ())
        if start <= event.at < end
    }
    known = _recorded(session, [old[at] for at in late])
    return {at: reason for at, reason in late.items() if _key(old[at]) not in known}


def _key(event: NewUsage) -> tuple[str, str, str]:
    return (event.tenant_id, event.metric, event.idempotency_key)


def _recorded(session: Session, events: Sequence[NewUsage]) -> set[tuple[str, str, str]]:
    """The keys of these events that are recorded already."""
    if not events:
        return set()
    found: set[tuple[str, str, str]] = set()
    for table in RECORDED:
        key = (table.tenant_id, table.metric, table.idempotency_key)
        rows = session.execute(select(*key).where(tuple_(*key).in_([_key(event) for event in events])))
        found.update((tenant_id, metric, text) for tenant_id, metric, text in rows)
    return found


@cache
def _closed(dialect: str) -> Select[str, datetime, datetime]:
    """(tenant, start, end) of the periods that are closed to the usage of tenants that refuse it."""
    asked = _TENANTS.table(dialect)
    is_closed = or_(
        and_(Tenant.late_policy == "reject", Invoice.status != "void"),
        and_(Tenant.late_policy == "grace", Invoice.status.not_in(["draft", "void"])),
    )
    return (
        select(Invoice.tenant_id, Invoice.period_start, Invoice.period_end)
        .join(Tenant, Tenant.tenant_id == Invoice.tenant_id)
        .join(asked, asked.c.tenant_id == Tenant.tenant_id)
        .where(Tenant.late_policy != "carry_forward", Invoice.kind == PERIOD_KIND, is_closed)
    )
