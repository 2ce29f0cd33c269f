"""Whatever happens in whatever order: all that counts is billed, adjusted or waiting, and nothing twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from svc_infra.billing.aggregation import recompute
from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.invoice_closing import generate_closing_invoices
from svc_infra.billing.invoice_states import void_invoice
from svc_infra.billing.invoicing import InvoiceRequest, finalize_invoices, generate_invoices
from svc_infra.billing.models import Invoice, InvoiceLine, PendingLine, Subscription
from svc_infra.billing.subscription_changes import change_subscription
from svc_infra.billing.subscriptions import subscribe
from svc_infra.billing.tenants import change_settings
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.billing.usage_archive import archive_usage
from svc_infra.billing.usage_corrections import amend_usage, recorded_event, void_usage
from svc_infra.billing.usage_days import dirty_days
from svc_infra.exceptions import InvalidStatus, InvalidSubscription

BOUNDS = [datetime(2025, month, 1, tzinfo=UTC) for month in range(1, 6)]
CATALOG = "".join(
    f'[[plans]]\nkey = "{plan}"\n{default}[[prices]]\nkey = "calls"\nplan = "{plan}"\ncurrency = "usd"\n'
    f'metric = "calls"\n{price}'
    for plan, default, price in (
        ("p", "default = true\n", 'model = "graduated"\ntiers = [{ up_to = "20", unit_amount = "3.3" }, '
         '{ unit_amount = "1.7", flat_amount = "9" }]\n'),
        ("q", "", 'model = "package"\npackage_size = "7"\nunit_amount = "50"\n'),
    )
)  # fmt: skip

# The same few days again and again, at the edges of months: accidents need company.
DAYS = st.sampled_from([0, 1, 29, 30, 31, 32, 58, 59, 60, 89, 90, 95, 118])
AMOUNTS = st.decimals("0.001", "30", places=3)
ACTS = st.one_of(
    st.tuples(st.just("use"), DAYS, AMOUNTS),
    st.tuples(st.just("void_usage"), st.integers(0, 20)),
    st.tuples(st.just("amend_usage"), st.integers(0, 20), DAYS, AMOUNTS),
    st.tuples(st.just("archive")),
    st.tuples(st.just("aggregate")),
    st.tuples(st.just("invoice"), st.integers(0, 3)),
    st.tuples(st.just("finalize")),
    st.tuples(st.just("void_invoice"), st.integers(0, 3)),
    st.tuples(st.just("change"), DAYS, st.sampled_from("pq")),
)


class Books:
    """One tenant in a database of its own; ``counted`` is what the events that count add up to."""

    def __init__(self, session: Session, grace: int) -> None:
        self.session = session
        self.now = datetime(2025, 5, 2, tzinfo=UTC)
        self.events: list[tuple[str, Decimal]] = []
        self.counted = Decimal(0)
        apply_catalog(session, parse_catalog(CATALOG), now=BOUNDS[0])
        change_settings(session, "t", grace_seconds=grace, now=BOUNDS[0])
        subscribe(session, tenant_id="t", plan_key="p", effective_at=BOUNDS[0], now=BOUNDS[0])

    def do(self, name: str, *args: Any) -> None:
        getattr(self, name)(*args)
        self.session.commit()

    def use(self, day: int, amount: Decimal) -> None:
        at = BOUNDS[0] + timedelta(days=day, hours=7)
        event = NewUsage("t", "calls", amount, at, str(len(self.events)))
        [recorded] = record_many(self.session, [event], now=self.now)
        self.events.append((recorded.id, amount))
        self.counted += amount

    def void_usage(self, index: int) -> None:
        if index < len(self.events):
            event_id, amount = self.events[index]
            void_usage(self.session, "t", event_id, reason="r", actor="a", now=self.now)
            self.counted -= amount
            self.events[index] = (event_id, Decimal(0))

    def amend_usage(self, index: int, day: int, amount: Decimal) -> None:
        if index < len(self.events) and self.events[index][1] not in (0, amount):
            event_id, before = self.events[index]
            at = BOUNDS[0] + timedelta(days=day, hours=7)
            of = {"reason": "r", "actor": "a", "amount": amount, "at": at, "now": self.now}
            self.events[index] = (amend_usage(self.session, "t", event_id, **of), amount)
            self.counted += amount - before

    def archive(self) -> None:
        archive_usage(self.session, before=BOUNDS[3], now=self.now)

    def aggregate(self) -> None:
        days = dirty_days(self.session, ended_before=self.now)
        recompute(self.session, days, now=self.now, will_publish=True)

    def invoice(self, month: int) -> None:
        request = InvoiceRequest("t", BOUNDS[month], BOUNDS[month + 1], "usd")
        first, again = generate_invoices(self.session, [request, request], now=self.now)
        assert first.error is None
        assert again.invoice_id == first.invoice_id

    def finalize(self) -> None:
        drafts = self.session.scalars(select(Invoice.id).where(Invoice.status == "draft")).all()
        finalize_invoices(self.session, [("t", draft) for draft in drafts], now=self.now, is_early=True)

    def void_invoice(self, month: int) -> None:
        of_month = select(Invoice.id).where(Invoice.period_start == BOUNDS[month])
        for invoice_id in self.session.scalars(of_month).all():
            try:
                void_invoice(self.session, "t", invoice_id, reason="r", now=self.now)
            except InvalidStatus:
                self.session.rollback()

    def change(self, day: int, plan: str) -> None:
        at = BOUNDS[0] + timedelta(days=day)
        newest = select(Subscription.id).order_by(Subscription.effective_at.desc()).limit(1)
        try:
            held = self.session.scalars(newest).one()
            change_subscription(self.session, "t", held, plan_key=plan, at=at, now=self.now)
        except InvalidSubscription:
            self.session.rollback()


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTS, min_size=10, max_size=40), st.sampled_from([0, 86400 * 3]))
def test_all_that_counts_is_billed_adjusted_or_waiting(acts: Iterable[tuple[Any, ...]], grace: int) -> None:
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        books = Books(session, grace)
        for name, *args in acts:
            books.do(name, *args)
        for month in range(4):
            books.do("invoice", month)
        books.do("finalize")
        generate_closing_invoices(session, ["t"], now=books.now)
        session.commit()
        _check(session, books)
    engine.dispose()


def _check(session: Session, books: Books) -> None:
    counts = select(Invoice).where(Invoice.status != "void").order_by(Invoice.period_start)
    invoices = session.scalars(counts).all()
    ids = [invoice.id for invoice in invoices]
    lines = session.scalars(select(InvoiceLine).where(InvoiceLine.invoice_id.in_(ids))).all()
    waiting = session.scalars(select(PendingLine)).all()
    usage = [row for row in [*lines, *waiting] if row.metric == "calls"]
    assert sum((row.quantity for row in usage), Decimal(0)) == books.counted
    for invoice in invoices:
        assert invoice.total_amount == sum(row.amount for row in lines if row.invoice_id == invoice.id) >= 0
    periods = [invoice for invoice in invoices if invoice.kind == "period"]
    assert all(a.period_end == b.period_start for a, b in itertools.pairwise(periods))
    numbers = session.scalars(select(Invoice.number).order_by(Invoice.number)).all()
    assert list(numbers) == list(range(1, len(numbers) + 1))
    assert session.scalar(select(func.count()).where(Invoice.status == "draft")) == 0
    assert _again(session, books) == sum(row.amount for row in [*lines, *waiting])


def _again(session: Session, books: Books) -> int:
    """What the same subscriptions cost a twin who is billed once, when everything has arrived."""
    for held in session.scalars(select(Subscription).order_by(Subscription.effective_at)).all():
        twin = {column.key: getattr(held, column.key) for column in Subscription.__table__.columns}
        session.add(Subscription(**{**twin, "tenant_id": "twin"}))
    session.flush()
    for index, (event_id, amount) in enumerate(books.events):
        if amount:
            at = recorded_event(session, "t", event_id).at_ts
            record_many(session, [NewUsage("twin", "calls", amount, at, str(index))], now=books.now)
    requests = [InvoiceRequest("twin", a, b, "usd") for a, b in itertools.pairwise(BOUNDS)]
    results = generate_invoices(session, requests, now=books.now)
    found = [session.get_one(Invoice, ("twin", str(result.invoice_id))) for result in results]
    return sum(invoice.total_amount for invoice in found)
