"""Waking what is idle when there is something to do. Polling alone is correct; this makes it quick.

- In the same process, and on PostgreSQL from others: by a ``commit_notice``. LISTEN needs a connection of its
  own and does not work behind a pooler in transaction mode.
- On SQLite: ``PRAGMA data_version`` changes when another connection has committed. It is asked soon after the
  file was written, as the system tells, and five times a second where it does not.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from svc_infra.db import commit_notice
from svc_infra.db.commit_notice import DEBOUNCE_SECONDS, MORE, add_waker, remove_waker
from svc_infra.db.file_watch import LOOK_SECONDS, watched
from svc_infra.db.session import make_engine
from svc_infra.jobs.loop import run_loop, wait_any

JOBS_CHANNEL = "svc_infra_jobs"
_RECONNECT_SECONDS = 300.0
# One commit is several writes.
_LOOK_AFTER_SECONDS = 0.005


def announce(session: Session) -> None:
    """Wake workers when the transaction of ``session``, which has enqueued jobs, commits."""
    commit_notice.announce(session, JOBS_CHANNEL)


class WakeUp:
    """Calls ``wake`` in the running loop soon after a notice on ``channel`` in the database of ``url``."""

    def __init__(self, url: URL, wake: Callable[[], None], *, channel: str = JOBS_CHANNEL) -> None:
        self._url = url
        self._channel = channel
        self._wake = wake

    async def run(self, stop: asyncio.Event, *, is_listening: bool = True) -> None:
        """Watch until ``stop`` is set; without ``is_listening`` only what this process commits."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._wake)

        add_waker(self._url, self._channel, wake)
        try:
            is_memory = self._url.database in (None, "", ":memory:")
            if not is_listening or (self._url.get_backend_name() == "sqlite" and is_memory):
                await stop.wait()
            elif self._url.get_backend_name() == "sqlite":
                await self._watch_file(stop)
            else:
                name = f"{self._channel}.listen"
                await run_loop(name, lambda: self._listen(stop), stop=stop, poll_seconds=0.1)
        finally:
            remove_waker(self._url, self._channel, wake)

    async def _listen(self, stop: asyncio.Event) -> bool:
        """Listen until the connection is lost, ``stop`` is set or it is time to try a new connection."""
        loop, is_lost = asyncio.get_running_loop(), asyncio.Event()

        last_look: asyncio.TimerHandle | None = None

        def on_notification(_connection: Any, _pid: int, _channel: str, notice: str) -> None:
            nonlocal last_look
            self._wake()
            if notice != MORE:
                return
            # For what was committed without a notification of its own; the next one would find it, too.
            if last_look is not None:
                last_look.cancel()
            last_look = loop.call_later(2 * DEBOUNCE_SECONDS, self._wake)

        engine = make_engine(self._url, behind_transaction_pooler=True)  # which has no pool of its own
        try:
            async with engine.connect() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                driver.add_termination_listener(lambda *_: is_lost.set())
                await driver.add_listener(self._channel, on_notification)
                # What was committed before this moment was announced to nobody.
                self._wake()
                await wait_any(stop, is_lost, timeout_seconds=_RECONNECT_SECONDS)
                if not is_lost.is_set():
                    await driver.remove_listener(self._channel, on_notification)
        finally:
            await engine.dispose()
        return False

    async def _watch_file(self, stop: asyncio.Event) -> None:
        """Look at the file's version soon after it was written, and wake where somebody has committed."""
        connection = sqlite3.connect(str(self._url.database), timeout=0, isolation_level=None)
        loop, seen = asyncio.get_running_loop(), -1
        next_look: asyncio.TimerHandle | None = None

        def look_soon() -> None:
            nonlocal next_look
            if next_look is None:
                next_look = loop.call_later(_LOOK_AFTER_SECONDS, look)

        def look() -> None:
            nonlocal next_look, seen
            next_look = None
            version = _data_version(connection)
            if version is None:  # somebody is writing: the commit may come without another write
                look_soon()
            elif version != seen:
                seen = version
                self._wake()

        try:
            with watched(_file_of(connection), look_soon) as is_watched:
                look()
                seconds = _RECONNECT_SECONDS if is_watched else LOOK_SECONDS
                while not await wait_any(stop, timeout_seconds=seconds):
                    look()
        finally:
            if next_look is not None:
                next_look.cancel()
            connection.close()


def _file_of(connection: sqlite3.Connection) -> Path:
    return Path(connection.execute("PRAGMA database_list").fetchone()[2])


def _data_version(connection: sqlite3.Connection) -> int | None:
    try:
        (version,) = connection.execute("PRAGMA data_version").fetchone()
    except sqlite3.OperationalError:
        return None
    return int(version)
