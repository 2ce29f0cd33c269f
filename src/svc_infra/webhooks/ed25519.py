"""ed25519 signing keys (RFC 8032), the asymmetric scheme ``v1a`` of Standard Webhooks.

The sender keeps a private key, ``whsk_`` and base64; whoever verifies needs only the public one, ``whpk_``,
which is no secret and can be published. Pure computation, as ``signature`` which is built on it.
"""

from __future__ import annotations

import base64
import binascii
import secrets as entropy
from functools import lru_cache
from typing import TYPE_CHECKING

from svc_infra.exceptions import InvalidSecret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PRIVATE_PREFIX = "whsk_"
PUBLIC_PREFIX = "whpk_"
_KEY_BYTES = 32


def new_private_key() -> str:
    """Make a new private key: ``whsk_`` and the base64 of a random 32-byte seed and its public key."""
    seed = entropy.token_bytes(_KEY_BYTES)
    public = _decoded(public_key(PRIVATE_PREFIX + _encoded(seed)), PUBLIC_PREFIX)
    return PRIVATE_PREFIX + _encoded(seed + public)


def public_key(private: str) -> str:
    """Return the ``whpk_`` key to give to those who verify.

    Raises:
        InvalidSecret: ``private`` is no ``whsk_`` key.
    """
    return PUBLIC_PREFIX + _encoded(_private(private).public_key().public_bytes_raw())


def sign_content(private: str, content: bytes) -> bytes:
    """Return the 64 bytes of signature of ``content``.

    Raises:
        InvalidSecret: ``private`` is no ``whsk_`` key.
    """
    return _private(private).sign(content)


def check_public_key(public: str) -> None:
    """Raise ``InvalidSecret`` unless ``public`` is a ``whpk_`` key."""
    _public(public)


def is_signed(public: str, content: bytes, signature: bytes) -> bool:
    """Tell whether ``signature`` is that of ``content`` by the holder of the key's private half.

    Raises:
        InvalidSecret: ``public`` is no ``whpk_`` key.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        _public(public).verify(signature, content)
    except InvalidSignature:
        return False
    return True


# cryptography is imported where it is used: it takes longer to load than all of the command line does, and
# most processes never see an ed25519 key.


@lru_cache(maxsize=1024)
def _private(private: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = _decoded(private, PRIVATE_PREFIX)
    # Either the seed alone or, as Svix writes it, the seed followed by the public key.
    if len(raw) not in (_KEY_BYTES, 2 * _KEY_BYTES):
        raise InvalidSecret("a whsk_ key holds 32 bytes (a seed) or 64 (a seed and its public key)")
    key = Ed25519PrivateKey.from_private_bytes(raw[:_KEY_BYTES])
    if len(raw) > _KEY_BYTES and key.public_key().public_bytes_raw() != raw[_KEY_BYTES:]:
        raise InvalidSecret("the two halves of the whsk_ key do not belong together; copy it anew")
    return key


@lru_cache(maxsize=1024)
def _public(public: str) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = _decoded(public, PUBLIC_PREFIX)
    if len(raw) != _KEY_BYTES:
        raise InvalidSecret("a whpk_ key holds 32 bytes")
    try:
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        raise InvalidSecret("the whpk_ key is no point of the curve; copy it anew") from None


def _encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decoded(key: str, prefix: str) -> bytes:
    if not key.startswith(prefix):
        raise InvalidSecret(f"an ed25519 key of this kind starts with {prefix}")
    text = key.removeprefix(prefix)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidSecret(f"a key that starts with {prefix} continues in base64") from None
