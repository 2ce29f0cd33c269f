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
    waiting: list[tuple[SessionTransaction, Callable[[], None]]] = session.info.setdefault(_KEY, [])
    waiting.append((session.get_nested_transaction() or session.get_transaction() or session.begin(), act))


def _run(session: Session) -> None:
    if _KEY not in session.info or session.in_nested_transaction():
        return  # of the latter this is the release of a savepoint
    for _, act in session.info.pop(_KEY):
        act()


def _forget(session: Session, rolled_back: SessionTransaction) -> None:
    if _KEY in session.info:
        session.info[_KEY] = [
            (asked_in, act) for asked_in, act in session.info[_KEY] if not _is_within(asked_in, rolled_back)
        ]


def _forget_all_after_the_outermost(session: Session, ended: SessionTransaction) -> None:
    # close() ends a transaction without an event of its own. What was committed has been called by now.
    if ended.parent is None and not ended.nested:
        session.info.pop(_KEY, None)


def _is_within(transaction: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while transaction is not None:
        if transaction is outer:
            return True
        transaction = transaction.parent
    return False


# Of the class and once: to listen to a session costs more than to record an event in it.
event.listen(Session, "after_commit", _run)
event.listen(Session, "after_soft_rollback", _forget)
event.listen(Session, "after_transaction_end", _forget_all_after_the_outermost)
