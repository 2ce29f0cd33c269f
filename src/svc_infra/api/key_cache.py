"""Keys that were looked up a moment ago, so that a busy one costs no statement for each request."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.api.keys import ApiKey, find_key, is_use_to_note, note_use
from svc_infra.db.session import begin_reading

KEY_CACHE_SECONDS = 5.0
"""For so long a revoked key may still open what it opened, in a process that has just used it."""
_MOST_KEYS = 10_000


class KeyCache:
    """Finds keys; a valid one is found again without the database for ``KEY_CACHE_SECONDS``."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._found: dict[bytes, tuple[ApiKey, float]] = {}

    async def find(
        self, text: str, sessions: async_sessionmaker[AsyncSession], *, now: datetime
    ) -> ApiKey | None:
        """Return the valid key that ``text`` is, or None."""
        digest = sha256(text.encode()).digest()
        key, until = self._found.get(digest, (None, 0.0))
        if key is None or self._monotonic() >= until:
            async with sessions() as session:
                await begin_reading(session)
                key = await session.run_sync(find_key, text)
            if key is not None and is_use_to_note(key, now=now):
                async with sessions.begin() as session:
                    await session.run_sync(note_use, key, now=now)
            self._keep(digest, key)
        return key if key is not None and key.is_valid(now) else None

    def _keep(self, digest: bytes, key: ApiKey | None) -> None:
        self._found.pop(digest, None)
        if key is not None:
            self._found[digest] = (key, self._monotonic() + KEY_CACHE_SECONDS)
            if len(self._found) > _MOST_KEYS:
                del self._found[next(iter(self._found))]
