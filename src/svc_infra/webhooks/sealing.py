"""Signing secrets at rest: sealed so that a copy of the database signs nothing.

A secret is encrypted with AES-256-GCM under a key that the operator keeps outside the database. The tenant,
the endpoint and the version of the row are authenticated with it: a sealed secret that is copied to another
row does not open there, so whoever can write to the database cannot sign with a neighbour's secret.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets as entropy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from svc_infra.exceptions import InvalidSecret, InvalidSettings

KEY_BYTES = 32
_PREFIX = "enc:v1:"
_NONCE_BYTES = 12
_KEY_ID = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_MIN_DISTINCT_BYTES = 12


@dataclass(frozen=True, slots=True)
class WebhookSecrets(Sequence[str]):
    """The opened signing secrets of an endpoint, newest first; their text appears in no log or traceback."""

    _values: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self._values[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __repr__(self) -> str:
        return f"WebhookSecrets(<{len(self._values)} hidden>)"


@dataclass(frozen=True, slots=True)
class SecretPlace:
    """The row that a secret belongs to. ``tenant_id`` is None for the operator's own endpoints.

    ``version`` is a number that the row keeps and raises whenever the secret is replaced, so that an old
    sealed secret, put back from a backup, does not open.
    """

    tenant_id: str | None
    endpoint_id: str
    version: int

    def as_bytes(self) -> bytes:
        """Return an unambiguous encoding, to be authenticated with the secret."""
        parts = ["svc_infra.webhook_secret", self.tenant_id, self.endpoint_id, self.version]
        return json.dumps(parts, separators=(",", ":")).encode()


def new_sealing_key(key_id: str) -> str:
    """Make a new key in the form that the settings take: ``<key_id>:<base64 of 32 random bytes>``.

    Raises:
        InvalidSettings: the id is not 1 to 40 letters, digits and ``_.-``.
    """
    return f"{_checked_key_id(key_id)}:{base64.b64encode(entropy.token_bytes(KEY_BYTES)).decode()}"


def is_sealed(text: str) -> bool:
    """Tell whether ``text`` has the form of a sealed secret."""
    return text.startswith(_PREFIX)


class KeyRing:
    """The keys that seal secrets, by id, newest first: the first one seals, all of them open.

    To rotate, put a new key in front, seal every secret anew with ``reseal`` (``needs_resealing`` tells
    which), and drop the old key when none is left.

    Raises:
        InvalidSettings: there is no key, an id has other characters than letters, digits and ``_.-``, or a
            key is not 32 random bytes. The message shows no key.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise InvalidSettings("a key ring needs at least one key; make one with new_sealing_key()")
        self._ciphers = {_checked_key_id(key_id): _cipher(key_id, key) for key_id, key in keys.items()}
        self._newest_id = next(iter(self._ciphers))

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Read the keys from ``<key_id>:<base64>`` items, newest first, separated by commas or white space.

        Raises:
            InvalidSettings: as the constructor, an item has another form, or an id appears twice.
        """
        keys: dict[str, bytes] = {}
        for item in text.replace(",", " ").split():
            key_id, _, encoded = item.partition(":")
            _checked_key_id(key_id)
            if key_id in keys:
                raise InvalidSettings(f"the sealing key {key_id!r} is given twice; give each key its own id")
            try:
                keys[key_id] = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                raise InvalidSettings(f"the sealing key {key_id!r} is not base64") from None
        return cls(keys)

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._ciphers)})"

    def seal(self, secret: str, place: SecretPlace) -> str:
        """Return ``secret`` sealed for ``place``: ``enc:v1:<key_id>:<base64>``; different at each call."""
        nonce = entropy.token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[self._newest_id].encrypt(nonce, secret.encode(), place.as_bytes())
        return f"{_PREFIX}{self._newest_id}:{base64.b64encode(nonce + sealed).decode()}"

    def open_sealed(self, sealed: str, place: SecretPlace) -> str:
        """Return the secret that was sealed for ``place``.

        Raises:
            InvalidSecret: it was sealed for another place, with a key that is not on the ring, or was
                changed. The message names the key's id and nothing else.
        """
        key_id, encoded = _parts(sealed)
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise InvalidSecret(
                f"a stored secret was sealed with the key {key_id!r}, which is not on the key ring "
                "(webhooks.secret_keys); put it back behind the newest one"
            )
        try:
            raw = base64.b64decode(encoded, validate=True)
            return cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], place.as_bytes()).decode()
        except (InvalidTag, binascii.Error, ValueError):
            raise InvalidSecret(
                f"a stored secret does not open with the key {key_id!r}: it was sealed for another row, with "
                "another key of that id, or was changed; rotate the endpoint's secret"
            ) from None

    def needs_resealing(self, sealed: str) -> bool:
        """Tell whether ``sealed`` was sealed with another key than the newest one.

        Raises:
            InvalidSecret: it is not a sealed secret.
        """
        return _parts(sealed)[0] != self._newest_id

    def reseal(self, sealed: str, place: SecretPlace, *, new_place: SecretPlace | None = None) -> str:
        """Return the same secret sealed with the newest key, for ``new_place`` if given.

        Raises:
            InvalidSecret: as ``open_sealed``.
        """
        return self.seal(self.open_sealed(sealed, place), new_place or place)


def _cipher(key_id: str, key: bytes) -> AESGCM:
    # 32 random bytes with fewer than 12 distinct values do not happen; a placeholder in a file does.
    if len(key) != KEY_BYTES or len(set(key)) < _MIN_DISTINCT_BYTES:
        raise InvalidSettings(
            f"the sealing key {key_id!r} is not {KEY_BYTES} random bytes; make one with new_sealing_key()"
        )
    return AESGCM(key)


def _checked_key_id(key_id: str) -> str:
    if not _KEY_ID.fullmatch(key_id):
        raise InvalidSettings(
            "the id of a sealing key is 1 to 40 letters, digits and '_.-', then ':' and the key"
        )
    return key_id


def _parts(sealed: str) -> tuple[str, str]:
    """Return the key id and the base64 of a sealed secret."""
    key_id, separator, encoded = sealed.removeprefix(_PREFIX).partition(":")
    if not is_sealed(sealed) or not separator or not _KEY_ID.fullmatch(key_id):
        raise InvalidSecret("a stored secret is not sealed; seal it with KeyRing.seal, or rotate it")
    return key_id, encoded
