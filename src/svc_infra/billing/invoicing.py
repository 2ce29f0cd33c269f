"""Making the invoices of periods: once per identity, a batch in a handful of statements.

An invoice is identified by tenant, cycle, currency and period. Everything happens under the tenants' lock:
whoever waited for it finds the invoice of the one before and returns that. The constraints of the table are
the second wall. Numbers are taken after everything that can be refused, so a series has no gaps.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from svc_infra.billing import aggregation
from svc_infra.billing import invoice_statements as statements
from svc_infra.billing.catalog_prices import price_terms
from svc_infra.billing.first_use import ready
from svc_infra.billing.invoice_lines import (
    ActiveSubscription,
    Line,
    LinePlan,
    PlanPrice,
    PriceList,
    plan_lines,
    rate_lines,
    total_of,
)
from svc_infra.billing.models import Price
from svc_infra.billing.money import normalize_currency
from svc_infra.billing.periods import Period, day_bounds, is_local_midnight, overlap
from svc_infra.billing.tenant_lock import LockedTenant, lock_tenants
from svc_infra.canonical import compact_json
from svc_infra.db.base import new_id
from svc_infra.exceptions import AmbiguousPrice, AmountTooLarge, InvalidPeriod, PeriodOverlap, SvcInfraError


@dataclass(frozen=True, slots=True)
class InvoiceRequest:
    """A period to be invoiced in a currency: half-open, both bounds midnights of the tenant's zone."""

    tenant_id: str
    period_start: datetime
    period_end: datetime
    currency: str


@dataclass(frozen=True, slots=True)
class InvoiceResult:
    """The invoice of a request, made now (``is_new``) or before, or the error that refused it."""

    invoice_id: str | None
    is_new: bool
    error: SvcInfraError | None = None


@dataclass(slots=True)
class _Draft:
    """One identity on its way to an invoice, or to the error that refuses it."""

    tenant_id: str
    currency: str
    period: Period
    zone: tzinfo
    series: str
    due_days: int = 0
    invoice_id: str | None = None
    is_new: bool = False
    error: SvcInfraError | None = None
    plans: list[LinePlan] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    total: int = 0

    @property
    def is_due(self) -> bool:
        return self.invoice_id is None and self.error is None


def generate_invoices(
    session: Session, requests: Sequence[InvoiceRequest], *, now: datetime
) -> list[InvoiceResult]:
    """Make the finalized invoices of these periods, or find those that exist; results in the same order.

    One refused request does not touch the others; its error is in its result: InvalidPeriod,
    InvalidCurrency, PeriodOverlap, AmbiguousPrice or AmountTooLarge. Usage recorded before is counted even if
    no daily aggregation ran. Without a price the invoice has no lines and a total of 0. Does not commit. A
    good batch has 500 to 1,000 requests.
    """
    if not requests:
        return []
    ready(session)
    session.flush()  # what the caller has added and not written yet counts, too
    tenants = lock_tenants(session, (request.tenant_id for request in requests), now=now)
    drafts: dict[tuple[str, str, Period], _Draft] = {}
    outcomes = [_draft(request, tenants[request.tenant_id], drafts) for request in requests]
    _find_invoices(session, list(drafts.values()))
    due = [draft for draft in drafts.values() if draft.is_due]
    if due:
        _count_new_usage(session, due, now)
        _plan(session, due)
        _rate(session, [draft for draft in due if draft.is_due])
        _write(session, [draft for draft in due if draft.is_due], now)
    return _results(outcomes)


def _results(outcomes: Iterable[_Draft | SvcInfraError]) -> list[InvoiceResult]:
    results = []
    for outcome in outcomes:
        if isinstance(outcome, _Draft):
            results.append(InvoiceResult(outcome.invoice_id, outcome.is_new, outcome.error))
            outcome.is_new = False  # a second request for the same period finds what the first has made
        else:
            results.append(InvoiceResult(None, False, outcome))
    return results


def _draft(
    request: InvoiceRequest, tenant: LockedTenant, drafts: dict[tuple[str, str, Period], _Draft]
) -> _Draft | SvcInfraError:
    """The draft of the request's identity, new or of an equal request before; the error of a bad request."""
    try:
        currency = normalize_currency(request.currency)
        period = Period(request.period_start, request.period_end)
        for bound in (period.start, period.end):
            _check_midnight(bound, request.tenant_id, tenant.zone)
    except SvcInfraError as error:
        return error
    identity = (request.tenant_id, currency, period)
    if identity not in drafts:
        drafts[identity] = _Draft(
            request.tenant_id, currency, period, tenant.zone, tenant.number_series, tenant.due_days
        )
    return drafts[identity]


def _check_midnight(instant: datetime, tenant_id: str, zone: tzinfo) -> None:
    if not is_local_midnight(instant, zone):
        day = day_bounds(instant, zone)
        raise InvalidPeriod(
            f"{instant.isoformat()} is not a midnight of tenant {tenant_id!r} ({zone}); "
            f"the nearest are {day.start.isoformat()} and {day.end.isoformat()}"
        )


def _find_invoices(session: Session, drafts: list[_Draft]) -> None:
    """Give each draft the invoice of its identity, or refuse it if another period is in its way."""
    taken: dict[tuple[str, str], list[Period]] = defaultdict(list)
    rows = _execute(session, statements.overlapping_invoices, statements.REQUESTS, _request_rows(drafts))
    for position, invoice_id, start, end in rows:
        draft, period = drafts[position], Period(start, end)
        if period == draft.period:
            draft.invoice_id = invoice_id
        taken[draft.tenant_id, draft.currency].append(period)
    for draft in drafts:
        if draft.invoice_id is not None:
            continue
        others = taken[draft.tenant_id, draft.currency]
        in_the_way = next((other for other in others if overlap(draft.period, other)), None)
        if in_the_way is None:
            others.append(draft.period)
        else:
            draft.error = PeriodOverlap(
                f"tenant {draft.tenant_id!r} is invoiced in {draft.currency} for {_text(in_the_way)}; "
                f"{_text(draft.period)} overlaps it, so ask for that period or one beside it"
            )


def _count_new_usage(session: Session, drafts: list[_Draft], now: datetime) -> None:
    """Bring the day totals of the periods up to date: invoicing trusts no order of cron."""
    tenant_ids = defaultdict(list)
    for draft in drafts:
        tenant_ids[draft.period].append(draft.tenant_id)
    for period in sorted(tenant_ids):
        aggregation.consume_marks_of(session, tenant_ids[period], period, now=now)


def _plan(session: Session, drafts: list[_Draft]) -> None:
    """Find out which prices apply to which part of each period."""
    subscriptions: dict[int, list[ActiveSubscription]] = defaultdict(list)
    plan_ids = set()
    rows = _execute(session, statements.active_subscriptions, statements.REQUESTS, _request_rows(drafts))
    for position, subscription_id, plan_id, effective_at, ended_at in rows:
        period = drafts[position].period
        active = period
        if effective_at > period.start or (ended_at is not None and ended_at < period.end):
            active = Period(
                max(effective_at, period.start), period.end if ended_at is None else min(ended_at, period.end)
            )
        subscriptions[position].append(ActiveSubscription(subscription_id, plan_id, active))
        plan_ids.add(plan_id)
    price_lists = {
        currency: _price_list(session, currency, plan_ids)
        for currency in {draft.currency for draft in drafts}
    }
    for position, draft in enumerate(drafts):
        try:
            draft.plans = plan_lines(
                draft.period, subscriptions[position], price_lists[draft.currency], draft.zone
            )
        except AmbiguousPrice as error:
            draft.error = AmbiguousPrice(f"tenant {draft.tenant_id!r}: {error}")


def _price_list(session: Session, currency: str, plan_ids: set[str]) -> PriceList:
    """The prices in a currency of these plans, and of those without a plan, as they are stored now."""
    wanted = or_(Price.plan_id.is_(None), Price.plan_id.in_(sorted(plan_ids)))
    prices = select(Price).where(Price.currency == currency, wanted).execution_options(populate_existing=True)
    return PriceList(
        PlanPrice(price.id, price.plan_id, price_terms(price), price.effective_on, price.ended_on)
        for price in session.scalars(prices)
    )


def _rate(session: Session, drafts: list[_Draft]) -> None:
    """Sum the usage of every planned line in one statement, then price all lines."""
    usage: list[tuple[int, int]] = []  # (draft, line) by position in the rowset
    rows = []
    for at, draft in enumerate(drafts):
        for line, plan in enumerate(draft.plans):
            metric = plan.price.terms.metric
            if metric is not None:
                rows.append((len(usage), draft.tenant_id, metric, plan.period.start, plan.period.end))
                usage.append((at, line))
    quantities: dict[int, dict[int, Decimal]] = defaultdict(dict)
    if rows:
        for position, quantity in _execute(session, statements.usage_sums, statements.SUMS, rows):
            if quantity is not None:
                at, line = usage[position]
                quantities[at][line] = quantity
    for at, draft in enumerate(drafts):
        try:
            draft.lines = rate_lines(draft.plans, quantities[at], draft.period, draft.zone)
            draft.total = total_of(draft.lines)
        except AmountTooLarge as error:
            draft.error = AmountTooLarge(f"tenant {draft.tenant_id!r}, {_text(draft.period)}: {error}")


def _write(session: Session, drafts: list[_Draft], now: datetime) -> None:
    """Number and store the invoices with their lines."""
    if not drafts:
        return
    numbers = _take_numbers(session, drafts)
    invoices, lines, prices = [], [], {}
    for draft, number in zip(drafts, numbers, strict=True):
        draft.invoice_id, draft.is_new = new_id(), True
        period = draft.period
        invoices.append(
            (
                draft.invoice_id,
                draft.tenant_id,
                draft.currency,
                period.start,
                period.end,
                draft.series,
                number,
                draft.total,
                now + timedelta(days=draft.due_days),
            )
        )
        for position, line in enumerate(draft.lines, start=1):
            price, subscription_id, part = line.plan
            prices[price.id] = price
            lines.append(
                (
                    new_id(),
                    draft.tenant_id,
                    draft.invoice_id,
                    position,
                    price.id,
                    subscription_id,
                    part.start,
                    part.end,
                    line.quantity,
                    line.amount,
                )
            )
    # The lines first: an invoice is issued with a total that is the sum of them, and nothing is added then.
    if lines:
        dialect = session.get_bind().dialect.name
        priced = statements.LINE_PRICES.parameters(dialect, [_price_row(price) for price in prices.values()])
        _execute(session, statements.insert_lines, statements.LINES, lines, **priced, now=now)
    _execute(session, statements.insert_invoices, statements.INVOICES, invoices, now=now)


def _take_numbers(session: Session, drafts: list[_Draft]) -> list[int]:
    """The next numbers of each tenant's series, the earlier period first."""
    counts = Counter((draft.tenant_id, draft.series) for draft in drafts)
    rows = sorted((*key, count) for key, count in counts.items())
    taken = _execute(session, statements.take_numbers, statements.COUNTS, rows)
    upcoming = {(tenant_id, series): last - counts[tenant_id, series] for tenant_id, series, last in taken}
    numbers = [0] * len(drafts)
    for at in sorted(range(len(drafts)), key=lambda at: drafts[at].period.start):
        key = (drafts[at].tenant_id, drafts[at].series)
        upcoming[key] += 1
        numbers[at] = upcoming[key]
    return numbers


def _price_row(price: PlanPrice) -> tuple[str, str, str | None, str, str]:
    terms = price.terms
    kind = "fixed" if terms.metric is None else "usage"
    return (price.id, kind, terms.metric, terms.key, compact_json(terms.to_snapshot()))


def _request_rows(drafts: Iterable[_Draft]) -> list[tuple[Any, ...]]:
    return [
        (position, draft.tenant_id, draft.currency, draft.period.start, draft.period.end)
        for position, draft in enumerate(drafts)
    ]


def _execute(session: Session, statement: Any, rowset: Any, rows: Sequence[Any], **parameters: Any) -> Any:
    dialect = session.get_bind().dialect.name
    return session.execute(statement(dialect), {**rowset.parameters(dialect, rows), **parameters})


def _text(period: Period) -> str:
    return f"{period.start.isoformat()} to {period.end.isoformat()}"
