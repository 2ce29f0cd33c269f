"""Cursors: where the next page of a list begins, opaque to callers, and refused when somebody changed one."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from svc_infra.api.models import InstallationSecretRow
from svc_infra.exceptions import InvalidCursor

_MAC_BYTES = 12
_SECRET = "cursors"


class Cursors:
    """Writes and reads cursors with the secret of this installation; each is of one list and no other."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def encode(self, list_name: str, position: Sequence[str]) -> str:
        """Return the cursor of the page that begins behind ``position``, the last row's sort keys."""
        content = json.dumps(list(position), separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._mac(list_name, content) + content).decode().rstrip("=")

    def decode(self, list_name: str, cursor: str) -> list[str]:
        """Return the position.

        Raises:
            InvalidCursor: it was not made by ``encode`` for this list.
        """
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        mac, content = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not content or not hmac.compare_digest(mac, self._mac(list_name, content)):
            raise InvalidCursor("pass the next_cursor of a page of this list, unchanged, or none")
        position: list[str] = json.loads(content)
        return position

    def _mac(self, list_name: str, content: bytes) -> bytes:
        return hmac.digest(self._secret, list_name.encode() + b"\0" + content, sha256)[:_MAC_BYTES]


def installation_cursors(session: Session, *, now: datetime) -> Cursors:
    """Return the cursors of this database, whose secret the first process to ask makes."""
    row = InstallationSecretRow
    query = select(row.value).where(row.name == _SECRET)
    value = session.scalars(query).one_or_none()
    if value is None:
        dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
        new = dialect.insert(row).values(name=_SECRET, value=secrets.token_hex(32), created_at=now)
        session.execute(new.on_conflict_do_nothing())
        value = session.scalars(query).one()
    return Cursors(value)
