"""What somebody did by hand: one row for each act, written in the act's own transaction and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.db.base import new_id
from svc_infra.exceptions import InvalidAct
from svc_infra.jobs.models import AdminActRow

_acts = AdminActRow.metadata.tables[AdminActRow.__tablename__]
_MAX_ACTOR_LENGTH = 200
_MAX_SUBJECT_LENGTH = 255


@dataclass(frozen=True, slots=True)
class AdminAct:
    """Who did what to which job, queue or schedule, and when."""

    id: str
    at: datetime
    actor: str
    act: str
    subject: str
    detail: Mapping[str, Any]


def record_act(session: Session, act: str, subject: str, *, actor: str, now: datetime, **detail: Any) -> None:
    """Record an act in the transaction that does it.

    Raises:
        InvalidAct: the actor is not named, or the name is longer than 200 characters.
    """
    if not actor or len(actor) > _MAX_ACTOR_LENGTH:
        raise InvalidAct(f"an actor has 1 to {_MAX_ACTOR_LENGTH} characters, got {actor!r:.80}; say who acts")
    session.execute(
        _acts.insert().values(
            id=new_id(), at=now, actor=actor, act=act, subject=subject[:_MAX_SUBJECT_LENGTH], detail=detail
        )
    )


def list_acts(
    session: Session, *, subject: str | None = None, before: str | None = None, limit: int = 100
) -> list[AdminAct]:
    """Return the newest acts first, all or those on one subject; for the next page give the last id."""
    query = select(_acts).order_by(_acts.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(_acts.c.id < before)
    if subject is not None:
        query = query.where(_acts.c.subject == subject)
    return [AdminAct(**row._mapping) for row in session.execute(query)]
