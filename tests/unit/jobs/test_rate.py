"""Rates: however starts fall, no stretch of time has more than allowed, and each comes back in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.exceptions import InvalidSettings
from svc_infra.jobs.kind import JobKind
from svc_infra.jobs.limit import Limit
from svc_infra.jobs.rate import Rate, next_start_at, starts_left, with_starts

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@given(
    starts=st.integers(1, 5),
    per_seconds=st.sampled_from([0.5, 1.0, 60.0, 3_600.0]),
    steps=st.lists(st.tuples(st.floats(0, 0.6), st.integers(1, 6)), min_size=1, max_size=40),
)
def test_no_stretch_has_more_starts_than_allowed_and_each_comes_back_within_a_hundredth(
    starts: int, per_seconds: float, steps: list[tuple[float, int]]
) -> None:
    started: list[list[int]] = []
    history: list[datetime] = []
    now = NOW
    stretch = timedelta(seconds=per_seconds)
    for part, wanted in steps:
        now += part * stretch
        left = starts_left(started, starts, per_seconds, now=now)
        really_left = starts - sum(at > now - stretch for at in history)
        late = starts - sum(at > now - 1.02 * stretch for at in history)
        assert late <= left <= really_left
        history += [now] * min(left, wanted)
        started = with_starts(started, min(left, wanted), per_seconds, now=now, kept_seconds=per_seconds)
        assert len(started) <= 102
        free_at = next_start_at(started, starts, per_seconds, now=now)
        assert starts_left(started, starts, per_seconds, now=free_at) > 0
        assert free_at == now or starts_left(started, starts, per_seconds, now=now) == 0


def test_a_clock_set_back_lets_nothing_more_start() -> None:
    started = with_starts([], 2, 60, now=NOW, kept_seconds=60)
    assert starts_left(started, 2, 60, now=NOW - timedelta(seconds=30)) == 0


@pytest.mark.parametrize("fields", [(0, 1), (1, 0), (1, float("nan")), (1, 1e9)])
def test_a_rate_that_makes_no_sense_is_refused(fields: tuple[int, float]) -> None:
    with pytest.raises(InvalidSettings, match="a rate"):
        Rate(*fields)


def test_limit_and_rate_go_by_one_key() -> None:
    with pytest.raises(InvalidSettings, match="different keys"):
        JobKind("n", limit=Limit(1), rate=Rate(1, per_seconds=1, field="account"))
