"""Notices of commits: tell those who wait, here and in other processes, that there is something to do.

A notice is for a *channel*, the name of what was committed (jobs, messages). Missing one is harmless, because
everybody polls too. Who listens is in ``svc_infra.jobs.waking``.

- In the same process: at the commit of the session.
- On PostgreSQL: NOTIFY in the session's transaction. It takes one lock of the whole server at commit, so a
  process sends it at most every 20 ms on a channel; who listens looks once more after twice that time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import String, bindparam, event, func, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from svc_infra.db.after_commit import call_after_commit

DEBOUNCE_SECONDS = 0.02
_ANNOUNCING = "svc_infra.announced_channels"
_NOTIFY = select(func.pg_notify(bindparam("channel", type_=String), ""))

# By the URL of the database, because an application may work with several.
_wakers: dict[tuple[URL, str], set[Callable[[], None]]] = {}
_notified_at: dict[tuple[URL, str], float] = {}


def add_waker(url: URL, channel: str, wake: Callable[[], None]) -> None:
    """Have ``wake`` called, in whichever thread commits, at every commit in this process on ``channel``."""
    _wakers.setdefault((url, channel), set()).add(wake)


def remove_waker(url: URL, channel: str, wake: Callable[[], None]) -> None:
    """Call ``wake`` no more."""
    _wakers.get((url, channel), set()).discard(wake)


def announce(session: Session, channel: str) -> None:
    """Give notice on ``channel`` when the transaction of ``session`` commits."""
    url = session.get_bind().engine.url
    if _wakers.get((url, channel)):
        call_after_commit(session, lambda: _wake_all(url, channel))
    if url.get_backend_name() != "postgresql":
        return
    if _ANNOUNCING not in session.info:
        event.listen(session, "before_commit", _notify)
        session.info[_ANNOUNCING] = set()
    session.info[_ANNOUNCING].add(channel)


def _wake_all(url: URL, channel: str) -> None:
    for wake in list(_wakers.get((url, channel), ())):
        wake()


def _notify(session: Session) -> None:
    if session.in_nested_transaction() or not session.info[_ANNOUNCING]:
        return
    channels, session.info[_ANNOUNCING] = session.info[_ANNOUNCING], set()
    url, now = session.get_bind().engine.url, time.monotonic()
    for channel in sorted(channels):
        if now - _notified_at.get((url, channel), 0.0) >= DEBOUNCE_SECONDS:
            _notified_at[url, channel] = now
            session.connection().execute(_NOTIFY, {"channel": channel})
