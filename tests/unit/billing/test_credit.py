from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.billing.allocation import allocate
from svc_infra.billing.credit import CreditableLine, credit_amount, credit_lines, credit_whole, creditable
from svc_infra.exceptions import AmountTooLarge, NotFound

weights = st.lists(st.integers(min_value=0, max_value=10**9), min_size=1, max_size=8)


@st.composite
def invoices(draw: st.DrawFn) -> list[CreditableLine]:
    """Lines of which earlier credit notes took some back; a line may be an adjustment below zero."""
    amounts = draw(st.lists(st.integers(min_value=-(10**4), max_value=10**6), min_size=1, max_size=6))
    return [
        CreditableLine(amount, draw(st.integers(min_value=0, max_value=max(0, amount)))) for amount in amounts
    ]


@given(weights, st.integers(min_value=0, max_value=10**12))
def test_shares_add_up_and_are_within_a_unit_of_exact(shares_of: list[int], amount: int) -> None:
    whole = sum(shares_of)
    amount = amount if whole else 0
    shares = allocate(amount, shares_of)
    assert sum(shares) == amount
    for share, weight in zip(shares, shares_of, strict=True):
        assert share >= 0
        assert abs(share - (Fraction(amount * weight, whole) if whole else 0)) < 1


@pytest.mark.parametrize(
    ("amount", "parts", "shares"),
    [(1000, [6000, 4000], [600, 400]), (100, [1, 1, 1], [34, 33, 33]), (5, [0, 3], [0, 5]), (0, [0], [0])],
)
def test_the_largest_remainders_get_the_odd_units(amount: int, parts: list[int], shares: list[int]) -> None:
    assert allocate(amount, parts) == shares


@pytest.mark.parametrize(("amount", "parts"), [(-1, [1]), (1, [-1, 2]), (1, [0]), (1, [])])
def test_what_cannot_be_divided_is_refused(amount: int, parts: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot divide"):
        allocate(amount, parts)


@given(invoices(), st.data())
def test_credit_notes_never_exceed_what_is_left_until_nothing_is(
    lines: list[CreditableLine], data: st.DataObject
) -> None:
    left = creditable(lines)
    some = data.draw(st.integers(min_value=0, max_value=left))
    first = credit_amount(lines, some)
    assert sum(first) == some
    after = [
        CreditableLine(line.amount, line.credited + credit) for line, credit in zip(lines, first, strict=True)
    ]
    assert creditable(after) == left - some
    rest = credit_whole(after)
    assert sum(rest) == left - some
    for line, *credits in zip(lines, first, rest, strict=True):
        assert min(credits) >= 0
        assert sum(credits) <= line.left


def test_crediting_the_whole_gives_back_what_was_charged() -> None:
    lines = [CreditableLine(1000), CreditableLine(-200), CreditableLine(500, credited=100)]
    assert credit_whole(lines) == [857, 0, 343]  # 1200 over 1000 and 400
    assert creditable([CreditableLine(-5)]) == 0


def test_chosen_lines_are_credited_in_part_or_whole() -> None:
    lines = [CreditableLine(1000), CreditableLine(500, credited=100), CreditableLine(7)]
    assert credit_lines(lines, {0: 250, 1: None}) == [250, 400, 0]


@pytest.mark.parametrize("amounts", [{0: 1001}, {0: -1}, {1: 401}])
def test_more_than_is_left_of_a_line_is_refused(amounts: dict[int, int | None]) -> None:
    with pytest.raises(AmountTooLarge, match="left of line"):
        credit_lines([CreditableLine(1000), CreditableLine(500, credited=100)], amounts)


def test_more_than_is_left_of_the_invoice_is_refused() -> None:
    lines = [CreditableLine(1000), CreditableLine(-200)]
    with pytest.raises(AmountTooLarge, match="left of the invoice"):
        credit_lines(lines, {0: 900})
    with pytest.raises(AmountTooLarge, match="left of the invoice"):
        credit_amount(lines, 801)


@pytest.mark.parametrize("position", [-1, 1])
def test_a_line_that_the_invoice_does_not_have_is_refused(position: int) -> None:
    with pytest.raises(NotFound, match="no line"):
        credit_lines([CreditableLine(1)], {position: None})
