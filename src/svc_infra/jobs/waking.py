"""Waking idle workers when jobs are enqueued. Polling alone is correct; this makes it quick.

- In the same process: at the commit of the session that enqueued.
- On PostgreSQL: NOTIFY in the enqueuing transaction. It takes one lock of the whole server at commit, so a
  process sends it at most every 20 ms; who listens looks once more after twice that time, for the jobs whose
  notification was left out. LISTEN needs a connection of its own and does not work behind a pooler in
  transaction mode.
- On SQLite: ``PRAGMA data_version`` changes when another connection has committed. It is asked every 20 ms.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from svc_infra.db.after_commit import call_after_commit
from svc_infra.db.session import make_engine
from svc_infra.jobs.loop import run_loop, wait_any

CHANNEL = "svc_infra_jobs"
DEBOUNCE_SECONDS = 0.02
_RECONNECT_SECONDS = 300.0
_ANNOUNCING = "svc_infra.jobs_announced"
_NOTIFY = text(f"SELECT pg_notify('{CHANNEL}', '')")

# By the URL of the database, because an application may work with several.
_wakers: dict[URL, set[Callable[[], None]]] = {}
_notified_at: dict[URL, float] = {}


def announce(session: Session) -> None:
    """Wake workers when the transaction of ``session``, which has enqueued jobs, commits."""
    url = session.get_bind().engine.url
    if _wakers.get(url):
        call_after_commit(session, lambda: _wake_all(url))
    if url.get_backend_name() != "postgresql":
        return
    if _ANNOUNCING not in session.info:
        event.listen(session, "before_commit", _notify)
    session.info[_ANNOUNCING] = True


def _wake_all(url: URL) -> None:
    for wake in list(_wakers.get(url, ())):
        wake()


def _notify(session: Session) -> None:
    if session.in_nested_transaction() or not session.info[_ANNOUNCING]:
        return
    session.info[_ANNOUNCING] = False
    url, now = session.get_bind().engine.url, time.monotonic()
    if now - _notified_at.get(url, 0.0) >= DEBOUNCE_SECONDS:
        _notified_at[url] = now
        session.connection().execute(_NOTIFY)


class WakeUp:
    """Calls ``wake`` in the running loop soon after jobs were enqueued in the database of ``url``."""

    def __init__(self, url: URL, wake: Callable[[], None]) -> None:
        self._url = url
        self._wake = wake

    async def run(self, stop: asyncio.Event, *, is_listening: bool = True) -> None:
        """Watch until ``stop`` is set; without ``is_listening`` only what this process enqueues."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._wake)

        wakers = _wakers.setdefault(self._url, set())
        wakers.add(wake)
        try:
            is_memory = self._url.database in (None, "", ":memory:")
            if not is_listening or (self._url.get_backend_name() == "sqlite" and is_memory):
                await stop.wait()
            elif self._url.get_backend_name() == "sqlite":
                await self._watch_file(stop)
            else:
                await run_loop("jobs.listen", lambda: self._listen(stop), stop=stop, poll_seconds=0.1)
        finally:
            wakers.discard(wake)

    async def _listen(self, stop: asyncio.Event) -> bool:
        """Listen until the connection is lost, ``stop`` is set or it is time to try a new connection."""
        loop, is_lost = asyncio.get_running_loop(), asyncio.Event()

        def on_notification(*_: Any) -> None:
            self._wake()
            loop.call_later(2 * DEBOUNCE_SECONDS, self._wake)

        engine = make_engine(self._url, behind_transaction_pooler=True)  # which has no pool of its own
        try:
            async with engine.connect() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                driver.add_termination_listener(lambda *_: is_lost.set())
                await driver.add_listener(CHANNEL, on_notification)
                # What was enqueued before this moment was announced to nobody.
                self._wake()
                await wait_any(stop, is_lost, timeout_seconds=_RECONNECT_SECONDS)
                if not is_lost.is_set():
                    await driver.remove_listener(CHANNEL, on_notification)
        finally:
            await engine.dispose()
        return False

    async def _watch_file(self, stop: asyncio.Event) -> None:
        connection = sqlite3.connect(str(self._url.database), timeout=0, isolation_level=None)
        try:
            seen: int | None = None
            while not stop.is_set():
                version = _data_version(connection)
                if version is not None and version != seen:
                    seen = version
                    self._wake()
                await wait_any(stop, timeout_seconds=DEBOUNCE_SECONDS)
        finally:
            connection.close()


def _data_version(connection: sqlite3.Connection) -> int | None:
    try:
        (version,) = connection.execute("PRAGMA data_version").fetchone()
    except sqlite3.OperationalError:  # somebody is writing: it will have changed at the next look
        return None
    return int(version)
