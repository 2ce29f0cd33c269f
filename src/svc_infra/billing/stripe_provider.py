"""Mirroring invoices to Stripe: exactly one there for each of ours, whatever fails in between.

Three walls. Every create has an idempotency key that is made from our ids. Before a create, and after any
answer that leaves its outcome open, what is there already is looked up by our id in its metadata: keys are
forgotten after a day, and an error that was answered is repeated under its key. And nothing is finalized
before the remote total equals ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from svc_infra.billing.models import Invoice, InvoiceLine
from svc_infra.billing.provider_customers import customer_of, map_customer
from svc_infra.billing.stripe_amount import stripe_amount
from svc_infra.canonical import canonical_decimal
from svc_infra.clock import Clock, SystemClock
from svc_infra.exceptions import InvalidSettings, ProviderRefused, ProviderUnavailable
from svc_infra.jobs.handlers import SessionFactory

if TYPE_CHECKING:
    import stripe
    from stripe.params import InvoiceCreateParams, InvoiceItemCreateParams

log = structlog.get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")

PROVIDER = "stripe"
INVOICE_ID, LINE_ID, TENANT_ID = "svc_infra_invoice_id", "svc_infra_line_id", "svc_infra_tenant_id"

_TRIES = 6
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 20.0
_PAGE = 100
_DESCRIPTION_LENGTH = 500
# Of such an answer it is open whether the request was done.
_OUTCOME_OPEN = 500


class StripeProvider:
    """A ``provider_sync`` that mirrors each invoice as a finalized Stripe invoice with one item per line.

    It keeps one HTTP client per event loop's life; ``aclose`` ends it. The key is in no log and no repr.

    Raises:
        InvalidSettings: the package ``stripe`` is missing, or the key is empty.
    """

    def __init__(
        self,
        session_factory: SessionFactory,
        api_key: str,
        *,
        base_url: str | None = None,
        days_until_due: int = 30,
        timeout_seconds: float = 30,
        clock: Clock | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        try:
            import stripe
        except ImportError:
            raise InvalidSettings(
                "billing.provider is stripe, whose package is missing: install svc-infra-billing[stripe]"
            ) from None
        if not api_key:
            raise InvalidSettings("billing.provider is stripe, so stripe.api_key (or api_key_file) is needed")
        self._session_factory = session_factory
        self._days_until_due = days_until_due
        self._clock = clock or SystemClock()
        self._pause = pause
        self._secret = api_key
        self._http = stripe.HTTPXClient(timeout=timeout_seconds)
        # Retries are ours: the library repeats a request, but does not look whether it was done.
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": base_url} if base_url else {},
            http_client=self._http,
            max_network_retries=0,
        )

    def __repr__(self) -> str:
        return "StripeProvider()"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]  # the library leaves it so

    async def __call__(self, invoice: Invoice, lines: list[InvoiceLine]) -> str:
        """Mirror an invoice, or find that it was mirrored; return Stripe's id of it.

        Raises:
            ProviderRefused: Stripe or our own check says no, and will say so again: nothing was finalized.
            ProviderUnavailable: it did not answer, or has too much to do; try again later.
        """
        items = [(line, stripe_amount(line.amount, invoice.currency)) for line in lines]
        total = stripe_amount(invoice.total_amount, invoice.currency)
        customer_id = await self._customer(invoice.tenant_id)
        remote = await self._invoice(invoice, customer_id)
        if remote.status == "draft":
            for line, amount in items:
                await self._item(invoice, line, amount, customer_id, remote.id)
            remote = await self._finalized(invoice, total, remote.id)
        log.info("stripe.invoice_mirrored", invoice_id=invoice.id, provider_invoice_id=remote.id)
        return remote.id

    async def _customer(self, tenant_id: str) -> str:
        async with self._session_factory() as session:
            known = await session.run_sync(customer_of, tenant_id, PROVIDER)
        if known is not None:
            return known
        customers = self._client.v1.customers
        quoted = tenant_id.replace("\\", "\\\\").replace("'", "\\'")

        async def find() -> stripe.Customer | None:
            query = f"metadata['{TENANT_ID}']:'{quoted}'"
            found = await customers.search_async({"query": query, "limit": 1})
            return found.data[0] if found.data else None

        async def create(options: Any) -> stripe.Customer:
            name, metadata = tenant_id[:_DESCRIPTION_LENGTH], {TENANT_ID: tenant_id}
            return await customers.create_async({"name": name, "metadata": metadata}, options)

        key = f"customer-{sha256(tenant_id.encode()).hexdigest()[:40]}"
        customer = await self._ensure(key, find, create)
        async with self._session_factory() as session, session.begin():
            return await session.run_sync(
                map_customer, tenant_id, PROVIDER, customer.id, now=self._clock.now()
            )

    async def _invoice(self, invoice: Invoice, customer_id: str) -> stripe.Invoice:
        invoices = self._client.v1.invoices
        params: InvoiceCreateParams = {
            "customer": customer_id,
            "currency": invoice.currency,
            "auto_advance": False,
            "collection_method": "send_invoice",
            "days_until_due": self._days_until_due,
            "pending_invoice_items_behavior": "exclude",
            "metadata": {
                TENANT_ID: invoice.tenant_id,
                INVOICE_ID: invoice.id,
                "number": f"{invoice.series}-{invoice.number}",
            },
        }

        async def find() -> stripe.Invoice | None:
            listed = await invoices.list_async({"customer": customer_id, "limit": _PAGE})
            return await _with_metadata(listed.auto_paging_iter(), INVOICE_ID, invoice.id)

        return await self._ensure(
            f"invoice-{invoice.id}", find, lambda options: invoices.create_async(params, options)
        )

    async def _item(
        self, invoice: Invoice, line: InvoiceLine, amount: int, customer_id: str, remote_id: str
    ) -> None:
        items = self._client.v1.invoice_items
        name = line.description or line.metric or line.kind
        quantity = "" if line.metric is None else f" ({canonical_decimal(line.quantity)})"
        params: InvoiceItemCreateParams = {
            "customer": customer_id,
            "invoice": remote_id,
            "currency": invoice.currency,
            "amount": amount,
            "description": f"{name[:_DESCRIPTION_LENGTH]}{quantity}",
            "period": {
                "start": int(line.period_start.timestamp()),
                "end": int(line.period_end.timestamp()),
            },
            "metadata": {TENANT_ID: invoice.tenant_id, INVOICE_ID: invoice.id, LINE_ID: line.id},
        }

        async def find() -> stripe.InvoiceItem | None:
            listed = await items.list_async({"invoice": remote_id, "limit": _PAGE})
            return await _with_metadata(listed.auto_paging_iter(), LINE_ID, line.id)

        await self._ensure(f"line-{line.id}", find, lambda options: items.create_async(params, options))

    async def _finalized(self, invoice: Invoice, total: int, remote_id: str) -> stripe.Invoice:
        invoices = self._client.v1.invoices

        async def find() -> stripe.Invoice | None:
            remote = await invoices.retrieve_async(remote_id)
            if remote.status != "draft":
                return remote
            if remote.total != total or remote.currency != invoice.currency:
                raise ProviderRefused(
                    f"Stripe's draft {remote_id} comes to {remote.total} {remote.currency}, invoice "
                    f"{invoice.id} to {total} {invoice.currency}: left as a draft, look what changed it"
                )
            return None

        return await self._ensure(
            f"finalize-{invoice.id}",
            find,
            lambda options: invoices.finalize_invoice_async(remote_id, {"auto_advance": False}, options),
        )

    async def _ensure(
        self, key: str, find: Callable[[], Awaitable[T | None]], create: Callable[[Any], Awaitable[T]]
    ) -> T:
        """Return what ``find`` finds or else ``create`` makes, until one of them gets an answer."""
        import stripe

        burnt, last = 0, ""
        for number in range(_TRIES):
            try:
                if (found := await find()) is not None:
                    return found
                return await create({"idempotency_key": f"{key}-{burnt}" if burnt else key})
            except stripe.StripeError as error:
                last = self._text(error)
                if not _is_passing(error):
                    raise ProviderRefused(f"Stripe refuses {key}: {last}") from None
                # Stripe keeps such an answer and repeats it under the same key for a day.
                burnt += _is_kept(error)
            if number + 1 < _TRIES:
                await self._pause(min(_FIRST_PAUSE_SECONDS * 2**number, _LONGEST_PAUSE_SECONDS))
        raise ProviderUnavailable(f"Stripe did not do {key} in {_TRIES} tries: {last}")

    def _text(self, error: stripe.StripeError) -> str:
        said = f"{type(error).__name__} {error.http_status or ''} {error.user_message or error}".strip()
        return said.replace(self._secret, "***")[:_DESCRIPTION_LENGTH]


def _is_passing(error: stripe.StripeError) -> bool:
    """Whether the same request may be answered otherwise later: no answer, too much to do, their fault."""
    status = error.http_status
    return status is None or status in (409, 429) or status >= _OUTCOME_OPEN or _is_key_reused(error)


def _is_kept(error: stripe.StripeError) -> bool:
    status = error.http_status
    if status is None:
        return False  # no answer came: under the same key comes the one that was made
    said: Any = error.json_body or {}
    is_locked = said.get("error", {}).get("code") == "lock_timeout"
    return status >= _OUTCOME_OPEN or is_locked or _is_key_reused(error)


def _is_key_reused(error: stripe.StripeError) -> bool:
    return type(error).__name__ == "IdempotencyError"


async def _with_metadata(found: AsyncIterator[R], key: str, value: str) -> R | None:
    async for each in found:
        metadata = getattr(each, "metadata", None)
        if metadata and key in metadata and metadata[key] == value:
            return each
    return None
