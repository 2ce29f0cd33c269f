"""Acts that wait for a transaction's commit: what the memory stores do when they are given a session."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

_KEY = "svc_infra.after_commit"


def call_after_commit(session: Session, act: Callable[[], None]) -> None:
    """Call ``act`` once the outermost transaction of ``session`` has committed.

    It is forgotten when that transaction, or the savepoint it was asked for in, rolls back, and when the
    session is closed without a commit.
    """
    waiting: list[tuple[SessionTransaction, Callable[[], None]]] | None = session.info.get(_KEY)
    if waiting is None:
        waiting = session.info[_KEY] = []
        event.listen(session, "after_commit", _run)
        event.listen(session, "after_soft_rollback", _forget)
        event.listen(session, "after_transaction_end", _forget_all_after_the_outermost)
    waiting.append((session.get_nested_transaction() or session.get_transaction() or session.begin(), act))


def _run(session: Session) -> None:
    if session.in_nested_transaction():
        return  # the release of a savepoint
    waiting, session.info[_KEY] = session.info[_KEY], []
    for _, act in waiting:
        act()


def _forget(session: Session, rolled_back: SessionTransaction) -> None:
    session.info[_KEY] = [
        (asked_in, act) for asked_in, act in session.info[_KEY] if not _is_within(asked_in, rolled_back)
    ]


def _forget_all_after_the_outermost(session: Session, ended: SessionTransaction) -> None:
    # close() ends a transaction without an event of its own. What was committed has been called by now.
    if ended.parent is None and not ended.nested:
        session.info[_KEY] = []


def _is_within(transaction: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while transaction is not None:
        if transaction is outer:
            return True
        transaction = transaction.parent
    return False
