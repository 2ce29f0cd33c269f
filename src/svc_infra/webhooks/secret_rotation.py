"""Changing the secrets of endpoints: rotation with an overlap, and sealing anew when the keys change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.webhooks import stored_secrets
from svc_infra.webhooks.audit import DEFAULT_ACTOR, note_act
from svc_infra.webhooks.endpoints import Endpoint, as_endpoint, existing_row, locked_row, make_secret
from svc_infra.webhooks.models import EndpointRow
from svc_infra.webhooks.sealing import KeyRing
from svc_infra.webhooks.signature import check_secret
from svc_infra.webhooks.stored_options import reseal_headers


def rotate_secret(
    session: Session,
    endpoint_id: str,
    *,
    overlap_seconds: float = 86_400,
    secret: str | None = None,
    tenant_id: str | None = None,
    keys: KeyRing | None = None,
    actor: str = DEFAULT_ACTOR,
    now: datetime | None = None,
) -> Endpoint:
    """Give an endpoint a new signing secret and return the endpoint with it, which is shown once.

    It is of the kind of the newest one unless given. For ``overlap_seconds`` everything is signed with the
    old ones too, so that the subscriber can change over; 0 ends them at once, for one that has leaked.
    ``now`` is wall time.

    Raises:
        NotFound: there is no such endpoint, or it is another tenant's.
        InvalidSecret: the given one cannot sign, the overlap is longer than 30 days, or five are valid.
    """
    now = now or datetime.now(UTC)
    row = locked_row(session, endpoint_id, tenant_id=tenant_id)
    if secret is None:
        is_asymmetric = bool(stored_secrets.public_keys(row.secrets[:1], now))
        secret = make_secret("v1a" if is_asymmetric else "v1")
    row.secrets = stored_secrets.rotated(
        row.secrets,
        check_secret(secret),
        tenant_id=row.tenant_id,
        endpoint_id=row.id,
        keys=keys,
        now=now,
        overlap_seconds=overlap_seconds,
    )
    note_act(session, row, actor, "rotate_secret", {"overlap_seconds": overlap_seconds})
    session.flush()
    return as_endpoint(row, secret)


@dataclass(frozen=True, slots=True)
class ListedSecret:
    """A valid signing secret without its value; one of ed25519 shows its public key."""

    version: int
    expires_at: datetime | None
    public_key: str | None


def list_secrets(
    session: Session, endpoint_id: str, *, tenant_id: str | None = None, now: datetime | None = None
) -> list[ListedSecret]:
    """Return the secrets that an endpoint's messages are signed with, newest first. ``now`` is wall time.

    Raises:
        NotFound: there is no such endpoint, or it is another tenant's.
    """
    now = now or datetime.now(UTC)
    row = existing_row(session, endpoint_id, tenant_id=tenant_id)
    return [
        ListedSecret(
            item["version"],
            None if item["expires_at"] is None else datetime.fromisoformat(item["expires_at"]),
            item["public_key"],
        )
        for item in stored_secrets.valid_ones(row.secrets, now)
    ]


def expire_secret(
    session: Session,
    endpoint_id: str,
    version: int,
    *,
    tenant_id: str | None = None,
    actor: str = DEFAULT_ACTOR,
    now: datetime | None = None,
) -> None:
    """End an older secret of a rotation now, before its overlap is over. ``now`` is wall time.

    Raises:
        NotFound: there is no such endpoint, it is another tenant's, or no such secret is valid.
        InvalidSecret: it is the newest one; rotate with an overlap of 0 instead.
    """
    row = locked_row(session, endpoint_id, tenant_id=tenant_id)
    row.secrets = stored_secrets.expired(row.secrets, version, now=now or datetime.now(UTC))
    note_act(session, row, actor, "expire_secret", {"version": version})
    session.flush()


def reseal_secrets(session: Session, keys: KeyRing) -> int:
    """Seal every secret and header with the newest key that is not; return how many endpoints changed.

    Raises:
        InvalidSecret: one does not open with ``keys``.
    """
    changed = 0
    # "No key update", because new deliveries refer to endpoints and must not wait for this.
    for row in session.scalars(select(EndpointRow).order_by(EndpointRow.id).with_for_update(key_share=True)):
        has_changed = reseal_headers(row, keys)
        if stored_secrets.need_resealing(row.secrets, keys):
            row.secrets = stored_secrets.resealed(
                row.secrets, tenant_id=row.tenant_id, endpoint_id=row.id, keys=keys
            )
            has_changed = True
        changed += has_changed
    session.flush()
    return changed
