"""The lock that holds back whoever records usage."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

_LOCK = text("LOCK TABLE usage_events IN SHARE ROW EXCLUSIVE MODE")


def hold_back_usage(session: Session) -> None:
    """Wait for the usage that is being recorded, and let what comes after wait until the transaction ends.

    On SQLite a transaction is the only writer anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(_LOCK)
