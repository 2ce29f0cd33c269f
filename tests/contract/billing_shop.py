"""A small shop for tests of billing: it applies a catalog, subscribes, records, invoices, and reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.invoicing import InvoiceRequest, finalize_invoices, generate_invoices
from svc_infra.billing.models import Invoice, InvoiceLine, PendingLine
from svc_infra.billing.subscriptions import subscribe
from svc_infra.billing.tenants import change_settings
from svc_infra.billing.usage import NewUsage, record_many

Sessions = async_sessionmaker[AsyncSession]

MONTHS = [datetime(2025, month, 1, tzinfo=UTC) for month in range(1, 13)]


class Shop:
    """One database; ``now`` is the business time of every call and may be set."""

    def __init__(self, session_factory: Sessions, now: datetime = MONTHS[0]) -> None:
        self.session_factory = session_factory
        self.now = now
        self._keys = 0

    async def call(self, function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        async with self.session_factory() as session, session.begin():
            return await session.run_sync(function, *args, **more)

    async def apply(self, catalog: str, **more: Any) -> Any:
        return await self.call(apply_catalog, parse_catalog(catalog), now=self.now, **more)

    async def settings(self, tenant_id: str = "t", **more: Any) -> None:
        await self.call(change_settings, tenant_id, now=self.now, **more)

    async def subscribe(self, plan: str, start: datetime = MONTHS[0], **more: Any) -> str:
        more = {"tenant_id": "t", "effective_at": start, "now": self.now, **more}
        subscription_id: str = await self.call(subscribe, plan_key=plan, **more)
        return subscription_id

    async def use(self, amount: str, at: datetime, metric: str = "calls", tenant_id: str = "t") -> None:
        self._keys += 1
        event = NewUsage(tenant_id, metric, Decimal(amount), at, str(self._keys))
        await self.call(record_many, [event], now=self.now)

    async def invoice(self, month: int, tenant_id: str = "t", currency: str = "usd") -> str:
        """The id of the invoice of a month of 2025, made now."""
        request = InvoiceRequest(tenant_id, MONTHS[month - 1], MONTHS[month], currency)
        return await self.bill(request)

    async def bill(self, request: InvoiceRequest) -> str:
        [result] = await self.call(generate_invoices, [request], now=self.now)
        assert result.error is None, result.error
        return str(result.invoice_id)

    async def finalize(self, invoice_id: str, **more: Any) -> Any:
        [result] = await self.call(finalize_invoices, [("t", invoice_id)], now=self.now, **more)
        return result

    async def stored(self, invoice_id: str, tenant_id: str = "t") -> Invoice:
        async with self.session_factory() as session:
            return await session.get_one(Invoice, (tenant_id, invoice_id))

    async def lines(self, invoice_id: str) -> list[tuple[Any, ...]]:
        """(kind, description, quantity, amount) of each line."""
        of_invoice = select(InvoiceLine).where(InvoiceLine.invoice_id == invoice_id)
        return await self._rows(of_invoice.order_by(InvoiceLine.position))

    async def pending(self) -> list[tuple[Any, ...]]:
        return await self._rows(select(PendingLine).order_by(PendingLine.id))

    async def _rows(self, statement: Any) -> list[tuple[Any, ...]]:
        async with self.session_factory() as session:
            rows: Iterable[Any] = (await session.scalars(statement)).all()
        return [(row.kind, row.description, row.quantity, row.amount) for row in rows]
