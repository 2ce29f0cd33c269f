"""Closing adjustments: what waits for a tenant that gets no next invoice is billed with one of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import date, datetime

from sqlalchemy import ColumnElement, exists, or_, select, tuple_
from sqlalchemy.orm import Session

from svc_infra.billing.cycles import parse_cycle
from svc_infra.billing.first_use import ready
from svc_infra.billing.invoice_draft import ADJUSTMENT_KIND, Draft
from svc_infra.billing.invoice_late import settle_late_usage
from svc_infra.billing.invoice_models import Invoice, PendingLine, UsageChange
from svc_infra.billing.invoice_writing import write
from svc_infra.billing.models import Price, Subscription
from svc_infra.billing.periods import day_bounds
from svc_infra.billing.tenant_lock import LockedTenant, lock_tenants


def tenants_without_next_invoice(session: Session, *, now: datetime, limit: int = 1_000) -> list[str]:
    """Tenants for whom late usage or a charge may wait, and whose subscriptions have all ended.

    Where prices without a plan bill every tenant, one with usage in the present month gets an invoice, too.
    """
    month = now.date().replace(day=1)
    changed = select(UsageChange.tenant_id).where(UsageChange.month < month)
    waiting = select(PendingLine.tenant_id).where(PendingLine.amount > 0)
    some = changed.union(waiting).subquery()
    is_subscribed = exists().where(
        Subscription.tenant_id == some.c.tenant_id,
        or_(Subscription.ended_at.is_(None), Subscription.ended_at > now),
    )
    found = select(some.c.tenant_id).where(~is_subscribed)
    if session.scalar(select(exists().where(Price.plan_id.is_(None)))):
        found = found.where(~_has_usage(some.c.tenant_id, month))
    return list(session.scalars(found.order_by(some.c.tenant_id).limit(limit)))


def generate_closing_invoices(session: Session, tenant_ids: Iterable[str], *, now: datetime) -> list[Invoice]:
    """Settle the late usage of these tenants and bill what waits for each; return the invoices made.

    One invoice for a cycle and currency, dated on the tenant's present day. A balance of zero or less goes on
    waiting: there is nothing to pay. Parked tenants are left alone. Does not commit.
    """
    ready(session)
    session.flush()
    locked = lock_tenants(session, tenant_ids, now=now)
    tenants = {key: tenant for key, tenant in locked.items() if tenant.parked_at is None}
    if not tenants:
        return []
    failed = settle_late_usage(session, tenants, now, now=now)
    drafts = _drafts(session, {key: tenant for key, tenant in tenants.items() if key not in failed}, now)
    write(session, drafts, now)
    keys = [(draft.tenant_id, draft.invoice_id) for draft in drafts if draft.error is None]
    made = select(Invoice).where(tuple_(Invoice.tenant_id, Invoice.id).in_(keys))
    return list(session.scalars(made.order_by(Invoice.id)))


def _drafts(session: Session, tenants: dict[str, LockedTenant], now: datetime) -> list[Draft]:
    balances: dict[tuple[str, str, str], int] = defaultdict(int)
    waiting = select(PendingLine).where(PendingLine.tenant_id.in_(sorted(tenants)))
    for line in session.scalars(waiting.order_by(PendingLine.id)):
        balances[line.tenant_id, line.cycle, line.currency] += line.amount
    drafts = []
    for (tenant_id, cycle, currency), balance in balances.items():
        tenant = tenants[tenant_id]
        draft = Draft(
            tenant_id,
            currency,
            parse_cycle(cycle),
            day_bounds(now, tenant.zone),
            tenant,
            kind=ADJUSTMENT_KIND,
            is_issued=True,
        )
        if balance > 0 and not _has_one(session, draft):
            drafts.append(draft)
    return drafts


def _has_one(session: Session, draft: Draft) -> bool:
    """Whether a closing invoice of this very day exists; what came since waits for tomorrow."""
    same = select(Invoice.id).where(
        Invoice.tenant_id == draft.tenant_id,
        Invoice.cycle == draft.cycle.name,
        Invoice.currency == draft.currency,
        Invoice.kind == ADJUSTMENT_KIND,
        Invoice.period_start == draft.period.start,
        Invoice.status != "void",
    )
    return session.scalar(same) is not None


def _has_usage(tenant_id: ColumnElement[str], month: date) -> ColumnElement[bool]:
    return exists().where(UsageChange.tenant_id == tenant_id, UsageChange.month >= month)
