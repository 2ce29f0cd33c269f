from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.jobs.job import FINISHED, Job, JobState
from svc_infra.jobs.outcome import (
    MAX_ERROR_BYTES,
    Cancel,
    Complete,
    Discard,
    Retry,
    Snooze,
    Transition,
    decide,
    render_error,
)
from svc_infra.jobs.retry import RetryPolicy

NOW = datetime(2025, 1, 1, tzinfo=UTC)
POLICY = RetryPolicy(jitter=0)
HOUR = timedelta(hours=1)


def job(attempt: int = 1, max_attempts: int = 3) -> Job:
    return Job(
        id="j1",
        name="job",
        payload={},
        run_at=NOW,
        created_at=NOW,
        attempt=attempt,
        max_attempts=max_attempts,
        lease_id="l1",
    )


def decided(ending: Any, attempt: int = 1, max_attempts: int = 3) -> Transition:
    return decide(job(attempt, max_attempts), ending, now=NOW, policy=POLICY, rng=Random(1))


@pytest.mark.parametrize(
    ("ending", "attempt", "expected"),
    [
        (None, 1, Transition(JobState.COMPLETED, None, 1, None, NOW)),
        (Complete(), 3, Transition(JobState.COMPLETED, None, 3, None, NOW)),
        (Snooze(HOUR), 1, Transition(JobState.AVAILABLE, NOW + HOUR, 0, None, None)),
        (Snooze(HOUR), 3, Transition(JobState.AVAILABLE, NOW + HOUR, 2, None, None)),
        (Discard("no such tenant"), 1, Transition(JobState.DISCARDED, None, 1, "no such tenant", NOW)),
        (Cancel("not wanted"), 1, Transition(JobState.CANCELLED, None, 1, "not wanted", NOW)),
        (Retry(HOUR, "busy"), 2, Transition(JobState.AVAILABLE, NOW + HOUR, 2, "busy", None)),
        (Retry(error="x"), 2, Transition(JobState.AVAILABLE, NOW + timedelta(seconds=4), 2, "x", None)),
        (Retry(HOUR, "busy"), 3, Transition(JobState.DISCARDED, None, 3, "busy", NOW)),
        (
            ValueError("no"),
            1,
            Transition(JobState.AVAILABLE, NOW + timedelta(seconds=2), 1, "ValueError: no", None),
        ),
        (ValueError("no"), 3, Transition(JobState.DISCARDED, None, 3, "ValueError: no", NOW)),
        (ValueError("no"), 4, Transition(JobState.DISCARDED, None, 4, "ValueError: no", NOW)),
        (KeyboardInterrupt(), 3, Transition(JobState.DISCARDED, None, 3, "KeyboardInterrupt", NOW)),
    ],
)
def test_each_ending_leads_to_its_state(ending: Any, attempt: int, expected: Transition) -> None:
    assert decided(ending, attempt) == expected


def test_what_is_no_outcome_fails_the_attempt() -> None:
    transition = decided(True)
    assert transition.state is JobState.AVAILABLE
    assert transition.error == "the handler returned a bool; return None or an outcome"


@pytest.mark.parametrize("ending", [Snooze(-HOUR), Retry(-HOUR)])
def test_a_delay_into_the_past_means_at_once(ending: Any) -> None:
    assert decided(ending).run_at == NOW


def test_a_boundless_delay_stays_within_what_a_column_holds() -> None:
    run_at = decided(Snooze(timedelta.max)).run_at
    assert run_at is not None
    assert run_at.year < 2200


endings = st.one_of(
    st.none(),
    st.just(Complete()),
    st.builds(Retry, st.none() | st.timedeltas(), st.text(max_size=20)),
    st.builds(Snooze, st.timedeltas()),
    st.builds(Discard, st.text(max_size=20)),
    st.builds(Cancel, st.text(max_size=20)),
    st.builds(RuntimeError, st.text(max_size=20)),
    st.integers(),
)


@given(endings, st.integers(1, 40), st.integers(1, 40), st.integers())
def test_a_job_is_either_due_again_or_finished(ending: Any, attempt: int, limit: int, seed: int) -> None:
    transition = decide(job(attempt, limit), ending, now=NOW, policy=RetryPolicy(), rng=Random(seed))
    if transition.state in FINISHED:
        assert transition.run_at is None
        assert transition.finished_at == NOW
    else:
        assert transition.state is JobState.AVAILABLE
        assert transition.run_at is not None
        assert transition.run_at >= NOW
        assert transition.finished_at is None
        assert transition.attempt < limit or isinstance(ending, Snooze)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("boom")


def test_an_error_is_its_type_and_message_without_module_or_traceback() -> None:
    class PaymentRefused(Exception):
        pass

    with pytest.raises(PaymentRefused) as caught:
        raise PaymentRefused("card expired") from ValueError("inner")
    text = render_error(caught.value)
    assert text.endswith("PaymentRefused: card expired")
    assert "Traceback" not in text
    assert "inner" not in text


def test_an_error_that_cannot_be_printed_is_still_named() -> None:
    assert render_error(Unprintable()).startswith("Unprintable: ")


def test_a_long_error_is_cut_at_a_character_within_the_limit() -> None:
    text = render_error(ValueError("é" * 5_000))
    assert MAX_ERROR_BYTES - 1 <= len(text.encode()) <= MAX_ERROR_BYTES


def test_an_error_is_made_storable() -> None:
    assert render_error(ValueError("a\x00b\ud800c")) == "ValueError: a\ufffdb?c"
    assert decided(Discard("\x00")).error == "\ufffd"
