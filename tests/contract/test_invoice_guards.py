"""The walls of issued documents: what the database refuses, whoever asks. Each fails without its trigger."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.billing.models import (
    CreditNote,
    CreditNoteLine,
    Invoice,
    InvoiceLine,
    Plan,
    Price,
    Subscription,
)

Sessions = async_sessionmaker[AsyncSession]

JANUARY, FEBRUARY = (datetime(2025, month, 1, tzinfo=UTC) for month in (1, 2))


def line(line_id: str, amount: int, invoice_id: str = "i") -> InvoiceLine:
    return InvoiceLine(
        id=line_id, tenant_id="t", invoice_id=invoice_id, position=int(line_id), kind="fixed",
        period_start=JANUARY, period_end=FEBRUARY, quantity=Decimal(1), amount=amount,
    )  # fmt: skip


def an_invoice(status: str = "finalized", total: int = 30, **more: Any) -> Invoice:
    issued = {} if status == "draft" else {"number": 1, "issued_at": FEBRUARY, "due_at": FEBRUARY}
    return Invoice(
        id="i", tenant_id="t", currency="usd", status=status, series="INV", total_amount=total,
        period_start=JANUARY, period_end=FEBRUARY, **issued, **more,
    )  # fmt: skip


def note(note_id: str, total: int) -> CreditNote:
    return CreditNote(
        id=note_id, tenant_id="t", invoice_id="i", series="CN-INV", number=int(note_id), currency="usd",
        total_amount=total, reason="r", actor="a", issued_at=FEBRUARY,
    )  # fmt: skip


def taken_back(note_id: str, line_id: str, amount: int) -> CreditNoteLine:
    return CreditNoteLine(tenant_id="t", credit_note_id=note_id, invoice_line_id=line_id, amount=amount)


async def store(session_factory: Sessions, *rows: Any) -> None:
    """Each in the order given, which is that of the code under test: lines before what they belong to."""
    async with session_factory() as session, session.begin():
        for row in rows:
            session.add(row)
            await session.flush()


async def issue(session_factory: Sessions) -> None:
    await store(session_factory, line("1", 10), line("2", 20), an_invoice())


async def refused(session_factory: Sessions, statement: str, match: str) -> None:
    async with session_factory() as session:
        with pytest.raises(IntegrityError, match=match):
            await session.execute(text(statement))
        await session.rollback()


async def test_an_invoice_is_issued_with_the_sum_of_its_lines_only(session_factory: Sessions) -> None:
    for total in (29, 31):
        with pytest.raises(IntegrityError, match="not the sum of its lines"):
            await store(session_factory, line("1", 10), line("2", 20), an_invoice(total=total))
    await issue(session_factory)


async def test_a_draft_is_issued_with_the_sum_of_its_lines_only(session_factory: Sessions) -> None:
    await store(session_factory, line("1", 10), an_invoice("draft", total=30))
    issuing = "UPDATE invoices SET status = 'finalized', number = 1, issued_at = created_at, total_amount = "
    await refused(session_factory, issuing + "30", "not the sum of its lines")
    async with session_factory() as session, session.begin():
        await session.execute(text(issuing + "10"))


@pytest.mark.parametrize(
    "change",
    [
        "total_amount = total_amount + 1",
        "period_end = period_start",
        "number = 2",
        "series = 'OTHER'",
        "currency = 'eur'",
        "tenant_id = 'other'",
        "due_at = period_start",
        "issued_at = period_start",
        "status = 'draft', number = NULL, issued_at = NULL",
        "credited_amount = -1",
    ],
)
async def test_an_issued_invoice_does_not_change(session_factory: Sessions, change: str) -> None:
    await issue(session_factory)
    await refused(
        session_factory, f"UPDATE invoices SET {change}", "does not change|ck_invoices|credited_amount"
    )


async def test_what_may_move_on_an_issued_invoice(session_factory: Sessions) -> None:
    await issue(session_factory)
    async with session_factory() as session, session.begin():
        for change in ("provider_invoice_id = 'in_1'", "status = 'uncollectible'", "status = 'paid'"):
            await session.execute(text(f"UPDATE invoices SET {change}"))
    for status in ("finalized", "void", "uncollectible", "draft"):
        await refused(
            session_factory, f"UPDATE invoices SET status = '{status}'", "does not change|ck_invoices"
        )


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE invoice_lines SET amount = amount + 1 WHERE id = '1'",
        "UPDATE invoice_lines SET invoice_id = 'other' WHERE id = '1'",
        "UPDATE invoice_lines SET invoice_id = 'i', position = 9 WHERE id = '3'",
        "DELETE FROM invoice_lines WHERE id = '1'",
        "INSERT INTO invoice_lines (id, tenant_id, invoice_id, position, kind, description, period_start, "
        "period_end, quantity, amount, created_at) SELECT 'x', tenant_id, invoice_id, 9, kind, description, "
        "period_start, period_end, quantity, 0, created_at FROM invoice_lines WHERE id = '1'",
    ],
)
async def test_the_lines_of_an_issued_invoice_do_not_change(
    session_factory: Sessions, statement: str
) -> None:
    await issue(session_factory)
    draft = an_invoice("draft", total=5)
    draft.id, draft.kind = "d", "adjustment"
    await store(session_factory, draft, line("3", 5, "d"))
    await refused(session_factory, statement, "lines of an issued invoice do not change")


async def test_an_issued_invoice_is_not_deleted_and_a_draft_is(session_factory: Sessions) -> None:
    await issue(session_factory)
    await refused(session_factory, "DELETE FROM invoices", "an issued invoice does not change")
    draft = an_invoice("draft", total=0)
    draft.id, draft.kind = "d", "adjustment"
    await store(session_factory, draft)
    async with session_factory() as session, session.begin():
        await session.execute(text("DELETE FROM invoices WHERE id = 'd'"))


async def test_a_line_without_an_invoice_is_refused_at_the_commit(session_factory: Sessions) -> None:
    with pytest.raises(IntegrityError):
        await store(session_factory, line("1", 10))


async def test_a_line_names_a_subscription_of_its_tenant_which_then_stays(session_factory: Sessions) -> None:
    def of(subscription_id: str) -> InvoiceLine:
        named = line("1", 30)
        named.subscription_id = subscription_id
        return named

    plan = Plan(id="p", key="p", name="p")
    held = Subscription(id="s", tenant_id="t", plan_id="p", effective_at=JANUARY)
    await store(session_factory, plan, held)
    with pytest.raises(IntegrityError):
        await store(session_factory, of("another"), an_invoice())
    await store(session_factory, of("s"), an_invoice())
    async with session_factory() as session:
        with pytest.raises(IntegrityError):
            await session.execute(text("DELETE FROM subscriptions"))


@pytest.mark.postgres_only
async def test_a_subscription_waits_for_the_lines_that_may_name_it(session_factory: Sessions) -> None:
    """Without the lock it would be gone before the line is committed, and neither refused."""
    held = Subscription(id="s", tenant_id="t", plan_id="p", effective_at=JANUARY)
    await store(session_factory, Plan(id="p", key="p", name="p"), held)
    async with session_factory() as adding, session_factory() as deleting:
        named = line("1", 30)
        named.subscription_id = "s"
        adding.add(named)
        await adding.flush()
        await deleting.execute(text("SET LOCAL lock_timeout = '100ms'"))
        with pytest.raises(Exception, match="lock timeout"):
            await deleting.execute(text("DELETE FROM subscriptions"))


async def test_no_more_is_credited_of_a_line_than_was_billed(session_factory: Sessions) -> None:
    await issue(session_factory)
    await store(session_factory, taken_back("1", "1", 6), note("1", 6))
    for amounts in ({"1": 5}, {"1": 4, "2": 21}, {"2": 25}):
        rows = [taken_back("2", line_id, amount) for line_id, amount in amounts.items()]
        with pytest.raises(IntegrityError, match=r"no more of a line than was billed|credited_amount"):
            await store(session_factory, *rows, note("2", sum(amounts.values())))
    with pytest.raises(IntegrityError, match="the sum of its lines"):
        await store(session_factory, taken_back("2", "1", 4), note("2", 5))
    await store(session_factory, taken_back("2", "1", 4), taken_back("2", "2", 20), note("2", 24))


async def test_a_draft_or_void_invoice_is_not_credited(session_factory: Sessions) -> None:
    await issue(session_factory)
    async with session_factory() as session, session.begin():
        await session.execute(text("UPDATE invoices SET status = 'void'"))
    with pytest.raises(IntegrityError, match="only an issued invoice"):
        await store(session_factory, taken_back("1", "1", 6), note("1", 6))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE credit_notes SET total_amount = 1",
        "DELETE FROM credit_notes",
        "UPDATE credit_note_lines SET amount = 1",
        "DELETE FROM credit_note_lines",
        "INSERT INTO credit_note_lines VALUES ('t', '1', '2', 1)",
    ],
)
async def test_a_credit_note_does_not_change(session_factory: Sessions, statement: str) -> None:
    await issue(session_factory)
    await store(session_factory, taken_back("1", "1", 6), note("1", 6))
    await refused(session_factory, statement, "a credit note does not change")


@pytest.mark.parametrize(
    "statement",
    ["UPDATE prices SET unit_amount = '2'", "UPDATE prices SET terms = '{}'", "DELETE FROM prices"],
)
async def test_a_version_of_a_price_ends_and_does_not_change(
    session_factory: Sessions, statement: str
) -> None:
    await store(
        session_factory,
        Price(id="p", key="k", currency="usd", metric="m", unit_amount=Decimal(1), terms={"a": 1}),
    )
    is_postgres = session_factory.kw["bind"].dialect.name == "postgresql"
    await refused(
        session_factory, statement.replace("'2'", "2") if is_postgres else statement, "a version of"
    )
    async with session_factory() as session, session.begin():
        await session.execute(text("UPDATE prices SET ended_on = :day"), {"day": date(2025, 1, 1)})


@pytest.mark.postgres_only
async def test_a_line_waits_for_whoever_issues_its_draft_and_is_refused_then(
    session_factory: Sessions,
) -> None:
    await store(session_factory, line("1", 10), an_invoice("draft", total=10))
    async with session_factory() as issuing, session_factory() as adding:
        await issuing.execute(
            text("UPDATE invoices SET status = 'finalized', number = 1, issued_at = created_at")
        )
        await adding.execute(text("SET LOCAL lock_timeout = '100ms'"))
        adding.add(line("2", 20))
        with pytest.raises(Exception, match="lock timeout"):
            await adding.flush()
        await adding.rollback()
        await issuing.commit()
        adding.add(line("2", 20))
        with pytest.raises(IntegrityError, match="lines of an issued invoice"):
            await adding.flush()
