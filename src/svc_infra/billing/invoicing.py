"""Making the invoices of periods: once per identity, a batch in a handful of statements.

An invoice is identified by tenant, cycle, currency and period. Everything happens under the tenants' lock:
whoever waited for it finds the invoice of the one before and returns that. The constraints of the table are
the second wall.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from svc_infra.billing import invoice_statements as statements
from svc_infra.billing.cycles import parse_cycle
from svc_infra.billing.first_use import ready
from svc_infra.billing.invoice_bounds import NO_BOUND, RunBound, park_runaways
from svc_infra.billing.invoice_draft import (
    PERIOD_KIND,
    Draft,
    Identity,
    InvoiceRequest,
    draft_of,
    execute,
    period_text,
    request_rows,
)
from svc_infra.billing.invoice_late import settle_late_usage
from svc_infra.billing.invoice_models import Invoice
from svc_infra.billing.invoice_rating import plan, rate_drafts
from svc_infra.billing.invoice_writing import delete_drafts, write
from svc_infra.billing.periods import Period, overlap
from svc_infra.billing.tenant_lock import LockedTenant, lock_tenants
from svc_infra.exceptions import NotFound, PeriodOverlap, SvcInfraError, TenantParked

__all__ = ["InvoiceRequest", "InvoiceResult", "finalize_invoices", "generate_invoices"]


@dataclass(frozen=True, slots=True)
class InvoiceResult:
    """The invoice of a request, made now (``is_new``) or before, or the error that refused it.

    ``is_issued`` says that this call gave it its number: what is mirrored elsewhere is mirrored then.
    """

    invoice_id: str | None
    is_new: bool
    error: SvcInfraError | None = None
    is_issued: bool = False


def generate_invoices(
    session: Session, requests: Sequence[InvoiceRequest], *, now: datetime, bound: RunBound = NO_BOUND
) -> list[InvoiceResult]:
    """Make the invoices of these periods, or find those that exist; results in the same order.

    An invoice is issued at once, unless its tenant's grace after the end of the period is not over: then it
    is a draft, which ``finalize_invoices`` makes anew and issues. Pending lines (late usage of earlier
    periods, credits) go with an invoice that is issued. Usage recorded before is counted even if no daily
    aggregation ran. Without a price the invoice has no lines and a total of 0.

    One refused request does not touch the others; its error is in its result: InvalidPeriod,
    InvalidCurrency, PeriodOverlap, AmbiguousPrice, AmountTooLarge, or TenantParked if the tenant is parked or
    would exceed ``bound`` and is parked now. Does not commit. A good batch has 500 to 1,000 requests.
    """
    if not requests:
        return []
    ready(session)
    session.flush()  # what the caller has added and not written yet counts, too
    tenants = lock_tenants(session, (request.tenant_id for request in requests), now=now)
    drafts: dict[Identity, Draft] = {}
    outcomes = [draft_of(request, tenants[request.tenant_id], drafts) for request in requests]
    _find_invoices(session, list(drafts.values()))
    _refuse_parked(drafts.values())
    _make(session, [draft for draft in drafts.values() if draft.is_due], tenants, now, bound)
    return _results(outcomes)


def finalize_invoices(
    session: Session,
    invoices: Iterable[tuple[str, str]],
    *,
    now: datetime,
    is_early: bool = False,
    bound: RunBound = NO_BOUND,
) -> list[InvoiceResult]:
    """Make these drafts (tenant id, invoice id) anew and issue them; results in the same order.

    A draft whose grace is not over is left alone, unless ``is_early``; one that was issued before is found
    and not touched. Errors are those of ``generate_invoices``, and NotFound. Does not commit.
    """
    wanted = list(invoices)
    ready(session)
    session.flush()
    tenants = lock_tenants(session, (tenant_id for tenant_id, _ in wanted), now=now)
    stored = _stored(session, wanted)
    drafts: dict[tuple[str, str], Draft] = {}
    for key in wanted:
        row = stored.get(key)
        if row is not None and row.status == "draft":
            draft = _draft_in(row, tenants[row.tenant_id])
            if is_early or draft.finalize_after <= now:
                drafts[key] = draft
    _refuse_parked(drafts.values())
    due = [draft for draft in drafts.values() if draft.error is None]
    kept = {id(draft): draft.invoice_id for draft in due}
    _rate(session, due, tenants, now, bound)
    ready_to_write = [draft for draft in due if draft.error is None]
    if ready_to_write:
        delete_drafts(session, ready_to_write)
    for draft in ready_to_write:
        draft.is_issued, draft.is_new = True, True
    write(session, ready_to_write, now)
    return [_finalized(key, drafts.get(key), stored.get(key), kept) for key in wanted]


def _finalized(
    key: tuple[str, str], draft: Draft | None, row: Invoice | None, kept: dict[int, str | None]
) -> InvoiceResult:
    if draft is not None:
        invoice_id = kept.get(id(draft), draft.invoice_id)
        return InvoiceResult(invoice_id, draft.is_new, draft.error, draft.is_issued)
    if row is None:
        return InvoiceResult(None, False, NotFound(f"tenant {key[0]!r} has no invoice {key[1]!r}"))
    return InvoiceResult(key[1], False)


def _make(
    session: Session,
    drafts: Sequence[Draft],
    tenants: dict[str, LockedTenant],
    now: datetime,
    bound: RunBound,
) -> None:
    _rate(session, drafts, tenants, now, bound)
    for draft in drafts:
        draft.is_issued = draft.finalize_after <= now or not draft.tenant.grace_seconds
    write(session, [draft for draft in drafts if draft.error is None], now)


def _rate(
    session: Session,
    drafts: Sequence[Draft],
    tenants: dict[str, LockedTenant],
    now: datetime,
    bound: RunBound,
) -> None:
    """Bring usage up to date, settle what came late for earlier invoices, and rate the drafts."""
    if not drafts:
        return
    concerned = {draft.tenant_id: tenants[draft.tenant_id] for draft in drafts}
    failed = settle_late_usage(session, concerned, max(draft.period.end for draft in drafts), now=now)
    plan(session, drafts)
    for draft in drafts:
        draft.error = draft.error or failed.get(draft.tenant_id)
    rate_drafts(session, [draft for draft in drafts if draft.error is None])
    park_runaways(session, [draft for draft in drafts if draft.error is None], bound, now=now)


def _results(outcomes: Iterable[Draft | SvcInfraError]) -> list[InvoiceResult]:
    results = []
    for outcome in outcomes:
        if isinstance(outcome, Draft):
            is_issued = outcome.is_new and outcome.is_issued
            results.append(InvoiceResult(outcome.invoice_id, outcome.is_new, outcome.error, is_issued))
            outcome.is_new = False  # a second request for the same period finds what the first has made
        else:
            results.append(InvoiceResult(None, False, outcome))
    return results


def _find_invoices(session: Session, drafts: list[Draft]) -> None:
    """Give each draft the invoice of its identity, or refuse it if another period is in its way."""
    taken: dict[tuple[str, str, str], list[Period]] = defaultdict(list)
    rows = execute(session, statements.overlapping_invoices, statements.REQUESTS, request_rows(drafts))
    for position, invoice_id, start, end in rows:
        draft, period = drafts[position], Period(start, end)
        if period == draft.period:
            draft.invoice_id = invoice_id
        taken[draft.tenant_id, draft.cycle.name, draft.currency].append(period)
    for draft in drafts:
        if draft.invoice_id is not None:
            continue
        others = taken[draft.tenant_id, draft.cycle.name, draft.currency]
        in_the_way = next((other for other in others if overlap(draft.period, other)), None)
        if in_the_way is None:
            others.append(draft.period)
        else:
            draft.error = PeriodOverlap(
                f"tenant {draft.tenant_id!r} is invoiced in {draft.currency} for {period_text(in_the_way)}; "
                f"{period_text(draft.period)} overlaps it, so ask for that period or one beside it"
            )


def _refuse_parked(drafts: Iterable[Draft]) -> None:
    for draft in drafts:
        parked_at = draft.tenant.parked_at
        is_found = draft.invoice_id is not None and draft.created_at is None
        if parked_at is not None and draft.error is None and not is_found:
            draft.error = TenantParked(
                f"tenant {draft.tenant_id!r} is parked since {parked_at.isoformat()}; 'worker.py invoices "
                "parked' says why, and 'worker.py invoices unpark' lets it go on"
            )


def _stored(session: Session, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Invoice]:
    key = tuple_(Invoice.tenant_id, Invoice.id)
    rows = select(Invoice).where(key.in_(sorted(set(wanted)))).execution_options(populate_existing=True)
    return {(row.tenant_id, row.id): row for row in session.scalars(rows)}


def _draft_in(row: Invoice, tenant: LockedTenant) -> Draft:
    return Draft(
        row.tenant_id,
        row.currency,
        parse_cycle(row.cycle),
        Period(row.period_start, row.period_end),
        tenant,
        kind=row.kind or PERIOD_KIND,
        invoice_id=row.id,
        created_at=row.created_at,
    )
