from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.billing.late import Settlement, adjustment, settle
from svc_infra.billing.rating import PriceModel, PriceTerms, Tier, rate
from svc_infra.exceptions import AmountTooLarge

D = Decimal
CALLS = PriceTerms("calls", "usd", PriceModel.PER_UNIT, unit_amount=D("12.5"), metric="calls")
TIERED = PriceTerms(
    "cds", "usd", PriceModel.GRADUATED, tiers=(Tier(D(3), D(0)), Tier(None, D(7), D(100))), metric="cds"
)
SMS = PriceTerms("sms", "usd", PriceModel.PACKAGE, unit_amount=D(5), metric="sms", package_size=D(100))
FEE = PriceTerms("fee", "usd", PriceModel.PERCENTAGE, metric="sales", percent=D("1.3"), free_units=D(10))
VOLUME = replace(TIERED, model=PriceModel.VOLUME, tiers=(Tier(D(10), D(50)), Tier(None, D(1))))

late_events = st.lists(st.decimals(min_value=0, max_value=1000, places=3), min_size=1, max_size=8)


def test_an_adjustment_is_the_new_price_less_what_was_billed() -> None:
    assert adjustment(CALLS, D(3), 25) == 13
    assert adjustment(CALLS, D(2), 25) == 0
    assert adjustment(CALLS, D(1), 25) == -12  # an event was voided
    assert adjustment(VOLUME, D(11), 500) == -489


@given(st.sampled_from([CALLS, TIERED, SMS, FEE]), late_events)
def test_any_split_bills_the_same_as_once_and_never_refunds(terms: PriceTerms, events: list[Decimal]) -> None:
    billed, reached = 0, D(0)
    for amount in events:
        reached += amount
        part = adjustment(terms, reached, billed)
        assert part >= 0
        billed += part
    assert billed == rate(terms, reached).amount


@given(late_events, st.sampled_from([CALLS, TIERED, SMS, FEE, VOLUME]))
def test_the_order_in_which_events_come_does_not_matter(events: list[Decimal], terms: PriceTerms) -> None:
    for order in (events, sorted(events), sorted(events, reverse=True)):
        billed, reached = 0, D(0)
        for amount in order:
            reached += amount
            billed += adjustment(terms, reached, billed)
        assert billed == rate(terms, sum(events, D(0))).amount


@pytest.mark.parametrize(
    ("amounts", "credit", "settled"),
    [
        ([], 0, Settlement(0, 0)),
        ([500, -200], 0, Settlement(300, 0)),
        ([500, -700], 0, Settlement(0, 200)),
        ([500], 200, Settlement(300, 0)),
        ([100], 300, Settlement(0, 200)),
        ([-100], 300, Settlement(0, 400)),
    ],
)
def test_a_negative_balance_is_carried_as_credit(
    amounts: list[int], credit: int, settled: Settlement
) -> None:
    assert settle(amounts, credit) == settled


@given(st.lists(st.lists(st.integers(min_value=-(10**6), max_value=10**6), max_size=4), max_size=6))
def test_no_credit_is_lost_from_invoice_to_invoice(invoices: list[list[int]]) -> None:
    credit = paid = 0
    for amounts in invoices:
        due, credit = settle(amounts, credit)
        assert min(due, credit) == 0
        paid += due
    assert paid - credit == sum(map(sum, invoices))


def test_a_balance_beyond_the_column_is_refused() -> None:
    with pytest.raises(AmountTooLarge):
        settle([2**63 - 1, 1])
