"""How many requests an endpoint gets at once, and how fast."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from svc_infra.webhooks.claimed_delivery import ClaimedDelivery
from svc_infra.webhooks.delivery import Answer, EndpointTarget, SendFailure, SendResult, is_overload
from svc_infra.webhooks.lanes import Lane, Lanes
from svc_infra.webhooks.message import Message

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def delivery(number: int = 0, **options: float | int | None) -> ClaimedDelivery:
    message = Message(f"msg_{number}", "a.b", None, b"{}", NOON)
    target = EndpointTarget("https://a.test/", ("sekrit",))
    caps = {"rate_per_second": None, "in_flight_cap": None, **options}
    return ClaimedDelivery(str(number), "lease", 1, "e1", message, target, **caps)  # type: ignore[arg-type]  # mixed


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Answer(429, None, b"", 1), True),
        (Answer(502, None, b"", 1), True),
        (Answer(504, None, b"", 1), True),
        (SendFailure("timeout", "", 1), True),
        (Answer(500, None, b"", 1), False),
        (SendFailure("connect_error", "", 1), False),
        (Answer(204, None, b"", 1), False),
    ],
)
def test_too_many_requests_bad_gateways_and_timeouts_are_overload(result: SendResult, expected: bool) -> None:
    assert is_overload(result) is expected


def test_overload_halves_what_is_sent_at_once_and_successes_bring_it_back() -> None:
    lane = Lane(8, 8)
    allowed = []
    for _ in range(4):
        lane.adapt(is_delivered=False, was_quick=False, is_overloaded=True)
        allowed.append(lane.senders_allowed)
    assert allowed == [4, 2, 1, 1]
    assert lane.window == 1
    successes = 0
    while lane.slowed_to is not None:
        lane.adapt(is_delivered=True, was_quick=True, is_overloaded=False)
        successes += 1
    assert lane.senders_allowed == 8
    assert 20 < successes < 60  # carefully, not at the first success


def test_an_ordinary_failure_slows_nothing_down() -> None:
    lane = Lane(8, 8)
    lane.adapt(is_delivered=False, was_quick=True, is_overloaded=False)
    assert lane.senders_allowed == 8


def test_places_in_a_rate_follow_each_other_evenly() -> None:
    lane = Lane(8, 8, rate_per_second=4.0)
    assert [lane.next_slot(100.0) for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert lane.next_slot(200.0) == 0.0  # what was not used is not saved up
    assert lane.next_slot(200.0) == 0.25
    assert Lane(8, 8).next_slot(100.0) == 0.0


def test_an_endpoints_own_caps_hold_from_its_first_deliveries_on() -> None:
    lanes = Lanes(8)
    (lane,) = lanes.put([delivery(in_flight_cap=2, rate_per_second=0.5)], {}, send_before=1.0)
    assert (lane.senders_allowed, lane.window) == (2, 1)
    assert lanes.allowances(0.0) == {"e1": 0}

    lanes.put([delivery(1, in_flight_cap=None)], {"e1": 1}, send_before=1.0)
    assert lane.senders_allowed == 8


def test_a_slow_rate_lets_nothing_be_claimed_long_before_its_place_in_it() -> None:
    lane = Lane(8, 8, rate_per_second=0.01)
    assert lane.free(100.0) == 1
    assert lane.next_slot(100.0) == 0.0
    assert [lane.free(now) for now in (100.0, 197.9, 198.1, 200.0, 300.0)] == [0, 0, 1, 1, 1]


def test_a_rate_lets_what_gets_its_place_soon_be_claimed_ahead() -> None:
    lane = Lane(8, 20, rate_per_second=4.0)
    assert lane.free(0.0) == 9
    assert [lane.next_slot(0.0) for _ in range(8)] == [0.25 * n for n in range(8)]
    assert [lane.free(now) for now in (0.0, 1.0, 2.0)] == [1, 5, 9]
