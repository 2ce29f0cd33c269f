"""The life of an invoice: draft, issued, paid, void or uncollectible; grace, numbers and the safety bound."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta

import pytest

from svc_infra.billing.invoice_bounds import RunBound, parked_tenants, unpark
from svc_infra.billing.invoice_states import mark_paid, mark_uncollectible, void_invoice
from svc_infra.billing.invoicing import InvoiceRequest, generate_invoices
from svc_infra.exceptions import InvalidStatus, NotFound, TenantParked
from tests.contract.billing_shop import MONTHS, Sessions, Shop

CATALOG = """
[[prices]]
key = "calls"
currency = "usd"
metric = "calls"
unit_amount = "10"
"""
DAY = timedelta(days=1)


@pytest.fixture
async def shop(session_factory: Sessions) -> Shop:
    shop = Shop(session_factory)
    await shop.apply(CATALOG)
    return shop


async def test_without_grace_an_invoice_is_issued_with_its_dates(shop: Shop) -> None:
    await shop.settings(due_days=14)
    shop.now = MONTHS[1]
    stored = await shop.stored(await shop.invoice(1))
    assert (stored.status, stored.number, stored.issued_at, stored.due_at) == (
        "finalized",
        1,
        shop.now,
        shop.now + 14 * DAY,
    )


async def test_in_its_grace_an_invoice_is_a_draft_that_takes_what_comes(shop: Shop) -> None:
    await shop.settings(grace_seconds=3 * 86400)
    await shop.use("1", MONTHS[0])
    shop.now = MONTHS[1]
    draft_id = await shop.invoice(1)
    draft = await shop.stored(draft_id)
    assert (draft.status, draft.number, draft.issued_at, draft.total_amount) == ("draft", None, None, 10)
    assert draft.finalize_after == MONTHS[1] + 3 * DAY
    await shop.use("2", MONTHS[0])
    assert await shop.invoice(1) == draft_id  # asked again, it is found
    shop.now += DAY
    assert not (await shop.finalize(draft_id)).is_new  # too early
    shop.now += 2 * DAY
    assert (await shop.finalize(draft_id)).is_new
    issued = await shop.stored(draft_id)
    assert (issued.status, issued.number, issued.total_amount, issued.created_at) == (
        "finalized",
        1,
        30,
        MONTHS[1],
    )
    assert await shop.lines(draft_id) == [("usage", "calls", 3, 30)]
    assert await shop.pending() == []
    assert not (await shop.finalize(draft_id)).is_new  # and once only


async def test_an_operator_may_finalize_before_the_grace_is_over(shop: Shop) -> None:
    await shop.settings(grace_seconds=86400)
    shop.now = MONTHS[1]
    draft_id = await shop.invoice(1)
    assert (await shop.finalize(draft_id, is_early=True)).is_new
    assert isinstance((await shop.finalize("nothing")).error, NotFound)


async def test_fifty_finalizers_at_once_give_the_numbers_from_one(shop: Shop) -> None:
    await shop.settings(grace_seconds=86400)
    days = [MONTHS[0] + number * DAY for number in range(51)]
    shop.now = days[0]
    ids = [await shop.bill(InvoiceRequest("t", start, end, "usd")) for start, end in itertools.pairwise(days)]
    shop.now = days[-1] + 2 * DAY
    results = await asyncio.gather(*(shop.finalize(invoice_id) for invoice_id in [*ids, *ids[:10]]))
    assert sum(result.is_new for result in results) == 50
    numbers = [(await shop.stored(invoice_id)).number for invoice_id in ids]
    assert sorted(numbers) == list(range(1, 51))


async def test_an_issued_invoice_is_paid_given_up_or_voided(shop: Shop) -> None:
    shop.now = MONTHS[1]
    invoice_id = await shop.invoice(1)
    await shop.call(mark_uncollectible, "t", invoice_id, reason="bankrupt", now=shop.now)
    for _ in range(2):  # again, nothing happens
        await shop.call(mark_paid, "t", invoice_id, now=shop.now + DAY)
    stored = await shop.stored(invoice_id)
    assert (stored.status, stored.closed_at) == ("paid", shop.now + DAY)
    with pytest.raises(InvalidStatus, match="is paid"):
        await shop.call(void_invoice, "t", invoice_id, reason="oops", now=shop.now)
    with pytest.raises(NotFound):
        await shop.call(mark_paid, "other", invoice_id, now=shop.now)


async def test_a_draft_has_to_be_issued_before_it_is_paid(shop: Shop) -> None:
    await shop.settings(grace_seconds=86400)
    shop.now = MONTHS[1]
    draft_id = await shop.invoice(1)
    with pytest.raises(InvalidStatus, match="is draft; only one that is finalized or uncollectible"):
        await shop.call(mark_paid, "t", draft_id, now=shop.now)


async def test_a_void_invoice_frees_its_period_and_keeps_its_number(shop: Shop) -> None:
    await shop.use("1", MONTHS[0])
    shop.now = MONTHS[1]
    wrong = await shop.invoice(1)
    await shop.call(void_invoice, "t", wrong, reason="wrong address", now=shop.now)
    await shop.use("2", MONTHS[0])
    right = await shop.invoice(1)
    assert right != wrong
    assert await shop.lines(right) == [("usage", "calls", 3, 30)]
    assert ((await shop.stored(wrong)).number, (await shop.stored(right)).number) == (1, 2)


async def test_a_tenant_beyond_the_bound_is_parked_until_somebody_looks(shop: Shop) -> None:
    shop.now = MONTHS[11]
    requests = [InvoiceRequest("t", MONTHS[at], MONTHS[at + 1], "usd") for at in range(3)]
    other = InvoiceRequest("other", MONTHS[0], MONTHS[1], "usd")
    bound = RunBound(invoices=2)
    results = await shop.call(generate_invoices, [*requests, other], now=shop.now, bound=bound)
    assert [type(result.error) for result in results] == [TenantParked] * 3 + [type(None)]
    [parked] = await shop.call(parked_tenants)
    assert (parked.tenant_id, parked.parked_reason) == (
        "t",
        "it would get 3 invoices in a day, the bound is 2",
    )
    [refused] = await shop.call(generate_invoices, requests[:1], now=shop.now, bound=bound)
    assert isinstance(refused.error, TenantParked)
    await shop.call(unpark, "t")
    results = await shop.call(generate_invoices, requests[:2], now=shop.now, bound=bound)
    assert all(result.is_new for result in results)
    [found] = await shop.call(generate_invoices, requests[:1], now=shop.now, bound=bound)
    assert found.error is None  # what exists is found, bound or not
    [third] = await shop.call(generate_invoices, requests[2:], now=shop.now, bound=bound)
    assert isinstance(third.error, TenantParked)  # those of the day before count


async def test_too_many_lines_park_a_tenant_too(shop: Shop) -> None:
    await shop.use("1", MONTHS[0])
    request = InvoiceRequest("t", MONTHS[0], MONTHS[1], "usd")
    [result] = await shop.call(generate_invoices, [request], now=MONTHS[1], bound=RunBound(lines=0))
    assert isinstance(result.error, TenantParked)
