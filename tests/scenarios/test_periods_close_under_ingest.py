"""Sixteen ingesters in other processes while periods close and invoices are issued: nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.billing.aggregation import recompute
from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.invoice_closing import generate_closing_invoices
from svc_infra.billing.invoicing import InvoiceRequest, finalize_invoices, generate_invoices
from svc_infra.billing.models import Invoice, InvoiceLine, UsageEvent
from svc_infra.billing.rating import PriceModel, PriceTerms, Tier, rate
from svc_infra.billing.tenants import change_settings
from svc_infra.billing.usage_days import dirty_days

Sessions = async_sessionmaker[AsyncSession]
BOUNDS = [datetime(2025, month, 1, tzinfo=UTC) for month in (1, 2, 3, 4)]
AFTER = datetime(2025, 6, 1, tzinfo=UTC)
CATALOG = """
[[prices]]
key = "calls"
currency = "usd"
metric = "calls"
model = "graduated"
tiers = [ { up_to = "100", unit_amount = "7" }, { unit_amount = "3.3", flat_amount = "50" } ]
"""


def _issued_ids(session: Session) -> list[tuple[str, str]]:
    return [(row.tenant_id, row.id) for row in session.scalars(select(Invoice)) if row.status == "draft"]


async def _bill(session_factory: Sessions, stop: asyncio.Event) -> None:
    """Close months, finalize, aggregate and settle, over and over, as several workers at once would."""
    requests = [
        InvoiceRequest(tenant, start, end, "usd")
        for tenant in ("a", "b")
        for start, end in itertools.pairwise(BOUNDS)
    ]
    at = 0
    while not stop.is_set():
        async with session_factory() as session, session.begin():
            await session.run_sync(generate_invoices, [requests[at % len(requests)]], now=AFTER)
        async with session_factory() as session, session.begin():
            days = await session.run_sync(dirty_days, ended_before=AFTER, limit=20)
            await session.run_sync(recompute, days, now=AFTER, will_publish=True)
        async with session_factory() as session, session.begin():
            drafts = await session.run_sync(_issued_ids)
            await session.run_sync(finalize_invoices, drafts, now=AFTER, is_early=True)
        at += 1


@pytest.mark.postgres_only
@pytest.mark.timeout(400)
async def test_every_event_is_billed_once_while_periods_close(
    session_factory: Sessions, database_url: str
) -> None:
    async with session_factory() as session, session.begin():
        await session.run_sync(apply_catalog, parse_catalog(CATALOG), now=BOUNDS[0])
        await session.run_sync(change_settings, "b", grace_seconds=10**8, now=BOUNDS[0])
    script = str(Path(__file__).with_name("ingester.py"))
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, script, database_url, f"p{number}", "4", "10", stdout=asyncio.subprocess.PIPE
        )
        for number in range(4)
    ]
    stop = asyncio.Event()
    billing = [asyncio.create_task(_bill(session_factory, stop)) for _ in range(2)]
    counted = [json.loads((await process.communicate())[0]) for process in processes]
    stop.set()
    await asyncio.gather(*billing)
    async with session_factory() as session, session.begin():
        await session.run_sync(generate_closing_invoices, ["a", "b"], now=AFTER)
    async with session_factory() as session:
        for tenant in ("a", "b"):
            accepted = sum(each[tenant] for each in counted)
            lines = (await session.scalars(select(InvoiceLine).where(InvoiceLine.tenant_id == tenant))).all()
            assert sum(line.quantity for line in lines) == accepted
            assert sum(line.amount for line in lines) == await _at_once(session, tenant)
            numbers = await session.scalars(select(Invoice.number).where(Invoice.tenant_id == tenant))
            found = sorted(number or 0 for number in numbers)
            assert found == list(range(1, len(found) + 1))


async def _at_once(session: AsyncSession, tenant: str) -> int:
    """What the three months cost when each is billed once, with all of its events."""
    tiers = (Tier(Decimal(100), Decimal(7)), Tier(None, Decimal("3.3"), Decimal(50)))
    terms = PriceTerms("calls", "usd", PriceModel.GRADUATED, tiers=tiers, metric="calls")
    events = (await session.scalars(select(UsageEvent).where(UsageEvent.tenant_id == tenant))).all()
    total = 0
    for start, end in itertools.pairwise(BOUNDS):
        total += rate(terms, sum((e.amount for e in events if start <= e.at_ts < end), Decimal(0))).amount
    return total
