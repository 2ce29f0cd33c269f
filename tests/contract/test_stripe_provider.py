"""Mirroring to Stripe: exactly one remote invoice with our total, whatever fails in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.application import Application
from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.jobs import enqueue_generate_monthly_invoice
from svc_infra.billing.models import Invoice, InvoiceLine
from svc_infra.billing.provider_customers import map_customer
from svc_infra.billing.stripe_amount import stripe_amount
from svc_infra.billing.stripe_provider import StripeProvider
from svc_infra.clock import FixedClock
from svc_infra.config import BillingSettings, Settings, StripeSettings
from svc_infra.exceptions import InvalidSettings, ProviderRefused, ProviderUnavailable
from svc_infra.jobs.models import JobRow
from svc_infra.runtime import Runtime
from svc_infra.testing.webhooks import loopback_sender
from tests.contract.fake_stripe import API_KEY, FakeStripe, Fault, adapter

# The library hands httpx its body as `data`, which httpx would rather have as `content`.
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")

Sessions = async_sessionmaker[AsyncSession]

NOW = datetime(2025, 2, 1, 12, tzinfo=UTC)
CATALOG = "".join(
    f'[[prices]]\nkey = "{key}"\ncurrency = "usd"\nunit_amount = "{amount}"\nrecurring_interval = "month"\n'
    for key, amount in (("fee", 700), ("support", 300))
)
REQUESTS = ["POST customers", "POST invoices", "POST invoiceitems", "POST invoices/ID/finalize"]
FAULTS = {
    "429": {"status": 429, "after_commit": False},
    "lock timeout": {"status": 429, "after_commit": False, "code": "lock_timeout"},
    "500": {"status": 500, "after_commit": False},
    "500 after the commit": {"status": 500},
    "no answer after the commit": {"status": None},
}


@pytest.fixture
def fake() -> Iterator[FakeStripe]:
    with FakeStripe() as fake:
        yield fake


async def no_pause(_seconds: float) -> None:
    pass


@pytest.fixture
async def provider(fake: FakeStripe, session_factory: Sessions) -> AsyncIterator[StripeProvider]:
    provider = StripeProvider(session_factory, API_KEY, base_url=fake.url, pause=no_pause)
    yield provider
    await provider.aclose()


def invoice(currency: str = "usd", *amounts: int) -> tuple[Invoice, list[InvoiceLine]]:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    amounts = amounts or (700, 300)
    made = Invoice(
        id="i1",
        tenant_id="t'1",
        currency=currency,
        series="INV",
        number=1,
        total_amount=sum(amounts),
        period_start=start,
        period_end=NOW,
        created_at=NOW,
    )
    lines = [
        InvoiceLine(
            id=f"l{position}",
            tenant_id="t'1",
            invoice_id="i1",
            position=position,
            kind="fixed",
            description="fee",
            amount=amount,
            quantity=1,
            period_start=start,
            period_end=NOW,
        )
        for position, amount in enumerate(amounts)
    ]
    return made, lines


def assert_mirrored_once(fake: FakeStripe, *amounts: int) -> None:
    [remote] = fake.invoices.values()
    assert len(fake.customers) == 1
    assert sorted(item["amount"] for item in fake.items.values()) == sorted(amounts or (700, 300))
    assert (remote["status"], remote["total"]) == ("open", sum(amounts or (700, 300)))


@pytest.mark.sqlite_only
@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_there_is_exactly_one_remote_invoice_whatever_fails(
    fake: FakeStripe, provider: StripeProvider, request_name: str, fault: str
) -> None:
    fake.faults = [Fault(request_name, **FAULTS[fault]), Fault("GET invoices", 429, after_commit=False)]  # type: ignore[arg-type]
    assert await provider(*invoice()) == "in_1"
    assert fake.faults == []
    assert_mirrored_once(fake)


@pytest.mark.sqlite_only
@pytest.mark.parametrize("request_name", REQUESTS)
async def test_it_goes_on_after_a_day_when_the_keys_are_forgotten(
    fake: FakeStripe, provider: StripeProvider, request_name: str
) -> None:
    """The wall is the look for what is there: the idempotency keys alone would make everything twice."""
    fake.faults = [Fault(request_name, None, is_the_last=True)]
    with pytest.raises(ProviderUnavailable):
        await provider(*invoice())
    fake.is_down = False
    fake.keys.clear()
    await provider(*invoice())
    await provider(*invoice())
    assert_mirrored_once(fake)


@pytest.mark.sqlite_only
async def test_two_at_once_make_one(fake: FakeStripe, provider: StripeProvider) -> None:
    await asyncio.gather(provider(*invoice()), provider(*invoice()), return_exceptions=True)
    await provider(*invoice())
    assert_mirrored_once(fake)


@pytest.mark.sqlite_only
async def test_another_total_there_is_never_finalized(fake: FakeStripe, provider: StripeProvider) -> None:
    fake.tampers_with_totals = True
    with pytest.raises(ProviderRefused, match="comes to 1002 usd, invoice i1 to 1000 usd"):
        await provider(*invoice())
    assert [each["status"] for each in fake.invoices.values()] == ["draft"]


@pytest.mark.sqlite_only
async def test_a_customer_of_the_application_is_used(
    fake: FakeStripe, provider: StripeProvider, session_factory: Sessions
) -> None:
    fake.customers["cus_9"] = {"id": "cus_9", "object": "customer", "metadata": {}}
    async with session_factory.begin() as session:
        await session.run_sync(map_customer, "t'1", "stripe", "cus_9", now=NOW)
    await provider(*invoice())
    assert [each["customer"] for each in fake.invoices.values()] == ["cus_9"]


@pytest.mark.sqlite_only
async def test_a_credit_and_an_invoice_of_nothing_are_mirrored_too(
    fake: FakeStripe, provider: StripeProvider
) -> None:
    await provider(*invoice("usd", 500, -700, 0))
    assert_mirrored_once(fake, 500, -700, 0)


@pytest.mark.sqlite_only
async def test_the_key_is_in_no_error_no_log_and_no_repr(
    fake: FakeStripe, session_factory: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = API_KEY + "_wrong"
    provider = StripeProvider(session_factory, wrong, base_url=fake.url, pause=no_pause)
    with caplog.at_level(logging.DEBUG), pytest.raises(ProviderRefused) as caught:
        await provider(*invoice())
    await provider.aclose()
    settings = StripeSettings(api_key=wrong)  # type: ignore[arg-type]
    assert wrong not in f"{caught.value}{caplog.text}{provider!r}{settings!r}"


@pytest.mark.parametrize(
    ("minor", "currency", "amount"),
    [
        (1234, "usd", 1234),
        (5, "jpy", 5),
        (-5, "ISK", -500),
        (7, "ugx", 700),
        (500, "mga", 5),
        (1230, "kwd", 1230),
        (1230, "tnd", 1230),
        # Whole forints and dollars are asked for in payouts only; an invoice may have their hundredths.
        (1234, "huf", 1234),
        (1234, "twd", 1234),
        (501, "mga", None),
        (1231, "kwd", None),
        (1, "clf", None),
    ],
)
def test_amounts_are_written_in_the_units_that_stripe_takes(
    minor: int, currency: str, amount: int | None
) -> None:
    if amount is not None:
        assert stripe_amount(minor, currency) == amount
        return
    with pytest.raises(ProviderRefused):
        stripe_amount(minor, currency)


def test_the_fake_refuses_what_the_official_library_would_not_send() -> None:
    create = adapter("InvoiceCreateParams")
    assert create.validate_python({"customer": "cus_1", "auto_advance": "false"})
    for wrong in ({"customer": "cus_1", "auto_advanc": "false"}, {"customer": 1}):
        with pytest.raises(ValidationError):
            create.validate_python(wrong)


async def bill(runtime: Runtime, session_factory: Sessions) -> tuple[str | None, list[str], str]:
    """Bill with the worker's own wiring; the provider's id, the jobs' states and the last error."""
    async with session_factory.begin() as session:
        await session.run_sync(apply_catalog, parse_catalog(CATALOG), now=NOW)
        enqueue_generate_monthly_invoice(
            runtime.queue.bind(session),
            tenant_id="t1",
            period_start=datetime(2025, 1, 1, tzinfo=UTC),
            period_end=datetime(2025, 2, 1, tzinfo=UTC),
            currency="usd",
        )
    await runtime.worker.drain()
    async with session_factory() as session:
        remote_id = await session.scalar(select(Invoice.provider_invoice_id))
        jobs = (await session.execute(select(JobRow.state, JobRow.last_error).order_by(JobRow.id))).all()
    return remote_id, [state for state, _ in jobs], str(jobs[-1][1])


async def test_the_worker_mirrors_what_it_bills(
    fake: FakeStripe, session_factory: Sessions, engine: Any
) -> None:
    settings = Settings(
        billing=BillingSettings(provider="stripe"),
        stripe=StripeSettings(api_key=API_KEY, base_url=fake.url),  # type: ignore[arg-type]
    )
    sender = loopback_sender()
    runtime = Runtime(settings, engine, sender, clock=FixedClock(NOW))
    remote_id, states, _ = await bill(runtime, session_factory)
    await runtime.aclose()
    await sender.aclose()
    assert (remote_id, states) == ("in_1", ["completed", "completed"])
    assert_mirrored_once(fake)


async def test_an_application_may_bring_its_own_provider(session_factory: Sessions, engine: Any) -> None:
    async def refuse(invoice: Invoice, lines: list[InvoiceLine]) -> None:
        raise ProviderRefused("not this one")

    sender = loopback_sender()
    runtime = Runtime(
        Settings(), engine, sender, clock=FixedClock(NOW), application=Application(provider_sync=refuse)
    )
    remote_id, states, error = await bill(runtime, session_factory)
    await sender.aclose()
    assert (remote_id, states) == (None, ["completed", "discarded"])
    assert "not this one" in error


def test_two_providers_are_refused(session_factory: Sessions, engine: Any) -> None:
    settings = Settings(
        billing=BillingSettings(provider="stripe"),
        stripe=StripeSettings(api_key=API_KEY),  # type: ignore[arg-type]
    )
    with pytest.raises(InvalidSettings, match="one of them"):
        Runtime(
            settings,
            engine,
            loopback_sender(),
            application=Application(provider_sync=lambda invoice, lines: None),
        )
