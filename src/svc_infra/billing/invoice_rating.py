"""Planning and rating drafts: which prices apply, what was used of them, and what each line costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from svc_infra.billing import invoice_statements as statements
from svc_infra.billing.catalog_prices import price_terms
from svc_infra.billing.invoice_draft import Draft, execute, request_rows
from svc_infra.billing.invoice_lines import (
    FIXED,
    UNUSED,
    ChargedFee,
    HeldSubscription,
    Line,
    plan_lines,
    rate_lines,
    total_of,
)
from svc_infra.billing.invoice_models import Invoice, InvoiceLine
from svc_infra.billing.invoice_usage import measure
from svc_infra.billing.models import Price
from svc_infra.billing.periods import Period
from svc_infra.billing.price_list import PlanPrice, PriceList
from svc_infra.billing.rating import PriceTerms
from svc_infra.exceptions import AmbiguousPrice, AmountTooLarge, SvcInfraError


def plan(session: Session, drafts: Sequence[Draft]) -> None:
    """Find out which prices apply to which part of each draft's period."""
    subscriptions: dict[int, list[HeldSubscription]] = defaultdict(list)
    plan_ids: set[str] = set()
    rows = execute(session, statements.active_subscriptions, statements.REQUESTS, request_rows(drafts))
    for position, subscription_id, plan_id, starts_at, ended_at, seats, trial_ends_at, anchor_on in rows:
        subscriptions[position].append(
            HeldSubscription(
                subscription_id, plan_id, starts_at, ended_at, Decimal(seats), trial_ends_at, anchor_on
            )
        )
        plan_ids.add(plan_id)
    price_lists = {
        currency: _price_list(session, currency, plan_ids)
        for currency in {draft.currency for draft in drafts}
    }
    charged = _charged(session, drafts, subscriptions, price_lists)
    for position, draft in enumerate(drafts):
        prices = price_lists[draft.currency]
        fees = charged.get((draft.tenant_id, draft.currency), ())
        try:
            draft.plans = plan_lines(
                draft.period, subscriptions[position], prices, draft.zone, draft.cycle, fees
            )
        except AmbiguousPrice as error:
            draft.error = AmbiguousPrice(f"tenant {draft.tenant_id!r}: {error}")


def rate_drafts(
    session: Session, drafts: Sequence[Draft], *, issued: Sequence[Sequence[Line]] | None = None
) -> None:
    """Measure the usage of every planned line, then price all lines; ``issued`` are those that stand."""
    measured = measure(session, drafts)
    for at, draft in enumerate(drafts):
        try:
            stands = issued[at] if issued else ()
            draft.lines = rate_lines(draft.plans, measured[at], draft.zone, issued=stands)
            draft.total = total_of(line.amount for line in draft.lines)
        except AmountTooLarge as error:
            draft.error = AmountTooLarge(f"{draft}: {error}")
        except SvcInfraError as error:
            draft.error = error


def _price_list(session: Session, currency: str, plan_ids: set[str]) -> PriceList:
    """The prices in a currency of these plans, and of those without a plan, as they are stored now."""
    wanted = or_(Price.plan_id.is_(None), Price.plan_id.in_(sorted(plan_ids)))
    prices = select(Price).where(Price.currency == currency, wanted).execution_options(populate_existing=True)
    return PriceList(
        PlanPrice(price.id, price.plan_id, price_terms(price), price.effective_on, price.ended_on)
        for price in session.scalars(prices)
    )


def _charged(
    session: Session,
    drafts: Sequence[Draft],
    subscriptions: dict[int, list[HeldSubscription]],
    price_lists: dict[str, PriceList],
) -> dict[tuple[str, str], list[ChargedFee]]:
    """What earlier invoices charged in advance, by tenant and currency, where a plan has such a price."""
    asked = {
        draft.tenant_id
        for position, draft in enumerate(drafts)
        if any(
            held.plan_id in price_lists[draft.currency].plans_in_advance for held in subscriptions[position]
        )
    }
    found: dict[tuple[str, str], list[ChargedFee]] = defaultdict(list)
    own = {draft.invoice_id for draft in drafts}
    for line, currency in _fee_lines(session, asked):
        snapshot = line.price_snapshot or {}
        if snapshot.get("is_advance") and line.invoice_id not in own and line.subscription_id is not None:
            price = PlanPrice(line.price_id or "", None, PriceTerms.from_snapshot(snapshot))
            period = Period(line.period_start, line.period_end)
            is_unused = line.kind == UNUSED
            fee = ChargedFee(price, line.subscription_id, period, Decimal(line.quantity), is_unused)
            found[line.tenant_id, currency].append(fee)
    return found


def _fee_lines(session: Session, tenant_ids: Iterable[str]) -> Iterable[tuple[InvoiceLine, str]]:
    asked = sorted(tenant_ids)
    if not asked:
        return []
    statement = (
        select(InvoiceLine, Invoice.currency)
        .join(Invoice, (Invoice.tenant_id == InvoiceLine.tenant_id) & (Invoice.id == InvoiceLine.invoice_id))
        .where(
            InvoiceLine.tenant_id.in_(asked),
            InvoiceLine.kind.in_([FIXED, UNUSED]),
            Invoice.status != "void",
        )
        .order_by(InvoiceLine.period_start)
    )
    return [(line, currency) for line, currency in session.execute(statement)]
