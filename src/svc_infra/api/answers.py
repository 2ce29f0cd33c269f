"""Idempotent answers as they are stored: committed with what their requests did, and kept for three days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Executable, bindparam, delete, func, literal_column, select
from sqlalchemy.orm import Session

from svc_infra.api.models import IdempotentAnswerRow
from svc_infra.db.base import UtcDateTime

ANSWERS_KEPT_FOR = timedelta(days=3)


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """The answer that a request got, to be sent again to one with the same fingerprint."""

    fingerprint: str
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


def claim_slot(session: Session, slot: str) -> bool:
    """Whether this transaction may answer for ``slot``; False while another one is doing so."""
    if session.get_bind().dialect.name != "postgresql":
        return True  # transactions that write take turns on SQLite
    # Held to the end of the transaction.
    is_ours = select(func.pg_try_advisory_xact_lock(func.hashtextextended(slot, 0)))
    return bool(session.scalars(is_ours).one())


def find_answer(session: Session, slot: str) -> KeptAnswer | None:
    """The answer that is kept in ``slot``."""
    row = session.get(IdempotentAnswerRow, slot)
    if row is None:
        return None
    return KeptAnswer(row.fingerprint, row.status, [(name, value) for name, value in row.headers], row.body)


def keep_answer(session: Session, slot: str, answer: KeptAnswer, *, now: datetime) -> None:
    """Keep an answer in the session's transaction."""
    session.add(
        IdempotentAnswerRow(
            slot=slot,
            fingerprint=answer.fingerprint,
            status=answer.status,
            headers=[list(header) for header in answer.headers],
            body=answer.body,
            created_at=now,
        )
    )
    session.flush()


def prune_answers(session: Session, *, now: datetime, limit: int = 1_000) -> int:
    """Delete up to ``limit`` answers that nobody can ask for again; return how many."""
    given = {"before": now - ANSWERS_KEPT_FOR, "limit": limit}
    return len(session.connection().execute(_prune(), given).all())


@cache
def _prune() -> Executable:
    row = IdempotentAnswerRow
    before: Any = bindparam("before", type_=UtcDateTime)
    old = select(row.slot).where(row.created_at < before).limit(bindparam("limit"))
    return delete(row).where(row.slot.in_(old)).returning(literal_column("1"))
