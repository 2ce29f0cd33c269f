"""The models about time: proration, trials, period starts and local days."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction

from svc_infra.billing.money import percent_of
from svc_infra.billing.periods import interval_start, local_day, zone
from svc_infra.billing.proration import (
    Change,
    change_interval,
    change_plan,
    prorate,
    remaining_ratio,
    trial_end,
)
from tests.golden.case_inputs import Case, fixed, instant, matches, minor, period_of


def proration_fraction(inputs: Case, expected: Case) -> None:
    matches({"amount": fixed(inputs, "price", Fraction(inputs["fraction"]))}, inputs, expected)


def proration_start(inputs: Case, expected: Case) -> None:
    fee = prorate(minor(inputs, "price"), remaining_ratio(period_of(inputs), instant(inputs["start"]), UTC))
    tax = percent_of(fee, Decimal(inputs.get("tax_percent") or 0))
    matches({"amount": fee, "fee": fee, "tax": tax, "total": fee + tax}, inputs, expected)


def plan_change(inputs: Case, expected: Case) -> None:
    change_matches(
        change_plan(minor(inputs, "old_price"), minor(inputs, "new_price"), remaining(inputs)),
        inputs,
        expected,
    )


def interval_change(inputs: Case, expected: Case) -> None:
    change_matches(
        change_interval(minor(inputs, "old_price"), minor(inputs, "new_price"), remaining(inputs)),
        inputs,
        expected,
    )


def change_matches(change: Change, inputs: Case, expected: Case) -> None:
    matches({"credit": change.credit, "charge": change.charge, "net": change.net}, inputs, expected)


def remaining(inputs: Case) -> Fraction:
    if "remaining_fraction" in inputs:
        return Fraction(inputs["remaining_fraction"])
    return remaining_ratio(period_of(inputs), instant(inputs["change_at"]), UTC)


def trial(inputs: Case, expected: Case) -> None:
    begins = [instant(inputs[name]) for name in ("start", "trial_end") if name in inputs]
    if "trial_days" in inputs:
        begins.append(trial_end(instant(inputs["start"]), int(inputs["trial_days"]), UTC))
    billed_from = max(begins)
    ratio = remaining_ratio(period_of(inputs), billed_from, UTC)
    matches({"amount": prorate(minor(inputs, "price"), ratio)}, inputs, expected)


def period_boundary(inputs: Case, expected: Case) -> None:
    anchor = date.fromisoformat(inputs["anchor"])
    starts = [interval_start(anchor, inputs["interval"], index) for index in range(int(inputs["count"]))]
    assert [start.isoformat() for start in starts] == expected["starts"]


def local_date(inputs: Case, expected: Case) -> None:
    at = datetime.fromisoformat(inputs["instant"])
    assert local_day(at, zone(inputs["timezone"])).isoformat() == expected["local_date"]
