"""The signing secrets of an endpoint as its row keeps them: sealed, versioned, and valid for a time.

Each is an object ``{"secret", "version", "expires_at", "public_key"}`` in the JSON of the row, newest first;
a bare text is one of before secrets were sealed. Times are wall time: a rotation is agreed with a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from svc_infra.canonical import canonical_instant
from svc_infra.exceptions import InvalidSecret, NotFound
from svc_infra.webhooks import ed25519
from svc_infra.webhooks.sealing import KeyRing, SecretPlace, is_sealed

MAX_VALID_SECRETS = 5
MAX_OVERLAP_SECONDS = 30 * 86_400
_CACHED_OPENINGS = 4096

StoredSecrets = Sequence[Any]


def stored(secret: str, place: SecretPlace, keys: KeyRing | None) -> dict[str, Any]:
    """Return what the row keeps of a secret: sealed if there are keys, else as it is."""
    is_private_key = secret.startswith(ed25519.PRIVATE_PREFIX)
    return {
        "secret": secret if keys is None else keys.seal(secret, place),
        "version": place.version,
        "expires_at": None,
        "public_key": ed25519.public_key(secret) if is_private_key else None,
    }


def rotated(
    items: StoredSecrets,
    secret: str,
    *,
    tenant_id: str | None,
    endpoint_id: str,
    keys: KeyRing | None,
    now: datetime,
    overlap_seconds: float,
) -> list[dict[str, Any]]:
    """Put ``secret`` in front; those that are valid now stay so for ``overlap_seconds`` at most.

    Raises:
        InvalidSecret: the overlap is negative or longer than 30 days, or more than 5 would be valid at once.
    """
    if not 0 <= overlap_seconds <= MAX_OVERLAP_SECONDS:
        raise InvalidSecret(f"the overlap is from 0 to {MAX_OVERLAP_SECONDS} seconds (30 days)")
    normal = [_normal(item) for item in items]
    version = 1 + max((item["version"] for item in normal), default=0)
    ends_at = now + timedelta(seconds=overlap_seconds)
    kept = []
    for item in normal:
        if _is_valid(item, now) and overlap_seconds:
            earlier = item["expires_at"] and datetime.fromisoformat(item["expires_at"]) < ends_at
            kept.append(item if earlier else {**item, "expires_at": canonical_instant(ends_at)})
    if len(kept) >= MAX_VALID_SECRETS:
        raise InvalidSecret(
            f"{MAX_VALID_SECRETS} secrets are valid already; wait for one to expire, or rotate with an "
            "overlap of 0"
        )
    return [stored(secret, SecretPlace(tenant_id, endpoint_id, version), keys), *kept]


def expired(items: StoredSecrets, version: int, *, now: datetime) -> list[dict[str, Any]]:
    """Return the same secrets without the one of ``version``, which signs nothing from ``now`` on.

    Raises:
        NotFound: none of this version is valid.
        InvalidSecret: it is the newest one, without which nothing could be signed.
    """
    valid = [item for item in map(_normal, items) if _is_valid(item, now)]
    if version not in [item["version"] for item in valid]:
        raise NotFound(f"no secret of version {version} is valid; list the secrets of the endpoint")
    if version == valid[0]["version"]:
        raise InvalidSecret("the newest secret is not ended alone: rotate with an overlap of 0")
    return [item for item in valid if item["version"] != version]


def valid_ones(items: StoredSecrets, now: datetime) -> list[dict[str, Any]]:
    """Return ``{"version", "expires_at", "public_key"}`` of those that are valid ``now``, newest first."""
    shown = ("version", "expires_at", "public_key")
    return [{key: item[key] for key in shown} for item in map(_normal, items) if _is_valid(item, now)]


def opened(
    items: StoredSecrets, *, tenant_id: str | None, endpoint_id: str, keys: KeyRing | None, now: datetime
) -> tuple[str, ...]:
    """Return the secrets that are valid ``now``, newest first, ready to sign with.

    Raises:
        InvalidSecret: one is sealed and does not open with ``keys``.
    """
    valid = [item for item in map(_normal, items) if _is_valid(item, now)]
    return tuple(
        open_text(item["secret"], SecretPlace(tenant_id, endpoint_id, item["version"]), keys)
        for item in valid
    )


def open_text(text: str, place: SecretPlace, keys: KeyRing | None) -> str:
    """Return ``text``, opened if it is sealed.

    Raises:
        InvalidSecret: it is sealed and does not open with ``keys``.
    """
    if not is_sealed(text):
        return text
    if keys is None:
        raise InvalidSecret("a stored secret is sealed; give the worker the keys (webhooks.secret_keys)")
    return _open(keys, text, place)


@lru_cache(maxsize=_CACHED_OPENINGS)
def _open(keys: KeyRing, text: str, place: SecretPlace) -> str:
    return keys.open_sealed(text, place)


def resealed(
    items: StoredSecrets, *, tenant_id: str | None, endpoint_id: str, keys: KeyRing
) -> list[dict[str, Any]]:
    """Return the same secrets, each sealed with the newest of ``keys``.

    Raises:
        InvalidSecret: one does not open with ``keys``.
    """
    result = []
    for item in map(_normal, items):
        place = SecretPlace(tenant_id, endpoint_id, item["version"])
        result.append({**item, "secret": keys.seal(open_text(item["secret"], place, keys), place)})
    return result


def need_resealing(items: StoredSecrets, keys: KeyRing) -> bool:
    """Tell whether one is not sealed with the newest of ``keys``."""
    texts = [_normal(item)["secret"] for item in items]
    return any(not is_sealed(text) or keys.needs_resealing(text) for text in texts)


def public_keys(items: StoredSecrets, now: datetime) -> tuple[str, ...]:
    """Return the ``whpk_`` keys of those that are valid ``now``, newest first."""
    valid = [item for item in map(_normal, items) if _is_valid(item, now)]
    return tuple(item["public_key"] for item in valid if item["public_key"])


def _normal(item: Any) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return dict(item)
    return {"secret": item, "version": 1, "expires_at": None, "public_key": None}


def _is_valid(item: Mapping[str, Any], now: datetime) -> bool:
    return item["expires_at"] is None or datetime.fromisoformat(item["expires_at"]) > now
