"""The tables of the HTTP API: its keys, its idempotent answers and its own secret."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, Index, Integer, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.db.base import TENANT_ID_LENGTH, Base, IdText, UtcDateTime


class ApiKeyRow(Base):
    """A key as it is kept: what it may do, and the digest that it is found by. The key itself is nowhere."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("uq_api_keys_digest", "digest", unique=True),)

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(String(TENANT_ID_LENGTH))
    name: Mapped[str] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(String(20))
    digest: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class IdempotentAnswerRow(Base):
    """The answer that was committed with what its request did; ``slot`` is the digest of key and caller."""

    __tablename__ = "idempotent_answers"
    __table_args__ = (
        CheckConstraint("status BETWEEN 200 AND 399", name="status"),
        Index("ix_idempotent_answers_created_at", "created_at"),
    )

    slot: Mapped[str] = mapped_column(String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(Integer)
    headers: Mapped[list[Any]] = mapped_column(JSON)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class InstallationSecretRow(Base):
    """A secret that all processes of an installation share, made by the first that needs it."""

    __tablename__ = "installation_secrets"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
