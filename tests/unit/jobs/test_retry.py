from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.exceptions import InvalidSettings
from svc_infra.jobs.retry import RetryPolicy


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [(1, 2), (2, 4), (3, 8), (11, 2048), (12, 3600), (20, 3600), (1_000_000, 3600)],
)
def test_the_delay_doubles_up_to_the_cap(attempt: int, seconds: int) -> None:
    assert RetryPolicy(jitter=0).delay(attempt, Random(1)) == timedelta(seconds=seconds)


@given(st.integers(1, 10_000), st.integers(), st.floats(0, 1))
def test_jitter_only_lengthens_and_is_bounded(attempt: int, seed: int, jitter: float) -> None:
    plain = RetryPolicy(jitter=0).delay(attempt, Random(0))
    delay = RetryPolicy(jitter=jitter).delay(attempt, Random(seed))
    assert plain <= delay <= plain * (1 + jitter) + timedelta(microseconds=1)


def test_jitter_spreads() -> None:
    rng = Random(7)
    assert len({RetryPolicy().delay(3, rng) for _ in range(50)}) > 40


@pytest.mark.parametrize(
    "fields",
    [
        {"max_attempts": 0},
        {"base_seconds": 0},
        {"base_seconds": 10, "cap_seconds": 5},
        {"factor": 0.5},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"base_seconds": float("nan")},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings):
        RetryPolicy(**fields)
