"""API keys: shown once, kept as a digest, bound to a tenant or the operator's, and revocable.

A key is ``svck_<8 characters>_<43 characters><6 hexadecimal digits>``: the part that may be shown, 256 random
bits, and a checksum by which a scanner for leaked secrets can tell a key from chance. So much entropy needs
no slow hash: the key is found by its SHA-256.
"""

from __future__ import annotations

import re
import secrets
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from svc_infra.api.models import ApiKeyRow
from svc_infra.db.base import TENANT_ID_LENGTH, new_id
from svc_infra.exceptions import InvalidApiKey, NotFound
from svc_infra.jobs.acts import record_act

TENANT_SCOPES = ("billing.read", "billing.write", "webhooks.read", "webhooks.write")
OPERATOR_SCOPES = (*TENANT_SCOPES, "jobs.read", "jobs.write")
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_FORM = re.compile(r"svck_[a-z2-9]{8}_[A-Za-z0-9_-]{43}[0-9a-f]{6}")
_PREFIX_LENGTH = len("svck_") + 8
_CHECKSUM_LENGTH = 6
_MAX_NAME_LENGTH = 200
# Written at most this often, so that a busy key does not cost a write for each request.
_LAST_USED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key. ``tenant_id`` of None is the operator's, for all tenants."""

    id: str
    name: str
    prefix: str
    tenant_id: str | None
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def is_valid(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def create_key(
    session: Session,
    *,
    name: str,
    tenant_id: str | None,
    scopes: Iterable[str],
    actor: str,
    now: datetime,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Store a new key and return it with its text, which is nowhere else.

    ``scopes`` are names or ``billing.*`` and the like.

    Raises:
        InvalidApiKey: a scope is unknown or not for a tenant, or the name or the expiry cannot be used.
    """
    if not 1 <= len(name) <= _MAX_NAME_LENGTH:
        raise InvalidApiKey(f"a key's name has 1 to {_MAX_NAME_LENGTH} characters; say who will use it")
    if tenant_id is not None and not 1 <= len(tenant_id) <= TENANT_ID_LENGTH:
        raise InvalidApiKey(f"a tenant's id has 1 to {TENANT_ID_LENGTH} characters")
    if expires_at is not None and expires_at <= now:
        raise InvalidApiKey("the key would have expired already; give a later instant")
    granted = expand_scopes(scopes, allowed=OPERATOR_SCOPES if tenant_id is None else TENANT_SCOPES)
    text = _new_text()
    row = ApiKeyRow(
        id=new_id(),
        tenant_id=tenant_id,
        name=name,
        prefix=text[:_PREFIX_LENGTH],
        digest=_digest(text),
        scopes=sorted(granted),
        created_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    detail = {"name": name, "tenant_id": tenant_id, "scopes": row.scopes}
    record_act(session, "create_api_key", row.id, actor=actor, now=now, **detail)
    return _key(row), text


def expand_scopes(scopes: Iterable[str], *, allowed: Collection[str] = OPERATOR_SCOPES) -> frozenset[str]:
    """Return the scopes that are meant, with ``billing.*`` as its two.

    Raises:
        InvalidApiKey: one is not ``allowed``, or there is none.
    """
    granted: set[str] = set()
    for scope in scopes:
        family = scope.removesuffix("*") if scope.endswith(".*") else None
        meant = [each for each in allowed if (each.startswith(family) if family else each == scope)]
        if not meant:
            raise InvalidApiKey(f"no such scope here: {scope!r:.60}; use some of {', '.join(allowed)}")
        granted.update(meant)
    if not granted:
        raise InvalidApiKey(f"a key without a scope opens nothing; give some of {', '.join(allowed)}")
    return frozenset(granted)


def list_keys(session: Session, *, tenant_id: str | None = None) -> list[ApiKey]:
    """Return all keys, or those of one tenant, oldest first."""
    query = select(ApiKeyRow).order_by(ApiKeyRow.id)
    if tenant_id is not None:
        query = query.where(ApiKeyRow.tenant_id == tenant_id)
    return [_key(row) for row in session.scalars(query)]


def revoke_key(session: Session, key_id: str, *, actor: str, now: datetime) -> None:
    """Let a key open nothing more, for good.

    Raises:
        NotFound: there is no such key, or it is revoked already.
    """
    revoked = session.execute(
        update(ApiKeyRow)
        .where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None))
        .values(revoked_at=now)
        .returning(ApiKeyRow.id)
    ).all()
    if not revoked:
        raise NotFound(f"there is no key {key_id!r:.60} that could be revoked; see 'worker.py keys list'")
    record_act(session, "revoke_api_key", key_id, actor=actor, now=now)


def find_key(session: Session, text: str) -> ApiKey | None:
    """Return the key that ``text`` is, valid or not; None if there is none."""
    if not is_key(text):
        return None
    row = session.scalars(select(ApiKeyRow).where(ApiKeyRow.digest == _digest(text))).one_or_none()
    return None if row is None else _key(row)


def is_use_to_note(key: ApiKey, *, now: datetime) -> bool:
    """Whether the use that was last noted of a valid key is so long ago that this one is to be noted."""
    is_old = key.last_used_at is None or now - key.last_used_at > _LAST_USED_EVERY
    return key.is_valid(now) and is_old


def note_use(session: Session, key: ApiKey, *, now: datetime) -> None:
    """Note that a key is used ``now``, unless somebody just did."""
    is_old = or_(ApiKeyRow.last_used_at.is_(None), ApiKeyRow.last_used_at < now - _LAST_USED_EVERY)
    session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key.id, is_old).values(last_used_at=now))


def is_key(text: str) -> bool:
    """Whether ``text`` has the form and the checksum of a key; says nothing about there being one."""
    if _FORM.fullmatch(text) is None:
        return False
    return text[-_CHECKSUM_LENGTH:] == _checksum(text[:-_CHECKSUM_LENGTH])


def _new_text() -> str:
    shown = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    text = f"svck_{shown}_{secrets.token_urlsafe(32)}"
    return text + _checksum(text)


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()) & 0xFFFFFF:06x}"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        row.id,
        row.name,
        row.prefix,
        row.tenant_id,
        frozenset(row.scopes),
        row.created_at,
        row.expires_at,
        row.revoked_at,
        row.last_used_at,
    )
