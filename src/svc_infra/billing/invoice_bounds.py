"""The safety bound: a tenant that would get too many invoices or lines in a day is parked, not billed.

Whatever goes wrong (a catalog that makes a line for every value of a key, a job that repeats itself), a
customer gets no flood of invoices. A parked tenant is seen in the list of the parked and goes on when
somebody unparks it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from svc_infra.billing import invoice_statements as statements
from svc_infra.billing.first_use import ready
from svc_infra.billing.invoice_draft import Draft, execute
from svc_infra.billing.models import Tenant
from svc_infra.exceptions import NotFound, TenantParked


@dataclass(frozen=True, slots=True)
class RunBound:
    """How many invoices and invoice lines a tenant may get in one UTC day; None for no bound."""

    invoices: int | None = None
    lines: int | None = None


NO_BOUND = RunBound()


def park_runaways(session: Session, drafts: Sequence[Draft], bound: RunBound, *, now: datetime) -> None:
    """Park every tenant whose drafts would exceed the bound, and refuse these drafts with TenantParked."""
    if not drafts or (bound.invoices is None and bound.lines is None):
        return
    by_tenant: dict[str, list[Draft]] = defaultdict(list)
    for draft in drafts:
        by_tenant[draft.tenant_id].append(draft)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    made = {tenant_id: [0, 0] for tenant_id in by_tenant}
    rows = [(tenant_id,) for tenant_id in sorted(by_tenant)]
    for tenant_id, _, lines in execute(session, statements.made_since, statements.BOUNDED, rows, since=today):
        made[tenant_id][0] += 1
        made[tenant_id][1] += lines
    for tenant_id, own in by_tenant.items():
        invoices = made[tenant_id][0] + sum(draft.created_at is None for draft in own)
        lines = made[tenant_id][1] + sum(len(draft.lines) for draft in own)
        reason = _excess(invoices, lines, bound)
        if reason is not None:
            _park(session, tenant_id, reason, now)
            for draft in own:
                draft.error = TenantParked(f"tenant {tenant_id!r} is parked: {reason}")


def parked_tenants(session: Session) -> list[Tenant]:
    """Every parked tenant, with since when and why."""
    ready(session)
    return list(
        session.scalars(select(Tenant).where(Tenant.parked_at.is_not(None)).order_by(Tenant.tenant_id))
    )


def unpark(session: Session, tenant_id: str) -> None:
    """Let a parked tenant be invoiced again; NotFound if it is not parked.

    Raise the bound first if what it stopped is right, or the next run parks the tenant again.
    """
    ready(session)
    tenant = session.get(Tenant, tenant_id, with_for_update=True, populate_existing=True)
    if tenant is None or tenant.parked_at is None:
        raise NotFound(f"tenant {tenant_id!r} is not parked")
    tenant.parked_at, tenant.parked_reason = None, None
    session.flush()


def _excess(invoices: int, lines: int, bound: RunBound) -> str | None:
    if bound.invoices is not None and invoices > bound.invoices:
        return f"it would get {invoices:,} invoices in a day, the bound is {bound.invoices:,}"
    if bound.lines is not None and lines > bound.lines:
        return f"it would get {lines:,} invoice lines in a day, the bound is {bound.lines:,}"
    return None


def _park(session: Session, tenant_id: str, reason: str, now: datetime) -> None:
    parked = update(Tenant).where(Tenant.tenant_id == tenant_id).values(parked_at=now, parked_reason=reason)
    session.execute(parked.execution_options(synchronize_session=False))
