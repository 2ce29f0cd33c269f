"""Credit notes: whole, by amount or by line, exact, never more than was billed, numbered on their own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from svc_infra.billing.credit_notes import credit_invoice, credit_note_lines, credit_notes_of
from svc_infra.billing.invoice_states import void_invoice
from svc_infra.exceptions import AmountTooLarge, InvalidStatus, NotFound
from tests.contract.billing_shop import MONTHS, Sessions, Shop

CATALOG = "".join(
    f'[[prices]]\nkey = "{key}"\ncurrency = "usd"\nmetric = "{key}"\nunit_amount = "{amount}"\n'
    for key, amount in (("a", 100), ("b", 100), ("c", 101))
)


@pytest.fixture
async def shop(session_factory: Sessions) -> Shop:
    shop = Shop(session_factory)
    await shop.apply(CATALOG)
    for metric in "abc":
        await shop.use("1", MONTHS[0], metric)
    shop.now = MONTHS[1]
    return shop


async def credit(shop: Shop, invoice_id: str, **more: Any) -> tuple[int, list[tuple[int, int]]]:
    """The number of the credit note, and its (line, amount)s."""
    note = await shop.call(
        credit_invoice, "t", invoice_id, reason="outage", actor="ann", now=shop.now, **more
    )
    return note.number, await shop.call(credit_note_lines, "t", note.id)


async def test_an_amount_is_spread_over_the_lines_and_adds_up(shop: Shop) -> None:
    invoice_id = await shop.invoice(1)
    assert await credit(shop, invoice_id, amount=100) == (1, [(1, 33), (2, 33), (3, 34)])
    assert await credit(shop, invoice_id, lines={2: 7, 3: None}) == (2, [(2, 7), (3, 67)])
    assert await credit(shop, invoice_id) == (3, [(1, 67), (2, 60)])
    stored = await shop.stored(invoice_id)
    assert (stored.total_amount, stored.credited_amount, stored.status) == (301, 301, "finalized")
    with pytest.raises(AmountTooLarge, match="nothing is left"):
        await credit(shop, invoice_id)
    notes = await shop.call(credit_notes_of, "t", invoice_id)
    assert [(note.series, note.number, note.total_amount) for note in notes] == [
        ("CN-INV", 1, 100),
        ("CN-INV", 2, 74),
        ("CN-INV", 3, 127),
    ]


async def test_what_cannot_be_credited_is_refused_and_takes_no_number(shop: Shop) -> None:
    await shop.settings(grace_seconds=86400)
    draft_id = await shop.invoice(1)
    with pytest.raises(InvalidStatus, match="is draft"):
        await credit(shop, draft_id)
    await shop.finalize(draft_id, is_early=True)
    with pytest.raises(AmountTooLarge):
        await credit(shop, draft_id, amount=302)
    with pytest.raises(NotFound, match="no line 4"):
        await credit(shop, draft_id, lines={4: 1})
    with pytest.raises(NotFound):
        await shop.call(credit_invoice, "other", draft_id, reason="r", actor="a", now=shop.now)
    assert (await credit(shop, draft_id, amount=1))[0] == 1
    with pytest.raises(InvalidStatus, match="has credit notes"):
        await shop.call(void_invoice, "t", draft_id, reason="r", now=shop.now)


async def test_ten_at_once_never_credit_more_than_was_billed(shop: Shop) -> None:
    invoice_id = await shop.invoice(1)
    results = await asyncio.gather(
        *(credit(shop, invoice_id, amount=100) for _ in range(10)), return_exceptions=True
    )
    assert sorted(result[0] for result in results if isinstance(result, tuple)) == [1, 2, 3]
    assert sum(isinstance(result, AmountTooLarge) for result in results) == 7
    assert (await shop.stored(invoice_id)).credited_amount == 300
