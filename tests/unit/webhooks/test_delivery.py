from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.exceptions import InvalidSecret, InvalidSettings
from svc_infra.webhooks.delivery import (
    Answer,
    AttemptOutcome,
    EndpointTarget,
    RetrySchedule,
    SendFailure,
    SendResult,
    Verdict,
    judge,
    prepare,
)
from svc_infra.webhooks.message import Message
from svc_infra.webhooks.signature import new_secret, verify

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLAIN = RetrySchedule(jitter=0)
MESSAGE = Message("msg_1", "billing.invoice.created", "t1", b'{"type":"x"}', NOW - timedelta(days=30))
SECRETS = (new_secret(), "sekrit")


def answer(status: int, retry_after: str | None = None) -> Answer:
    return Answer(status, retry_after, b"", 12)


def judged(result: SendResult, attempt: int = 1, schedule: RetrySchedule = PLAIN) -> Verdict:
    return judge(result, attempt=attempt, now=NOW, schedule=schedule, rng=Random(1))


def wait_after(retry_after: str, attempt: int = 1) -> timedelta:
    run_at = judged(answer(503, retry_after), attempt).run_at
    assert run_at is not None
    return run_at - NOW


@pytest.mark.parametrize(
    ("result", "state", "outcome"),
    [
        (answer(200), "delivered", AttemptOutcome.SUCCESS),
        (answer(204), "delivered", AttemptOutcome.SUCCESS),
        (answer(299), "delivered", AttemptOutcome.SUCCESS),
        (answer(301), "retry", AttemptOutcome.REDIRECT),
        (answer(304), "retry", AttemptOutcome.REDIRECT),
        (answer(307), "retry", AttemptOutcome.REDIRECT),
        (answer(400), "retry", AttemptOutcome.CLIENT_ERROR),
        (answer(404), "retry", AttemptOutcome.CLIENT_ERROR),
        (answer(410), "dead", AttemptOutcome.GONE),
        (answer(429), "retry", AttemptOutcome.THROTTLED),
        (answer(500), "retry", AttemptOutcome.SERVER_ERROR),
        (answer(599), "retry", AttemptOutcome.SERVER_ERROR),
        (answer(101), "retry", AttemptOutcome.PROTOCOL_ERROR),
        (answer(999), "retry", AttemptOutcome.PROTOCOL_ERROR),
        (SendFailure("timeout", "", 30_000), "retry", AttemptOutcome.TIMEOUT),
        (SendFailure("connect_error", "", 1), "retry", AttemptOutcome.CONNECT_ERROR),
        (SendFailure("refused_address", "", 1), "retry", AttemptOutcome.REFUSED_ADDRESS),
        (SendFailure("tls_error", "", 1), "retry", AttemptOutcome.TLS_ERROR),
        (SendFailure("protocol_error", "", 1), "retry", AttemptOutcome.PROTOCOL_ERROR),
        (SendFailure("invalid_request", "", 1), "retry", AttemptOutcome.INVALID_REQUEST),
        (SendFailure("success", "", 1), "retry", AttemptOutcome.PROTOCOL_ERROR),
    ],
)
def test_each_result_has_its_state_and_class(result: SendResult, state: str, outcome: AttemptOutcome) -> None:
    verdict = judged(result)
    assert (verdict.state, verdict.outcome) == (state, outcome)
    assert (verdict.run_at is not None) == (state == "retry")
    assert verdict.disable_endpoint == (outcome is AttemptOutcome.GONE)


def test_the_default_schedule_is_that_of_standard_webhooks() -> None:
    waits = [PLAIN.delay_before(attempt) for attempt in range(1, PLAIN.max_attempts + 1)]
    assert len(waits) == 10
    assert waits[:4] == [timedelta(0), timedelta(seconds=5), timedelta(minutes=5), timedelta(minutes=30)]
    assert sum(waits, timedelta(0)) == timedelta(hours=75, minutes=35, seconds=5)


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 5), (2, 300), (9, 86_400)])
def test_a_failed_attempt_waits_as_the_schedule_says(attempt: int, seconds: int) -> None:
    assert judged(answer(500), attempt).run_at == NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize("result", [answer(500), answer(429, "60"), SendFailure("timeout", "", 1)])
@pytest.mark.parametrize("attempt", [10, 11])
def test_after_the_last_attempt_the_delivery_is_dead_and_the_endpoint_stays(
    result: SendResult, attempt: int
) -> None:
    verdict = judged(result, attempt)
    assert (verdict.state, verdict.run_at, verdict.disable_endpoint) == ("dead", None, False)


def test_the_last_attempt_can_still_succeed() -> None:
    assert judged(answer(200), 10).state == "delivered"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", timedelta(seconds=120)),
        (" 120 ", timedelta(seconds=120)),
        ("0", timedelta(seconds=5)),
        ("86400", timedelta(hours=24)),
        ("86401", timedelta(hours=24)),
        ("9" * 400, timedelta(hours=24)),
        (format_datetime(NOW + timedelta(minutes=7), usegmt=True), timedelta(minutes=7)),
        ("Thursday, 01-Jan-26 00:07:00 GMT", timedelta(minutes=7)),
        ("Thu Jan  1 00:07:00 2026", timedelta(minutes=7)),
        (format_datetime(NOW + timedelta(days=7), usegmt=True), timedelta(hours=24)),
        (format_datetime(NOW - timedelta(days=7), usegmt=True), timedelta(seconds=5)),
        ("-5", timedelta(seconds=5)),
        ("1.5", timedelta(seconds=5)),
        ("soon", timedelta(seconds=5)),
        ("٣", timedelta(seconds=5)),
        ("", timedelta(seconds=5)),
    ],
)
def test_retry_after_is_a_floor_up_to_a_day(value: str, expected: timedelta) -> None:
    assert wait_after(value) == expected


def test_retry_after_never_shortens_the_schedule() -> None:
    assert wait_after("1", attempt=3) == timedelta(minutes=30)


def test_a_retry_after_date_is_read_by_the_wall_clock() -> None:
    simulated = NOW - timedelta(days=10_000)
    verdict = judge(
        answer(503, format_datetime(NOW + timedelta(minutes=7), usegmt=True)),
        attempt=1,
        now=simulated,
        wall_now=NOW,
        schedule=PLAIN,
        rng=Random(1),
    )
    assert verdict.run_at == simulated + timedelta(minutes=7)


@given(st.integers(1, 9), st.integers(), st.text(max_size=40) | st.integers(0, 10**6).map(str))
def test_jitter_only_lengthens_by_at_most_a_fifth(attempt: int, seed: int, retry_after: str) -> None:
    result = answer(503, retry_after)
    plain = judge(result, attempt=attempt, now=NOW, schedule=PLAIN, rng=Random(seed)).run_at
    spread = judge(result, attempt=attempt, now=NOW, schedule=RetrySchedule(), rng=Random(seed)).run_at
    assert plain is not None
    assert spread is not None
    assert plain <= spread <= NOW + (plain - NOW) * 1.2
    assert plain >= NOW + PLAIN.delay_before(attempt + 1)


@pytest.mark.parametrize(
    ("delays", "jitter"), [((), 0.1), ((-1,), 0.1), ((float("nan"),), 0.1), ((1,), 0.3), ((1,), -0.1)]
)
def test_a_schedule_that_makes_no_sense_is_refused(delays: tuple[float, ...], jitter: float) -> None:
    with pytest.raises(InvalidSettings):
        RetrySchedule(delays, jitter)


def test_a_request_carries_the_message_bytes_and_verifies_with_every_secret() -> None:
    request = prepare(MESSAGE, EndpointTarget("https://x.test/", SECRETS), now=NOW, user_agent="svc/1")
    assert request.url == "https://x.test/"
    assert request.body is MESSAGE.body
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == "svc/1"
    for secret in SECRETS:
        verify(request.headers, request.body, [secret], now=NOW)


def test_each_attempt_is_stamped_and_signed_anew_with_the_same_id() -> None:
    target = EndpointTarget("https://x.test/", SECRETS)
    first = prepare(MESSAGE, target, now=NOW, user_agent="svc/1")
    second = prepare(MESSAGE, target, now=NOW + timedelta(hours=5), user_agent="svc/1")
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == "msg_1"
    assert first.headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    assert second.headers["webhook-timestamp"] == str(int(NOW.timestamp()) + 5 * 3600)
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]


def test_an_endpoints_own_headers_cannot_change_the_framing_or_the_identity() -> None:
    own = {
        "X-Api-Key": "k",
        "Host": "evil",
        "Content-Length": "0",
        "TRANSFER-ENCODING": "chunked",
        "Content-Type": "text/plain",
        "User-Agent": "other",
        "Webhook-Id": "msg_2",
        "webhook-anything": "x",
        "Proxy-Authorization": "x",
        "Cookie": "x",
    }
    request = prepare(MESSAGE, EndpointTarget("https://x.test/", SECRETS, own), now=NOW, user_agent="svc/1")
    assert set(request.headers) == {
        "x-api-key",
        "content-type",
        "user-agent",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    }
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "msg_1"


def test_an_endpoint_without_a_secret_cannot_be_sent_to() -> None:
    with pytest.raises(InvalidSecret):
        prepare(MESSAGE, EndpointTarget("https://x.test/", ()), now=NOW, user_agent="svc/1")


def test_neither_secret_nor_signature_is_in_a_repr() -> None:
    target = EndpointTarget("https://x.test/", SECRETS, {"authorization": "canary"})
    request = prepare(MESSAGE, target, now=NOW, user_agent="svc/1")
    for shown in (repr(target), repr(request)):
        assert "sekrit" not in shown
        assert "canary" not in shown
        assert "v1," not in shown
