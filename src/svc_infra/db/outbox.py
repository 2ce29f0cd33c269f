"""The outbox: messages that commit together with the change they announce.

Owns the table and the two stores. Does not own what a message means, where it goes or how it is sent:
that is ``svc_infra.webhooks``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, Protocol, cast

from sqlalchemy import (
    CheckConstraint,
    Index,
    LargeBinary,
    String,
    Table,
    Text,
    event,
    func,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, Session, mapped_column
from sqlalchemy.sql.dml import Insert

from svc_infra.canonical import compact_json
from svc_infra.db.after_commit import call_after_commit
from svc_infra.db.base import TENANT_ID_LENGTH, Base, IdText, UtcDateTime
from svc_infra.db.commit_notice import announce
from svc_infra.db.rowset import Rowset
from svc_infra.exceptions import NotInTransaction
from svc_infra.tracing import current_trace

# From so many messages on, one bulk insert is worth a round trip of its own (30 us a row are saved).
_BULK_ROWS = 20
MAX_KEY_LENGTH = 255
MESSAGES_CHANNEL = "svc_infra_messages"
"""The channel of the notices that messages were committed."""

_LISTENING = "svc_infra.outbox"

_IS_PENDING = text("state = 'pending'")
_HAS_DIGEST = text("idempotency_digest IS NOT NULL")

_TEXTS = ("id", "topic", "tenant_id", "key", "idempotency_digest", "trace_context")
_NEW = Rowset("new_messages", **dict.fromkeys(_TEXTS, Text()), body=Text, occurred_at=UtcDateTime)


class OutboxState(StrEnum):
    """``pending`` until the relay has made the deliveries of a message, then ``relayed``."""

    PENDING = "pending"
    RELAYED = "relayed"


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """One message as it was published; ``body`` is sent byte for byte, at every attempt, to everyone.

    Messages of one ``key`` arrive in their order where an endpoint asks for that. Of several with the same
    tenant, topic and ``idempotency_key`` only the first is kept. Without a ``trace_context`` (a W3C
    traceparent) it belongs to the trace that is being carried where it is stored.
    """

    id: str
    topic: str
    tenant_id: str | None
    body: bytes
    occurred_at: datetime
    key: str | None = None
    idempotency_key: str | None = None
    trace_context: str | None = None


class OutboxMessageRow(Base):
    """A published message, kept in the database of the business change.

    ``idempotency_digest`` stands for tenant, topic and idempotency key as one value, because in a unique key
    over several columns a missing tenant would be different from every other missing tenant.
    """

    __tablename__ = "outbox_messages"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'relayed')", name="state"),
        # Claimed by state, never by "id greater than": ids are made before commits become visible.
        Index("ix_outbox_messages_pending", "id", sqlite_where=_IS_PENDING, postgresql_where=_IS_PENDING),
        # Most messages have none, and need no entry.
        Index(
            "uq_outbox_messages_idempotency_digest",
            "idempotency_digest",
            unique=True,
            sqlite_where=_HAS_DIGEST,
            postgresql_where=_HAS_DIGEST,
        ),
    )

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    topic: Mapped[str] = mapped_column(String(200))
    tenant_id: Mapped[str | None] = mapped_column(String(TENANT_ID_LENGTH))
    body: Mapped[bytes] = mapped_column(LargeBinary)
    occurred_at: Mapped[datetime] = mapped_column(UtcDateTime)
    key: Mapped[str | None] = mapped_column(String(MAX_KEY_LENGTH))
    idempotency_digest: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default=OutboxState.PENDING.value)
    trace_context: Mapped[str | None] = mapped_column(String(255))


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
        inside ``run_sync``). A message that was published before under its idempotency key is left out.

        Raises:
            NotInTransaction: no session was given, so there is no change to commit with.
        """
        if session is None:
            raise NotInTransaction(
                "a durable outbox writes in the caller's transaction; pass session=, the Session or "
                "AsyncSession of the business change"
            )
        values = [_as_values(message) for message in messages]
        sync_session = session.sync_session if isinstance(session, AsyncSession) else session
        announce(sync_session, MESSAGES_CHANNEL)
        if isinstance(session, Session) and len(values) >= _BULK_ROWS:
            _insert(session, values)
            return
        if any(row["idempotency_digest"] for row in values):
            _insert_known_facts_only_once(sync_session)
        session.add_all([OutboxMessageRow(**row) for row in values])


def _insert_known_facts_only_once(session: Session) -> None:
    """Have the flush of ``session`` pass over messages that are there already.

    The unit of work knows no ON CONFLICT, and an error would end the caller's transaction.
    """
    if not session.info.get(_LISTENING):
        session.info[_LISTENING] = True
        event.listen(session, "before_flush", _before_flush)


def _before_flush(session: Session, *_: object) -> None:
    once = [row for row in session.new if isinstance(row, OutboxMessageRow) and row.idempotency_digest]
    if once:
        values = [{column.key: getattr(row, column.key) for column in _MESSAGES.c} for row in once]
        for row in once:
            session.expunge(row)
        _insert(session, values)


def _insert(session: Session, values: list[dict[str, Any]]) -> None:
    # In one order everywhere, so that two publishers of the same facts do not wait for each other.
    values.sort(key=lambda row: row["idempotency_digest"] or "")
    dialect = session.get_bind().dialect.name
    rows = [(*(row[name] for name in _TEXTS), row["body"].decode(), row["occurred_at"]) for row in values]
    session.connection().execute(_insert_new(dialect), _NEW.parameters(dialect, rows))


@cache
def _insert_new(dialect: str) -> Insert:
    new = _NEW.table(dialect)
    # A body is UTF-8, so it travels as text, which is the same bytes: SQLite's rowset is JSON.
    is_postgresql = dialect == "postgresql"
    body = func.convert_to(new.c.body, "UTF8") if is_postgresql else sql_cast(new.c.body, LargeBinary)
    values = {
        **{name: new.c[name] for name in _TEXTS},
        "body": body,
        "occurred_at": new.c.occurred_at,
        "state": literal_column(f"'{OutboxState.PENDING.value}'"),
    }
    # SQLite's grammar needs the WHERE to tell ON CONFLICT from a join's ON.
    rows = select(*values.values()).where(true())
    into = postgresql.insert(_MESSAGES) if is_postgresql else sqlite.insert(_MESSAGES)
    return into.from_select(list(values), rows).on_conflict_do_nothing(
        index_elements=["idempotency_digest"], index_where=_HAS_DIGEST
    )


_MESSAGES = cast(Table, OutboxMessageRow.__table__)


def idempotency_digest(tenant_id: str | None, topic: str, idempotency_key: str) -> str:
    """Return the text that is unique for a tenant's idempotency key of a topic."""
    return hashlib.sha256(compact_json([tenant_id, topic, idempotency_key]).encode()).hexdigest()


def _as_values(message: OutboxMessage) -> dict[str, Any]:
    return {
        "id": message.id,
        "topic": message.topic,
        "tenant_id": message.tenant_id,
        "body": message.body,
        "occurred_at": message.occurred_at,
        "key": message.key,
        "idempotency_digest": _digest_of(message),
        "state": OutboxState.PENDING.value,
        "trace_context": message.trace_context or current_trace(),
    }


def _digest_of(message: OutboxMessage) -> str | None:
    if message.idempotency_key is None:
        return None
    return idempotency_digest(message.tenant_id, message.topic, message.idempotency_key)


class InMemoryOutboxStore:
    """An outbox in this process's memory, for tests and first steps; it is gone with the process.

    Given a session, a message appears when the session's transaction commits, and never if it rolls back.
    """

    def __init__(self) -> None:
        self.messages: list[OutboxMessage] = []
        self._pending: list[OutboxMessage] = []
        self._known: set[str] = set()

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
        messages = [message for message in messages if self._is_new(message)]
        self.messages.extend(messages)
        self._pending.extend(messages)

    def _is_new(self, message: OutboxMessage) -> bool:
        digest = _digest_of(message)
        if digest is None:
            return True
        is_new = digest not in self._known
        self._known.add(digest)
        return is_new
