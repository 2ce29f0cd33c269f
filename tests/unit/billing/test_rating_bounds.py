from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.billing.rating import capped, minimum_commitment, true_up
from svc_infra.exceptions import AmountTooLarge

amounts = st.integers(min_value=0, max_value=10**9)
ratios = st.fractions(min_value=0, max_value=1)


@pytest.mark.parametrize(
    ("amount", "maximum", "previous", "charged"),
    [(50, 100, 70, 30), (50, 100, 0, 50), (150, 100, 0, 100), (5, 100, 100, 0), (5, 100, 120, 0)],
)
def test_a_cap_counts_what_was_billed_before(amount: int, maximum: int, previous: int, charged: int) -> None:
    assert capped(amount, maximum, previous) == charged


@given(st.lists(amounts, max_size=6), amounts)
def test_capped_lines_add_up_to_the_capped_sum(lines: list[int], maximum: int) -> None:
    billed = 0
    for line in lines:
        billed += capped(line, maximum, billed)
    assert billed == min(sum(lines), maximum)


@pytest.mark.parametrize(
    ("billed", "minimum", "ratio", "missing"),
    [
        (5000, "10000", "1", 5000),
        (10000, "10000", "1", 0),
        (10001, "10000", "1", 0),
        (0, "10000", "1/3", 3333),
        (3333, "10000", "1/3", 0),
        (0, "0.5", "1", 1),
    ],
)
def test_a_true_up_completes_the_line_to_the_minimum(
    billed: int, minimum: str, ratio: str, missing: int
) -> None:
    assert true_up(billed, Decimal(minimum), ratio=Fraction(ratio)) == missing


@given(amounts, amounts, amounts, ratios)
def test_plan_usage_and_true_up_reach_the_commitment_exactly(
    plan: int, commitment: int, usage: int, ratio: Fraction
) -> None:
    made = minimum_commitment(plan, commitment, usage_billed=usage, ratio=ratio)
    assert made.true_up >= 0
    assert made.plan + usage + made.true_up == max(made.plan + usage, made.commitment)


def test_a_minimum_beyond_the_column_is_refused() -> None:
    with pytest.raises(AmountTooLarge):
        true_up(0, Decimal(2**63))
