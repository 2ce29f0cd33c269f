"""Notices of commits: tell those who wait, here and in other processes, that there is something to do.

A notice is for a *channel*, the name of what was committed (jobs, messages). Missing one is harmless, because
everybody polls too. Who listens is in ``svc_infra.jobs.waking``.

- In the same process: at the commit of the session.
- On PostgreSQL: NOTIFY in the session's transaction, within the statement that writes the news if it can be.
  It takes one lock of the whole server at commit, so a process sends a few at once and then one every 20 ms
  on a channel. The last one before it falls silent says ``MORE``: who listens looks again a little later.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import String, bindparam, event, func, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from svc_infra.db.after_commit import call_after_commit

DEBOUNCE_SECONDS = 0.02
ALONE, MORE = "", "more"
_AT_ONCE = 4.0
_ANNOUNCED = "svc_infra.announced_channels"
_COMMITTING = "svc_infra.is_committing"
_NOTIFY = select(func.pg_notify(bindparam("channel", type_=String), bindparam("notice", type_=String)))

# By the URL of the database, because an application may work with several.
_wakers: dict[tuple[URL, str], set[Callable[[], None]]] = {}
# How many notifications may be sent now, as of an instant.
_allowed: dict[tuple[URL, str], tuple[float, float]] = {}


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
    session.info.setdefault(_ANNOUNCED, set()).add(channel)


def take_notice(session: Session, channel: str) -> str | None:
    """Return what a statement of a flush is to notify ``channel`` of; None if it is not to.

    Only in the flush of a commit: a notice that is sent by an earlier one would hold back those of others for
    as long as the transaction goes on.
    """
    if not session.info.get(_COMMITTING) or channel not in session.info[_ANNOUNCED]:
        return None
    session.info[_ANNOUNCED].discard(channel)
    return next_notice(session, channel)


def next_notice(session: Session, channel: str) -> str | None:
    """Return what to notify ``channel`` of now; None where too many were sent a moment ago."""
    key, now = (session.get_bind().engine.url, channel), time.monotonic()
    allowed, as_of = _allowed.get(key, (_AT_ONCE, now))
    allowed = min(_AT_ONCE, allowed + (now - as_of) / max(DEBOUNCE_SECONDS, 1e-9))
    is_allowed = allowed >= 1
    _allowed[key] = (allowed - is_allowed, now)
    if not is_allowed:
        return None
    return MORE if allowed < 2 else ALONE


def _wake_all(url: URL, channel: str) -> None:
    for wake in list(_wakers.get((url, channel), ())):
        wake()


def _notify(session: Session) -> None:
    if not session.info.get(_ANNOUNCED) or session.in_nested_transaction():
        return
    session.info[_COMMITTING] = True
    try:
        session.flush()
    finally:
        del session.info[_COMMITTING]
    channels = session.info.pop(_ANNOUNCED)
    for channel in sorted(channels):
        notice = next_notice(session, channel)
        if notice is not None:
            session.connection().execute(_NOTIFY, {"channel": channel, "notice": notice})


# Of the class and once: to listen to a session costs more than to send a notification.
event.listen(Session, "before_commit", _notify)
