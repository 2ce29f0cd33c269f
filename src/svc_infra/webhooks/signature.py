"""Signing and verifying by Standard Webhooks 1.0.0, the symmetric scheme ``v1`` (HMAC-SHA256).

What is signed is ``{id}.{timestamp}.{body}``. The header carries one signature for every secret that is
valid, so that a subscriber can change over in its own time while a secret is rotated.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets as entropy
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from svc_infra.clock import require_utc
from svc_infra.exceptions import InvalidPayload, InvalidSecret, VerificationFailed

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"
TOLERANCE_SECONDS = 300

_SECRET_PREFIX = "whsec_"
_ASYMMETRIC_PREFIXES = ("whsk_", "whpk_")
_NEW_SECRET_BYTES = 32
_VERSION = "v1,"
_TIMESTAMP = re.compile(r"[0-9]{1,12}", re.ASCII)


def new_secret() -> str:
    """Make a new signing secret: ``whsec_`` and the base64 of 32 random bytes."""
    return _standard(entropy.token_bytes(_NEW_SECRET_BYTES))


def secret_key(secret: str) -> bytes:
    """Return the HMAC key that ``secret`` stands for.

    After ``whsec_`` comes base64 (standard alphabet, padding optional). Anything else is a secret that a
    person chose, and its key is its UTF-8 bytes.

    Raises:
        InvalidSecret: empty, not base64 after the prefix, or an ed25519 key. The message never shows it.
    """
    if secret.startswith(_ASYMMETRIC_PREFIXES):
        raise InvalidSecret("an ed25519 key (whsk_, whpk_) cannot sign with HMAC; use a whsec_ secret")
    try:
        if secret.startswith(_SECRET_PREFIX):
            text = secret.removeprefix(_SECRET_PREFIX)
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        else:
            key = secret.encode()
    except (binascii.Error, ValueError):
        raise InvalidSecret(
            "a secret that starts with whsec_ continues in base64; any other one is UTF-8 text"
        ) from None
    if not key:
        raise InvalidSecret("an empty signing secret signs nothing; make one with new_secret()")
    return key


def as_standard(secret: str) -> str:
    """Return ``secret`` in the ``whsec_`` form that verifying libraries take.

    Raises:
        InvalidSecret: as ``secret_key``.
    """
    return _standard(secret_key(secret))


def sign(message_id: str, timestamp: int, body: bytes, secrets: Sequence[str]) -> str:
    """Return the value of ``webhook-signature``: one ``v1,<base64>`` per secret, newest first as given.

    ``timestamp`` is the attempt's, in Unix seconds of the wall clock.

    Raises:
        InvalidSecret: a secret cannot be used, or there is none.
        InvalidPayload: the id contains a dot, which would make the signed content ambiguous.
    """
    if "." in message_id or not message_id:
        raise InvalidPayload("a message id is not empty and contains no dot; make it with new_message_id()")
    if not secrets:
        raise InvalidSecret("an endpoint needs at least one signing secret")
    content = _signed_content(message_id, str(timestamp), body)
    return " ".join(_signature(secret, content) for secret in secrets)


def verify(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[str],
    *,
    now: datetime | None = None,
    tolerance_seconds: int = TOLERANCE_SECONDS,
) -> None:
    """Check that ``body``, the raw bytes received, was signed with one of ``secrets`` and is fresh.

    Header names are compared without regard to case, signatures in constant time. ``now`` is the wall clock's
    unless given. Remember the ``webhook-id`` of what was processed: a delivery may arrive more than once.

    Raises:
        VerificationFailed: a header is missing or malformed, the timestamp is too far from now, or no
            signature matches. The message tells nothing that would help a forger.
        InvalidSecret: one of ``secrets`` cannot be used, or there is none.
    """
    if not secrets:
        raise InvalidSecret("verifying needs at least one signing secret")
    by_name = {name.lower(): value for name, value in headers.items()}
    message_id = _required(by_name, ID_HEADER)
    timestamp = _required(by_name, TIMESTAMP_HEADER)
    given = [item for item in _required(by_name, SIGNATURE_HEADER).split() if item.startswith(_VERSION)]
    if not _TIMESTAMP.fullmatch(timestamp):
        raise VerificationFailed(f"{TIMESTAMP_HEADER} is not a number of Unix seconds")
    age_seconds = require_utc(now or datetime.now(UTC)).timestamp() - int(timestamp)
    if age_seconds > tolerance_seconds:
        raise VerificationFailed(f"{TIMESTAMP_HEADER} is more than {tolerance_seconds} s in the past")
    if age_seconds < -tolerance_seconds:
        raise VerificationFailed(f"{TIMESTAMP_HEADER} is more than {tolerance_seconds} s in the future")
    content = _signed_content(message_id, timestamp, body)
    expected = [_signature(secret, content).encode() for secret in secrets]
    # Every pair is compared: the time taken does not tell which secret or which signature was the right one.
    matches = [
        hmac.compare_digest(one.encode("utf-8", "replace"), other) for one in given for other in expected
    ]
    if not any(matches):
        raise VerificationFailed("no signature matches: other bytes were signed, or with another secret")


def _required(by_name: Mapping[str, str], name: str) -> str:
    value = by_name.get(name)
    if not value:
        raise VerificationFailed(f"the header {name} is missing")
    return value


def _signed_content(message_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{message_id}.{timestamp}.".encode("utf-8", "replace") + body


def _signature(secret: str, content: bytes) -> str:
    digest = hmac.digest(secret_key(secret), content, "sha256")
    return _VERSION + base64.b64encode(digest).decode()


def _standard(key: bytes) -> str:
    return _SECRET_PREFIX + base64.b64encode(key).decode()
