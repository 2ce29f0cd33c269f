"""The outbox: messages that commit together with the change they announce.

Owns the table and the two stores. Does not own what a message means, where it goes or how it is sent:
that is ``svc_infra.webhooks``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol, cast

from sqlalchemy import CheckConstraint, Index, LargeBinary, String, Table, insert, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, Session, mapped_column

from svc_infra.db.after_commit import call_after_commit
from svc_infra.db.base import TENANT_ID_LENGTH, Base, IdText, UtcDateTime
from svc_infra.exceptions import NotInTransaction

# From so many messages on, one bulk insert is worth a round trip of its own (30 us a row are saved).
_BULK_ROWS = 20

_IS_PENDING = text("state = 'pending'")


class OutboxState(StrEnum):
    """``pending`` until the relay has made the deliveries of a message, then ``relayed``."""

    PENDING = "pending"
    RELAYED = "relayed"


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """One message as it was published; ``body`` is sent byte for byte, at every attempt, to everyone."""

    id: str
    topic: str
    tenant_id: str | None
    body: bytes
    occurred_at: datetime


class OutboxMessageRow(Base):
    """A published message, kept in the database of the business change."""

    __tablename__ = "outbox_messages"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'relayed')", name="state"),
        # Claimed by state, never by "id greater than": ids are made before commits become visible.
        Index("ix_outbox_messages_pending", "id", sqlite_where=_IS_PENDING, postgresql_where=_IS_PENDING),
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    topic: Mapped[str] = mapped_column(String(200))
    tenant_id: Mapped[str | None] = mapped_column(String(TENANT_ID_LENGTH))
    body: Mapped[bytes] = mapped_column(LargeBinary)
    occurred_at: Mapped[datetime] = mapped_column(UtcDateTime)
    state: Mapped[str] = mapped_column(String(16), default=OutboxState.PENDING.value)


class OutboxStore(Protocol):
    """Where ``publish`` puts messages. Called without await, it only records what is to be written."""

    def add(
        self, messages: Iterable[OutboxMessage], *, session: Session | AsyncSession | None = None
    ) -> None:
        """Keep ``messages`` if, and only if, the transaction of ``session`` commits."""
        ...


class SqlOutboxStore:
    """The durable outbox: messages are rows in the transaction of the change that they announce."""

    def add(
        self, messages: Iterable[OutboxMessage], *, session: Session | AsyncSession | None = None
    ) -> None:
        """Write ``messages`` in the transaction of ``session``.

        A few become pending rows of the unit of work, which flush with the business change. Many, given to a
        ``Session``, are inserted at once; call it then from where that session may execute (in async code:
        inside ``run_sync``).

        Raises:
            NotInTransaction: no session was given, so there is no change to commit with.
        """
        if session is None:
            raise NotInTransaction(
                "a durable outbox writes in the caller's transaction; pass session=, the Session or "
                "AsyncSession of the business change"
            )
        values = [_as_values(message) for message in messages]
        if isinstance(session, Session) and len(values) >= _BULK_ROWS:
            session.execute(insert(cast(Table, OutboxMessageRow.__table__)), values)
        else:
            session.add_all([OutboxMessageRow(**row) for row in values])


def _as_values(message: OutboxMessage) -> dict[str, object]:
    return {
        "id": message.id,
        "topic": message.topic,
        "tenant_id": message.tenant_id,
        "body": message.body,
        "occurred_at": message.occurred_at,
        "state": OutboxState.PENDING.value,
    }


class InMemoryOutboxStore:
    """An outbox in this process's memory, for tests and first steps; it is gone with the process.

    Given a session, a message appears when the session's transaction commits, and never if it rolls back.
    """

    def __init__(self) -> None:
        self.messages: list[OutboxMessage] = []
        self._pending: list[OutboxMessage] = []

    def add(
        self, messages: Iterable[OutboxMessage], *, session: Session | AsyncSession | None = None
    ) -> None:
        """Store ``messages`` now, or with the commit of ``session``."""
        messages = list(messages)
        if session is None:
            self._append(messages)
        else:
            sync_session = session.sync_session if isinstance(session, AsyncSession) else session
            call_after_commit(sync_session, lambda: self._append(messages))

    def take_pending(self, limit: int) -> list[OutboxMessage]:
        """Return up to ``limit`` messages that have not been taken before, oldest first."""
        taken, self._pending = self._pending[:limit], self._pending[limit:]
        return taken

    def _append(self, messages: list[OutboxMessage]) -> None:
        self.messages.extend(messages)
        self._pending.extend(messages)
