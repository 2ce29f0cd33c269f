from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
import standardwebhooks.webhooks
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from svc_infra.exceptions import InvalidSecret, VerificationFailed
from svc_infra.webhooks.ed25519 import new_private_key, public_key
from svc_infra.webhooks.signature import as_standard, check_secret, new_secret, sign, verify

# The published vector of the Standard Webhooks and Svix test suites.
PRIVATE = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
SEED_ALONE = "whsk_" + base64.b64encode(base64.b64decode(PRIVATE[5:])[:32]).decode()
HMAC_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
V1 = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
V1A = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
NOW = datetime.fromtimestamp(TIMESTAMP, UTC)


def headers(signature: str, timestamp: int = TIMESTAMP) -> dict[str, str]:
    return {"webhook-id": MESSAGE_ID, "webhook-timestamp": str(timestamp), "webhook-signature": signature}


@pytest.mark.parametrize("private", [PRIVATE, SEED_ALONE, PRIVATE.rstrip("=")])
def test_the_published_vector_is_signed_and_verified(private: str) -> None:
    assert public_key(private) == PUBLIC
    assert sign(MESSAGE_ID, TIMESTAMP, BODY, [private]) == V1A
    verify(headers(V1A), BODY, [PUBLIC], now=NOW)
    verify(headers(V1A), BODY, [private], now=NOW)


def test_both_schemes_sign_side_by_side_and_each_verifies_alone() -> None:
    value = sign(MESSAGE_ID, TIMESTAMP, BODY, [HMAC_SECRET, PRIVATE])
    assert value == f"{V1} {V1A}"
    for secrets in ([HMAC_SECRET], [PUBLIC], [new_secret(), PUBLIC], [HMAC_SECRET, PUBLIC]):
        verify(headers(value), BODY, secrets, now=NOW)


def test_two_keys_in_rotation_both_sign() -> None:
    old, new = new_private_key(), new_private_key()
    value = sign(MESSAGE_ID, TIMESTAMP, BODY, [new, old])
    assert value.count("v1a,") == 2
    for private in (old, new):
        verify(headers(value), BODY, [public_key(private)], now=NOW)
    with pytest.raises(VerificationFailed):
        verify(headers(value), BODY, [public_key(new_private_key())], now=NOW)


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        (V1A, BODY + b" "),
        (V1A.replace("hnO3", "hnO4"), BODY),
        (V1A.replace("v1a,", "v1,"), BODY),
        (V1, BODY),
        ("v1a,", BODY),
        ("v1a,é", BODY),
        ("v1a,AAAA", BODY),
        ("v1a," + "A" * 86, BODY),
    ],
)
def test_what_the_key_did_not_sign_is_refused(signature: str, body: bytes) -> None:
    with pytest.raises(VerificationFailed, match="no signature matches"):
        verify(headers(signature), body, [PUBLIC], now=NOW)


def test_a_public_key_is_no_hmac_secret() -> None:
    # The classic confusion: whoever knows the public key signs with its text as an HMAC key.
    forged = sign(MESSAGE_ID, TIMESTAMP, BODY, ["whsec_" + PUBLIC[5:]])
    with pytest.raises(VerificationFailed):
        verify(headers(forged), BODY, [PUBLIC], now=NOW)


@pytest.mark.parametrize(
    "secret",
    [
        PUBLIC,
        "whsk_",
        "whsk_canary!",
        "whsk_" + base64.b64encode(b"canary" * 5).decode(),
        "whsk_" + base64.b64encode(b"a" * 64).decode(),
    ],
)
def test_a_key_that_cannot_sign_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(InvalidSecret) as caught:
        check_secret(secret)
    assert secret[5:] not in str(caught.value) or not secret[5:]


@pytest.mark.parametrize("public", ["whpk_", "whpk_!", "whpk_" + base64.b64encode(b"a" * 31).decode()])
def test_a_public_key_that_cannot_verify_is_refused_even_when_nothing_is_to_be_compared(public: str) -> None:
    with pytest.raises(InvalidSecret):
        verify(headers(V1), BODY, [public], now=NOW)


@pytest.mark.parametrize("secret", [PRIVATE, SEED_ALONE, HMAC_SECRET, "sekrit"])
def test_every_kind_of_secret_that_signs_passes_the_check(secret: str) -> None:
    assert check_secret(secret) == secret


def test_the_hmac_form_refuses_an_ed25519_key() -> None:
    with pytest.raises(InvalidSecret):
        as_standard(PRIVATE)


def test_more_signatures_than_anyone_sends_are_not_looked_at() -> None:
    padding = " ".join(["v1a,AAAA"] * 1000)
    verify(headers(f"{V1A} {padding}"), BODY, [PUBLIC], now=NOW)
    with pytest.raises(VerificationFailed):
        verify(headers(f"{padding} {V1A}"), BODY, [PUBLIC], now=NOW)


def test_foreign_code_verifies_both_schemes_of_one_header() -> None:
    private, at = new_private_key(), int(datetime.now(UTC).timestamp())
    value = sign(MESSAGE_ID, at, BODY, [private, new_secret(), HMAC_SECRET])
    standardwebhooks.webhooks.Webhook(HMAC_SECRET).verify(BODY, headers(value, at))
    # No published library verifies v1a yet, so the primitive itself has to.
    raw = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key(private)[5:]))
    raw.verify(base64.b64decode(value.split()[0][4:]), f"{MESSAGE_ID}.{at}.".encode() + BODY)
