"""Provider sync: a durable job that reads, calls with no transaction open, and stores the answer."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.invoicing import InvoiceRequest, generate_invoices
from svc_infra.billing.models import Invoice, InvoiceLine
from svc_infra.billing.provider import SYNC_INVOICE, ProviderSync, enqueue_sync, register_provider_sync
from svc_infra.clock import FixedClock
from svc_infra.jobs.handlers import Handlers
from svc_infra.jobs.models import JobRow
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.jobs.worker import Worker

Sessions = async_sessionmaker[AsyncSession]

NOW = datetime(2025, 2, 1, tzinfo=UTC)
CATALOG = '[[prices]]\nkey = "fee"\ncurrency = "usd"\nunit_amount = "700"\nrecurring_interval = "month"\n'


@pytest.fixture
async def invoice_id(session_factory: Sessions) -> str:
    request = InvoiceRequest("t1", datetime(2025, 1, 1, tzinfo=UTC), NOW, "usd")
    async with session_factory() as session, session.begin():
        await session.run_sync(apply_catalog, parse_catalog(CATALOG), now=NOW)
        [result] = await session.run_sync(generate_invoices, [request], now=NOW)
    assert result.invoice_id is not None
    return result.invoice_id


async def sync(session_factory: Sessions, provider_sync: ProviderSync, *invoices: tuple[str, str]) -> None:
    clock = FixedClock(NOW)
    async with session_factory() as session, session.begin():
        await session.run_sync(enqueue_sync, invoices, now=NOW)
    handlers = Handlers(clock=clock)
    register_provider_sync(handlers, session_factory, provider_sync)
    await Worker(SqlJobQueue(session_factory, clock=clock), handlers, clock=clock).drain()


async def stored_id(session_factory: Sessions) -> str | None:
    async with session_factory() as session:
        return await session.scalar(select(Invoice.provider_invoice_id))


async def test_a_coroutine_is_given_the_invoice_and_may_use_the_database(
    session_factory: Sessions, invoice_id: str
) -> None:
    async def provider_sync(invoice: Invoice, lines: list[InvoiceLine]) -> str:
        # On SQLite this would wait for ever for the one connection if a transaction were open.
        assert await stored_id(session_factory) is None
        return f"remote-{invoice.total_amount}-{[line.description for line in lines]}"

    await sync(session_factory, provider_sync, ("t1", invoice_id))
    assert await stored_id(session_factory) == "remote-700-['fee']"


async def test_a_plain_function_runs_beside_the_event_loop(
    session_factory: Sessions, invoice_id: str
) -> None:
    threads = []

    def provider_sync(invoice: Invoice, lines: list[InvoiceLine]) -> None:
        threads.append(threading.current_thread())

    await sync(session_factory, provider_sync, ("t1", invoice_id))
    assert threads[0] is not threading.main_thread()
    assert await stored_id(session_factory) is None


async def test_an_invoice_that_the_provider_has_is_not_sent_again(
    session_factory: Sessions, invoice_id: str
) -> None:
    calls = []

    def provider_sync(invoice: Invoice, lines: list[InvoiceLine]) -> str:
        calls.append(invoice.id)
        return "remote"

    await sync(session_factory, provider_sync, ("t1", invoice_id))
    await sync(session_factory, provider_sync, ("t1", invoice_id))
    assert calls == [invoice_id]


async def test_a_failing_provider_is_asked_again_later_and_the_invoice_stays(
    session_factory: Sessions, invoice_id: str
) -> None:
    def provider_sync(invoice: Invoice, lines: list[InvoiceLine]) -> str:
        raise ConnectionError("no answer")

    await sync(session_factory, provider_sync, ("t1", invoice_id))
    job = await only_job(session_factory)
    assert (job.state, job.attempt) == ("available", 1)
    assert "no answer" in job.last_error


async def test_an_invoice_of_another_tenant_is_not_found(session_factory: Sessions, invoice_id: str) -> None:
    def provider_sync(invoice: Invoice, lines: list[InvoiceLine]) -> str:
        raise AssertionError("called with another tenant's invoice")

    await sync(session_factory, provider_sync, ("t2", invoice_id))
    assert (await only_job(session_factory)).state == "discarded"


async def only_job(session_factory: Sessions) -> Any:
    async with session_factory() as session:
        return (await session.scalars(select(JobRow).where(JobRow.name == SYNC_INVOICE))).one()
