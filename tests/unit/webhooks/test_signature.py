from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks.webhooks
import svix.webhooks
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.exceptions import InvalidPayload, InvalidSecret, SvcInfraError, VerificationFailed
from svc_infra.webhooks.signature import as_standard, new_secret, secret_key, sign, verify

# The published vector of the Standard Webhooks and Svix test suites.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
ALMOST = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OA="
ED25519 = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
NOW = datetime.fromtimestamp(TIMESTAMP, UTC)


def headers(signature: str = SIGNATURE, **changed: str) -> dict[str, str]:
    names = {"webhook_id": MESSAGE_ID, "webhook_timestamp": str(TIMESTAMP), "webhook_signature": signature}
    return {name.replace("_", "-"): value for name, value in (names | changed).items()}


def test_the_published_vector_is_signed_and_verified() -> None:
    assert sign(MESSAGE_ID, TIMESTAMP, BODY, [SECRET]) == SIGNATURE
    verify(headers(), BODY, [SECRET], now=NOW)


def test_every_valid_secret_signs_in_the_order_given() -> None:
    other = new_secret()
    value = sign(MESSAGE_ID, TIMESTAMP, BODY, [other, SECRET])
    assert value == f"{sign(MESSAGE_ID, TIMESTAMP, BODY, [other])} {SIGNATURE}"
    verify(headers(value), BODY, [SECRET], now=NOW)
    verify(headers(value), BODY, [other], now=NOW)
    verify(headers(SIGNATURE), BODY, [other, SECRET], now=NOW)


@pytest.mark.parametrize("name", ["Webhook-Id", "WEBHOOK-ID", "webhook-id"])
def test_header_names_are_compared_without_regard_to_case(name: str) -> None:
    given = headers()
    given[name] = given.pop("webhook-id")
    verify(given, BODY, [SECRET], now=NOW)


@pytest.mark.parametrize(
    "signature",
    [f"{ED25519} {SIGNATURE}", f"v2,abc {ALMOST} {SIGNATURE}", f"nonsense  {SIGNATURE}", f"v1, {SIGNATURE}"],
)
def test_other_signatures_in_the_header_are_passed_over(signature: str) -> None:
    verify(headers(signature), BODY, [SECRET], now=NOW)


@pytest.mark.parametrize(
    ("given", "body", "reason"),
    [
        (headers(ALMOST), BODY, "no signature matches"),
        (headers(ED25519), BODY, "no signature matches"),
        (headers(SIGNATURE.replace("v1,", "v2,")), BODY, "no signature matches"),
        (headers(SIGNATURE.removeprefix("v1,")), BODY, "no signature matches"),
        (headers("v1,"), BODY, "no signature matches"),
        (headers("v1,é"), BODY, "no signature matches"),
        (headers("v1,\ud800"), BODY, "no signature matches"),
        (headers(), BODY + b" ", "no signature matches"),
        (headers(), b"\xff\xfe", "no signature matches"),
        (headers(webhook_id="msg_other"), BODY, "no signature matches"),
        (headers(webhook_id="\ud800"), BODY, "no signature matches"),
        (headers(webhook_timestamp=str(TIMESTAMP + 1)), BODY, "no signature matches"),
        (headers(webhook_timestamp="1614265330.0"), BODY, "not a number"),
        (headers(webhook_timestamp="-1"), BODY, "not a number"),
        (headers(webhook_timestamp="١"), BODY, "not a number"),
        (headers(webhook_timestamp="9" * 40), BODY, "not a number"),
        (headers(webhook_id=""), BODY, "webhook-id is missing"),
        ({}, BODY, "webhook-id is missing"),
        ({"webhook-id": "a"}, BODY, "webhook-timestamp is missing"),
        ({"webhook-id": "a", "webhook-timestamp": "1"}, BODY, "webhook-signature is missing"),
    ],
)
def test_what_was_not_signed_is_refused_without_telling_more(
    given: dict[str, str], body: bytes, reason: str
) -> None:
    with pytest.raises(VerificationFailed, match=reason) as caught:
        verify(given, body, [SECRET], now=NOW)
    assert SIGNATURE.removeprefix("v1,") not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("age_seconds", [-300, 0, 300])
def test_a_timestamp_within_the_tolerance_is_accepted(age_seconds: int) -> None:
    verify(headers(), BODY, [SECRET], now=NOW + timedelta(seconds=age_seconds))


@pytest.mark.parametrize(("age_seconds", "reason"), [(301, "past"), (-301, "future")])
def test_a_timestamp_beyond_the_tolerance_is_refused(age_seconds: int, reason: str) -> None:
    with pytest.raises(VerificationFailed, match=reason):
        verify(headers(), BODY, [SECRET], now=NOW + timedelta(seconds=age_seconds))


def test_without_now_the_wall_clock_decides() -> None:
    with pytest.raises(VerificationFailed, match="past"):
        verify(headers(), BODY, [SECRET])


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        (SECRET, base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")),
        ("whsec_c2VrcmU", b"sekre"),
        ("whsec_c2VrcmU=", b"sekre"),
        ("sekrit", b"sekrit"),
        ("sekrét", "sekrét".encode()),
        ("c2VrcmU=", b"c2VrcmU="),
    ],
)
def test_a_secret_is_base64_after_its_prefix_and_text_otherwise(secret: str, key: bytes) -> None:
    assert secret_key(secret) == key
    assert secret_key(as_standard(secret)) == key


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "whsec_canary!", "whsec_é", "whsec_c2VrcmUcanary===", "whsk_canary", "canary\ud800"],
)
def test_a_secret_that_cannot_sign_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(InvalidSecret) as caught:
        sign(MESSAGE_ID, TIMESTAMP, BODY, [secret])
    assert "canary" not in str(caught.value)


def test_new_secrets_are_32_random_bytes() -> None:
    assert len({new_secret() for _ in range(20)}) == 20
    assert len(secret_key(new_secret())) == 32


def test_signing_or_verifying_without_a_secret_is_an_error() -> None:
    with pytest.raises(InvalidSecret):
        sign(MESSAGE_ID, TIMESTAMP, BODY, [])
    with pytest.raises(InvalidSecret):
        verify(headers(), BODY, [], now=NOW)


@pytest.mark.parametrize("message_id", ["", "msg.1"])
def test_an_id_that_would_blur_the_signed_content_is_refused(message_id: str) -> None:
    with pytest.raises(InvalidPayload):
        sign(message_id, TIMESTAMP, BODY, [SECRET])


secrets = st.binary(min_size=1, max_size=64).map(lambda key: "whsec_" + base64.b64encode(key).decode())
texts = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20)
# The libraries read the body as UTF-8 text.
bodies = st.text(st.characters(blacklist_categories=["Cs"])).map(str.encode)


@given(secrets | texts.filter(lambda text: not text.startswith("wh")), bodies)
def test_foreign_libraries_verify_what_we_sign(secret: str, body: bytes) -> None:
    timestamp = int(datetime.now(UTC).timestamp())
    given = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign("msg_1", timestamp, body, [new_secret(), secret]),
    }
    standardwebhooks.webhooks.Webhook(as_standard(secret)).verify(body, given, json_parse=False)
    svix.webhooks.Webhook(as_standard(secret)).verify(body, given)


@given(secrets, bodies)
def test_we_verify_what_foreign_libraries_sign(secret: str, body: bytes) -> None:
    at = datetime.now(UTC)
    signature = standardwebhooks.webhooks.Webhook(secret).sign("msg_1", at, body.decode())
    given = {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(int(at.timestamp())),
        "Webhook-Signature": signature,
    }
    verify(given, body, [secret])


def test_foreign_libraries_refuse_a_changed_body() -> None:
    timestamp = int(datetime.now(UTC).timestamp())
    given = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign("msg_1", timestamp, BODY, [SECRET]),
    }
    with pytest.raises(standardwebhooks.webhooks.WebhookVerificationError):
        standardwebhooks.webhooks.Webhook(SECRET).verify(BODY + b" ", given)
    with pytest.raises(svix.webhooks.WebhookVerificationError):
        svix.webhooks.Webhook(SECRET).verify(BODY + b" ", given)


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=30)), st.binary(max_size=20))
def test_hostile_input_ends_in_our_errors_only(given: dict[str, str], body: bytes) -> None:
    with pytest.raises(SvcInfraError):
        verify(headers("v1,x") | given, body, [SECRET], now=NOW)


def test_a_secret_without_its_list_is_an_error_and_not_a_list_of_letters() -> None:
    forged = {"webhook-id": "msg_1", "webhook-timestamp": str(int(datetime.now(UTC).timestamp()))}
    forged["webhook-signature"] = sign("msg_1", int(forged["webhook-timestamp"]), b"{}", ["w"])
    with pytest.raises(InvalidSecret, match="list"):
        verify(forged, b"{}", new_secret())
    with pytest.raises(InvalidSecret, match="list"):
        sign("msg_1", 1, b"{}", "sekrit")
