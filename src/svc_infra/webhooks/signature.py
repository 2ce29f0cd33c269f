"""Signing and verifying by Standard Webhooks 1.0.0: ``v1`` (HMAC-SHA256) and ``v1a`` (ed25519).

A secret's prefix tells its scheme: ``whsk_`` is an ed25519 private key and ``whpk_`` its public one, all else
is an HMAC secret. What is signed is ``{id}.{timestamp}.{body}``. The header carries one signature for every
secret that is valid, so that a subscriber can change over in its own time while a secret is rotated.
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
from svc_infra.webhooks import ed25519

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"
TOLERANCE_SECONDS = 300

_SECRET_PREFIX = "whsec_"
_ASYMMETRIC_PREFIXES = (ed25519.PRIVATE_PREFIX, ed25519.PUBLIC_PREFIX)
_NEW_SECRET_BYTES = 32
_SYMMETRIC = "v1,"
_ASYMMETRIC = "v1a,"
_MAX_SIGNATURES = 64
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


def check_secret(secret: str) -> str:
    """Return ``secret`` if an endpoint can be signed for with it: ``whsec_``, ``whsk_`` or text.

    Raises:
        InvalidSecret: it cannot sign. The message never shows it.
    """
    _signature(secret, b"")
    return secret


def as_standard(secret: str) -> str:
    """Return ``secret`` in the ``whsec_`` form that verifying libraries take.

    Raises:
        InvalidSecret: as ``secret_key``.
    """
    return _standard(secret_key(secret))


def sign(message_id: str, timestamp: int, body: bytes, secrets: Sequence[str]) -> str:
    """Return the value of ``webhook-signature``: ``v1,<base64>`` for an HMAC secret, ``v1a,<base64>`` for a
    ``whsk_`` key, one for each of ``secrets`` in their order, newest first.

    ``timestamp`` is the attempt's, in Unix seconds of the wall clock.

    Raises:
        InvalidSecret: a secret cannot be used, or there is none.
        InvalidPayload: the id contains a dot, which would make the signed content ambiguous.
    """
    if "." in message_id or not message_id:
        raise InvalidPayload("a message id is not empty and contains no dot; make it with new_message_id()")
    _require_secrets(secrets)
    content = _signed_content(message_id, str(timestamp), body)
    return " ".join(_signature(secret, content) for secret in secrets)


def _require_secrets(secrets: Sequence[str]) -> None:
    # A text is a sequence of texts, too: each of its letters would be a secret that anybody could sign with.
    if isinstance(secrets, str) or not secrets:
        raise InvalidSecret("give a list of at least one signing secret")


def verify(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[str],
    *,
    now: datetime | None = None,
    tolerance_seconds: int = TOLERANCE_SECONDS,
) -> None:
    """Check that ``body``, the raw bytes received, was signed with one of ``secrets`` and is fresh.

    ``secrets`` are HMAC secrets and ``whpk_`` keys, several while they are rotated.
    Header names are compared without regard to case, signatures in constant time. ``now`` is the wall clock's
    unless given. Remember the ``webhook-id`` of what was processed: a delivery may arrive more than once.

    Raises:
        VerificationFailed: a header is missing or malformed, the timestamp is too far from now, or no
            signature matches. The message tells nothing that would help a forger.
        InvalidSecret: one of ``secrets`` cannot be used, or there is none.
    """
    _require_secrets(secrets)
    by_name = {name.lower(): value for name, value in headers.items()}
    message_id = _required(by_name, ID_HEADER)
    timestamp = _required(by_name, TIMESTAMP_HEADER)
    # A header full of signatures must not buy its sender a minute of our processor.
    given = _required(by_name, SIGNATURE_HEADER).split()[:_MAX_SIGNATURES]
    if not _TIMESTAMP.fullmatch(timestamp):
        raise VerificationFailed(f"{TIMESTAMP_HEADER} is not a number of Unix seconds")
    age_seconds = require_utc(now or datetime.now(UTC)).timestamp() - int(timestamp)
    if age_seconds > tolerance_seconds:
        raise VerificationFailed(f"{TIMESTAMP_HEADER} is more than {tolerance_seconds} s in the past")
    if age_seconds < -tolerance_seconds:
        raise VerificationFailed(f"{TIMESTAMP_HEADER} is more than {tolerance_seconds} s in the future")
    content = _signed_content(message_id, timestamp, body)
    # Every pair is compared: the time taken does not tell which secret or which signature was the right one.
    matches = [is_match for secret in secrets for is_match in _matches(secret, content, given)]
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
    if secret.startswith(ed25519.PUBLIC_PREFIX):
        raise InvalidSecret("a public key (whpk_) only verifies; sign with its private key (whsk_)")
    if secret.startswith(ed25519.PRIVATE_PREFIX):
        return _ASYMMETRIC + base64.b64encode(ed25519.sign_content(secret, content)).decode()
    digest = hmac.digest(secret_key(secret), content, "sha256")
    return _SYMMETRIC + base64.b64encode(digest).decode()


def _matches(secret: str, content: bytes, given: Sequence[str]) -> list[bool]:
    """Tell of each of the ``given`` signatures of the secret's scheme whether it is that of ``content``."""
    if not secret.startswith(_ASYMMETRIC_PREFIXES):
        expected = _signature(secret, content).encode()
        return [
            hmac.compare_digest(one.encode("utf-8", "replace"), expected)
            for one in given
            if one.startswith(_SYMMETRIC)
        ]
    is_private = secret.startswith(ed25519.PRIVATE_PREFIX)
    public = ed25519.public_key(secret) if is_private else secret
    ed25519.check_public_key(public)  # also when no signature of the scheme is given
    return [
        ed25519.is_signed(public, content, _decoded(one.removeprefix(_ASYMMETRIC)))
        for one in given
        if one.startswith(_ASYMMETRIC)
    ]


def _decoded(signature: str) -> bytes:
    """Return the bytes of a signature, or none, which match nothing, if it is not base64."""
    try:
        return base64.b64decode(signature + "=" * (-len(signature) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _standard(key: bytes) -> str:
    return _SECRET_PREFIX + base64.b64encode(key).decode()
