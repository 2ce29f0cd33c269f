"""The tables of invoices, of what waits for one, and of credit notes. ``amount`` is money in minor units."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Date,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.billing.columns import CALENDAR_CYCLE, CYCLE_LENGTH, MetricText, TenantText, utc_now
from svc_infra.db.base import Base, IdText, Quantity, UtcDateTime, new_id

_COUNTS = text("status <> 'void'")

# The tenant last: only its id may have spaces.
PERIODS_OF = "(hashtextextended(currency || ' ' || kind || ' ' || cycle || ' ' || tenant_id, 0))"


class Invoice(Base):
    """What a tenant owes for a period. ``total_amount`` is the sum of its lines, in minor units.

    A draft has no number and may be made anew until ``finalize_after``. What is finalized never changes: the
    triggers of ``invoice_guards`` let only the status, the provider's id and what was credited move on. A
    void invoice does not count, so its period can be invoiced again.
    """

    __tablename__ = "invoices"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        Index(
            "uq_invoices_identity",
            "tenant_id",
            "cycle",
            "currency",
            "period_start",
            "period_end",
            "kind",
            unique=True,
            sqlite_where=_COUNTS,
            postgresql_where=_COUNTS,
        ),
        Index(
            "ix_invoices_draft",
            "finalize_after",
            sqlite_where=text("status = 'draft'"),
            postgresql_where=text("status = 'draft'"),
        ),
        UniqueConstraint("tenant_id", "series", "number", name="uq_invoices_number"),
        CheckConstraint("period_end > period_start", name="period"),
        CheckConstraint("status IN ('draft', 'finalized', 'paid', 'void', 'uncollectible')", name="status"),
        CheckConstraint("(status = 'draft') = (number IS NULL)", name="number"),
        CheckConstraint("(status = 'draft') = (issued_at IS NULL)", name="issued_at"),
        CheckConstraint(
            "credited_amount = 0 OR (credited_amount > 0 AND credited_amount <= total_amount)",
            name="credited_amount",
        ),
        # Two periods of one cycle never overlap. SQLite has no such constraint: invoicing checks there,
        # under the file's one write lock. By a hash of what has to be equal: as texts, four columns of a
        # GiST index cost four times as much as the rest of the row. That two of 64 bits are the same by
        # chance, and refuse an invoice, is not to be expected in the life of any business.
        ExcludeConstraint(
            (text(PERIODS_OF), "="),
            (text("tstzrange(period_start, period_end)"), "&&"),
            name="ex_invoices_period",
            using="gist",
            where=_COUNTS,
        ).ddl_if(dialect="postgresql"),
    )

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    cycle: Mapped[str] = mapped_column(String(CYCLE_LENGTH), default=CALENDAR_CYCLE)
    kind: Mapped[str] = mapped_column(String(20), default="period")
    currency: Mapped[str] = mapped_column(String(3))
    period_start: Mapped[datetime] = mapped_column(UtcDateTime)
    period_end: Mapped[datetime] = mapped_column(UtcDateTime)
    status: Mapped[str] = mapped_column(String(16))
    series: Mapped[str] = mapped_column(String(40))
    number: Mapped[int | None] = mapped_column(BigInteger)
    total_amount: Mapped[int] = mapped_column(BigInteger)
    credited_amount: Mapped[int] = mapped_column(BigInteger, default=0)
    provider_invoice_id: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    finalize_after: Mapped[datetime | None] = mapped_column(UtcDateTime)
    issued_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    closed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    closed_reason: Mapped[str | None] = mapped_column(Text)


class _Billed:
    """What a line says, on an invoice or while it waits for one."""

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    kind: Mapped[str] = mapped_column(String(20))
    # No foreign key, which costs every line a look-up: a trigger lets nobody delete a version of a price.
    price_id: Mapped[str | None] = mapped_column(IdText)
    subscription_id: Mapped[str | None] = mapped_column(IdText)
    metric: Mapped[str | None] = mapped_column(MetricText)
    description: Mapped[str] = mapped_column(String(300), default="")
    period_start: Mapped[datetime] = mapped_column(UtcDateTime)
    period_end: Mapped[datetime] = mapped_column(UtcDateTime)
    quantity: Mapped[Decimal] = mapped_column(Quantity(50))
    amount: Mapped[int] = mapped_column(BigInteger)
    price_snapshot: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    details: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    adjusts_invoice_id: Mapped[str | None] = mapped_column(IdText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class InvoiceLine(_Billed, Base):
    """One price of one invoice, rounded once. ``amount`` is money in minor units, ``quantity`` is not.

    ``kind`` is ``fixed``, ``usage``, ``true_up`` (to a commitment), ``adjustment`` (what late usage changed
    about an earlier invoice, ``adjusts_invoice_id``), ``unused`` (the rest of a fixed price that was paid in
    advance) or ``credit`` (a balance carried from one invoice to the next). ``price_snapshot`` holds the
    terms that the line was rated with, and ``details`` what else entered the amount (``ratio``,
    ``minimum_ratio``, ``seats``), so it explains itself for ever.

    The lines of an invoice are written before it is: its foreign key is checked at the commit.
    """

    __tablename__ = "invoice_lines"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        ForeignKeyConstraint(
            ["tenant_id", "invoice_id"],
            ["invoices.tenant_id", "invoices.id"],
            deferrable=True,
            initially="DEFERRED",
        ),
        # On PostgreSQL it costs as much as three lines. There ``invoice_guards`` looks the subscriptions of
        # a statement up at once, and lets nobody delete one that lines name.
        ForeignKeyConstraint(
            ["tenant_id", "subscription_id"], ["subscriptions.tenant_id", "subscriptions.id"]
        ).ddl_if(dialect="sqlite"),
        UniqueConstraint("tenant_id", "invoice_id", "position", name="uq_invoice_lines_position"),
        Index(
            "ix_invoice_lines_adjusts_invoice_id",
            "tenant_id",
            "adjusts_invoice_id",
            sqlite_where=text("adjusts_invoice_id IS NOT NULL"),
            postgresql_where=text("adjusts_invoice_id IS NOT NULL"),
        ),
    )

    invoice_id: Mapped[str] = mapped_column(IdText)
    position: Mapped[int] = mapped_column(Integer)


class PendingLine(_Billed, Base):
    """A line that waits for the tenant's next invoice of its cycle and currency: late usage, or a credit."""

    __tablename__ = "pending_lines"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        Index("ix_pending_lines_tenant_id", "tenant_id", "cycle", "currency"),
    )

    cycle: Mapped[str] = mapped_column(String(CYCLE_LENGTH), default=CALENDAR_CYCLE)
    currency: Mapped[str] = mapped_column(String(3))


class UsageChange(Base):
    """A note that some day of a UTC month was recomputed since invoicing last looked at the month.

    Left by every recompute in its own transaction, consumed by invoicing: whatever part of the month had been
    invoiced before is then compared with what was billed. ``changes`` only gives the upsert something to do,
    so that it waits for a transaction that consumes the note.
    """

    __tablename__ = "usage_changes"

    tenant_id: Mapped[str] = mapped_column(TenantText, primary_key=True)
    metric: Mapped[str] = mapped_column(MetricText, primary_key=True)
    month: Mapped[date] = mapped_column(Date, primary_key=True)
    changes: Mapped[int] = mapped_column(BigInteger, default=1)


class InvoiceCounter(Base):
    """The last number given in a tenant's series; locked while an invoice or a credit note gets one."""

    __tablename__ = "invoice_counters"

    tenant_id: Mapped[str] = mapped_column(TenantText, primary_key=True)
    series: Mapped[str] = mapped_column(String(40), primary_key=True)
    last_number: Mapped[int] = mapped_column(BigInteger)


class CreditNote(Base):
    """What is taken back of a finalized invoice, which stays as it is. Amounts are positive minor units."""

    __tablename__ = "credit_notes"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "series", "number", name="uq_credit_notes_number"),
        ForeignKeyConstraint(["tenant_id", "invoice_id"], ["invoices.tenant_id", "invoices.id"]),
        CheckConstraint("total_amount > 0", name="total_amount"),
        Index("ix_credit_notes_invoice_id", "tenant_id", "invoice_id"),
    )

    id: Mapped[str] = mapped_column(IdText, default=new_id)
    tenant_id: Mapped[str] = mapped_column(TenantText)
    invoice_id: Mapped[str] = mapped_column(IdText)
    series: Mapped[str] = mapped_column(String(40))
    number: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    total_amount: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(200))
    issued_at: Mapped[datetime] = mapped_column(UtcDateTime)


class CreditNoteLine(Base):
    """What a credit note takes back of one invoice line; written before its note, like an invoice's lines."""

    __tablename__ = "credit_note_lines"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "credit_note_id", "invoice_line_id"),
        ForeignKeyConstraint(
            ["tenant_id", "credit_note_id"],
            ["credit_notes.tenant_id", "credit_notes.id"],
            deferrable=True,
            initially="DEFERRED",
        ),
        ForeignKeyConstraint(
            ["tenant_id", "invoice_line_id"], ["invoice_lines.tenant_id", "invoice_lines.id"]
        ),
        CheckConstraint("amount > 0", name="amount"),
        Index("ix_credit_note_lines_invoice_line_id", "tenant_id", "invoice_line_id"),
    )

    tenant_id: Mapped[str] = mapped_column(TenantText)
    credit_note_id: Mapped[str] = mapped_column(IdText)
    invoice_line_id: Mapped[str] = mapped_column(IdText)
    amount: Mapped[int] = mapped_column(BigInteger)
