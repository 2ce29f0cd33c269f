"""Published amounts of billing vendors, one test per case, through the public billing functions.

The file is the one that ``GOLDEN_CASES`` names, or the copy beside this test. A case is skipped by its
(model, klass) only; a model that nobody has listed, or an input key that its runner does not know, fails.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.golden.case_inputs import Case
from tests.golden.runners import RUNNERS

CASES: list[Case] = json.loads(
    Path(os.environ.get("GOLDEN_CASES") or Path(__file__).with_name("golden_cases.json")).read_text("utf-8")
)

KLASSES = ("core", "optional", "policy")
# The models of the case file that come later, with the reason.
NOT_BUILT_BY_REASON = {
    "tiers over prorated levels come later": "graduated_prorated_recurring",
    "taxes, discounts, blocks and mark-ups are out of scope": """
        tax usage_discount coupons_sequential coupon_and_tax_allocation allocation credit_note_proration
        invoice_total maximum_with_discount tiered_blocks_all tiered_blocks_top dynamic_markup
    """,
}
NOT_BUILT: dict[tuple[str, str], str] = {
    (model, klass): reason
    for reason, models in NOT_BUILT_BY_REASON.items()
    for model in models.split()
    for klass in KLASSES
}


def run_case(case: Case) -> None:
    identity = (case["model"], case["klass"])
    if identity in NOT_BUILT:
        pytest.skip(f"{identity[0]} ({identity[1]}): {NOT_BUILT[identity]}")
    assert case["model"] in RUNNERS, f"nobody runs the model {case['model']!r}"
    runner, known_keys = RUNNERS[case["model"]]
    unknown = case["inputs"].keys() - known_keys
    assert not unknown, f"the runner of {case['model']!r} does not know the inputs {sorted(unknown)}"
    runner(case["inputs"], case["expected"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_golden_case(case: Case) -> None:
    run_case(case)


def test_the_file_has_cases_that_are_run() -> None:
    assert any(case["model"] in RUNNERS for case in CASES)


def test_a_model_is_either_run_or_listed_as_not_built() -> None:
    assert not RUNNERS.keys() & {model for model, _ in NOT_BUILT}


def test_an_unknown_model_fails() -> None:
    case = {"id": "x", "model": "barter", "klass": "core", "inputs": {}, "expected": {}}
    with pytest.raises(AssertionError, match="nobody runs the model 'barter'"):
        run_case(case)


def test_an_unknown_input_key_fails() -> None:
    inputs = {"quantity": "1", "unit_price": "1", "currency": "USD", "free_units": "1"}
    case = {"id": "x", "model": "per_unit", "klass": "core", "inputs": inputs, "expected": {"amount": "1"}}
    with pytest.raises(AssertionError, match="free_units"):
        run_case(case)


def test_a_wrong_amount_fails() -> None:
    inputs = {"quantity": "1", "unit_price": "1", "currency": "USD"}
    case = {"id": "x", "model": "per_unit", "klass": "core", "inputs": inputs, "expected": {"amount": "2"}}
    with pytest.raises(AssertionError):
        run_case(case)
