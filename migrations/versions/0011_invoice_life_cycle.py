"""The life of an invoice and its walls; late usage, credit notes, versions of prices, subscriptions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

COUNTS = sa.text("status <> 'void'")
INSTANT = sa.DateTime(timezone=True)
EXCLUDE_INVOICES = (
    "ALTER TABLE invoices ADD CONSTRAINT ex_invoices_period EXCLUDE USING gist"
    " (tenant_id WITH =, cycle WITH =, currency WITH =, kind WITH =,"
    " tstzrange(period_start, period_end) WITH &&)"
)


def quantity(precision: int, scale: int) -> sa.types.TypeEngine:
    """An exact decimal: canonical text on SQLite, which would keep a NUMERIC as a binary float."""
    return sa.Numeric(precision, scale).with_variant(sa.String(precision + 2), "sqlite")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        upgrade_postgresql()
    else:
        upgrade_sqlite()
    upgrade_prices()
    create_tables()
    for statement in GUARDS[op.get_bind().dialect.name]:
        op.execute(statement)


def upgrade_postgresql() -> None:
    op.drop_constraint("ex_invoices_period", "invoices")
    op.drop_constraint("uq_invoices_identity", "invoices")
    op.alter_column("invoices", "finalized_at", new_column_name="issued_at")
    op.add_column(
        "invoices", sa.Column("credited_amount", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.alter_column("invoices", "credited_amount", server_default=None)
    for column in invoice_columns():
        op.add_column("invoices", column)
    op.execute("UPDATE invoices SET issued_at = created_at WHERE status <> 'draft' AND issued_at IS NULL")
    op.execute("UPDATE invoices SET due_at = issued_at")
    for name, condition in INVOICE_CHECKS.items():
        op.create_check_constraint(op.f(f"ck_invoices_{name}"), "invoices", condition)
    op.execute(f"{EXCLUDE_INVOICES} WHERE (status <> 'void')")
    create_invoice_indexes()
    lines_of = "fk_invoice_lines_tenant_id_invoice_id_invoices"
    keys = (["tenant_id", "invoice_id"], ["tenant_id", "id"])
    op.drop_constraint(lines_of, "invoice_lines", type_="foreignkey")
    op.drop_constraint("fk_invoice_lines_price_id_prices", "invoice_lines", type_="foreignkey")
    op.create_foreign_key(lines_of, "invoice_lines", "invoices", *keys, deferrable=True, initially="DEFERRED")
    for column in line_columns():
        op.add_column("invoice_lines", column)
    create_line_indexes()
    op.add_column("tenants", sa.Column("due_days", sa.Integer(), nullable=False, server_default="0"))
    op.alter_column("tenants", "due_days", server_default=None)
    op.create_check_constraint(op.f("ck_tenants_due_days"), "tenants", "due_days >= 0")
    op.add_column("subscriptions", sa.Column("quantity", sa.BigInteger(), nullable=False, server_default="1"))
    op.alter_column("subscriptions", "quantity", server_default=None)
    op.add_column(
        "subscriptions", sa.Column("cycle", sa.String(40), nullable=False, server_default="calendar")
    )
    op.alter_column("subscriptions", "cycle", server_default=None)
    op.create_check_constraint(op.f("ck_subscriptions_quantity"), "subscriptions", "quantity > 0")
    op.execute(
        "ALTER TABLE subscriptions ADD CONSTRAINT ex_subscriptions_period EXCLUDE USING gist"
        " (tenant_id WITH =, plan_id WITH =, tstzrange(effective_at, ended_at) WITH &&)"
    )
    add_plain_columns()


def upgrade_sqlite() -> None:
    """SQLite changes no constraint of a table, so the two tables of invoices are made anew and filled."""
    rebuild(
        invoices_table("new_invoices", is_new=True),
        lines_table("new_invoice_lines", "new_invoices", is_new=True),
        {
            "issued_at": "coalesce(finalized_at, CASE WHEN status = 'draft' THEN NULL ELSE created_at END)",
            "due_at": "finalized_at",
            "credited_amount": "0",
        },
    )
    create_invoice_indexes()
    create_line_indexes()
    op.execute(
        "ALTER TABLE tenants ADD COLUMN due_days INTEGER DEFAULT 0 NOT NULL"
        " CONSTRAINT ck_tenants_due_days CHECK (due_days >= 0)"
    )
    op.execute(
        "ALTER TABLE subscriptions ADD COLUMN quantity BIGINT DEFAULT 1 NOT NULL"
        " CONSTRAINT ck_subscriptions_quantity CHECK (quantity > 0)"
    )
    op.execute("ALTER TABLE subscriptions ADD COLUMN cycle VARCHAR(40) DEFAULT 'calendar' NOT NULL")
    add_plain_columns()


def rebuild(invoices: sa.Table, lines: sa.Table, renamed: dict[str, str]) -> None:
    """Copy both tables into new shapes under their old names; ``renamed`` gives columns their expressions."""
    connection = op.get_bind()
    for table, old in ((invoices, "invoices"), (lines, "invoice_lines")):
        table.create(connection)
        known = {column["name"] for column in sa.inspect(connection).get_columns(old)}
        named = {column.name: column.name for column in table.columns if column.name in known}
        if old == "invoices":
            named |= renamed
        columns, values = ", ".join(named), ", ".join(named.values())
        op.execute(f"INSERT INTO {table.name} ({columns}) SELECT {values} FROM {old}")
    op.drop_table("invoice_lines")
    op.drop_table("invoices")
    op.rename_table(invoices.name, "invoices")
    op.rename_table(lines.name, "invoice_lines")


def invoices_table(name: str, *, is_new: bool) -> sa.Table:
    last = [sa.Column("credited_amount", sa.BigInteger(), nullable=False), *invoice_columns()]
    checks = dict(INVOICE_CHECKS)
    if is_new:
        last.insert(0, sa.Column("issued_at", INSTANT))
        keys = []
    else:
        last, checks = [sa.Column("finalized_at", INSTANT)], {}
        identity = ("tenant_id", "cycle", "currency", "period_start", "period_end", "kind")
        keys = [sa.UniqueConstraint(*identity, name="uq_invoices_identity")]
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("cycle", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("period_start", INSTANT, nullable=False),
        sa.Column("period_end", INSTANT, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("series", sa.String(length=40), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("total_amount", sa.BigInteger(), nullable=False),
        sa.Column("provider_invoice_id", sa.String(length=255), nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        *last,
        *(sa.CheckConstraint(text, name=f"ck_invoices_{key}") for key, text in checks.items()),
        sa.CheckConstraint("(status = 'draft') = (number IS NULL)", name="ck_invoices_number"),
        sa.CheckConstraint(
            "status IN ('draft', 'finalized', 'paid', 'void', 'uncollectible')", name="ck_invoices_status"
        ),
        sa.CheckConstraint("period_end > period_start", name="ck_invoices_period"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_invoices"),
        sa.UniqueConstraint("tenant_id", "series", "number", name="uq_invoices_number"),
        *keys,
    )


def lines_table(name: str, invoices: str, *, is_new: bool) -> sa.Table:
    """The lines; that they may be written before their invoice is what is new of the key."""
    metadata = sa.MetaData()
    for other in (invoices, "subscriptions"):
        keys = [sa.Column("tenant_id", sa.String(255)), sa.Column("id", sa.String(40))]
        sa.Table(other, metadata, *keys)
    sa.Table("prices", metadata, sa.Column("id", sa.String(40)))
    extra: list[sa.schema.SchemaItem]
    if is_new:
        extra = [*line_columns(), lines_of(invoices, deferrable=True, initially="DEFERRED")]
    else:
        of_price = sa.ForeignKeyConstraint(
            ["price_id"], ["prices.id"], name="fk_invoice_lines_price_id_prices"
        )
        extra = [lines_of(invoices), of_price]
    return sa.Table(
        name,
        metadata,
        *billed_columns(),
        sa.Column("invoice_id", sa.String(length=40), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        *extra,
        sa.ForeignKeyConstraint(
            ["tenant_id", "subscription_id"],
            ["subscriptions.tenant_id", "subscriptions.id"],
            name="fk_invoice_lines_tenant_id_subscription_id_subscriptions",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_invoice_lines"),
        sa.UniqueConstraint("tenant_id", "invoice_id", "position", name="uq_invoice_lines_position"),
    )


def lines_of(invoices: str, **more: object) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id", "invoice_id"],
        [f"{invoices}.tenant_id", f"{invoices}.id"],
        name="fk_invoice_lines_tenant_id_invoice_id_invoices",
        **more,  # type: ignore[arg-type]
    )


def invoice_columns() -> list[sa.Column]:
    return [
        sa.Column("finalize_after", INSTANT),
        sa.Column("due_at", INSTANT),
        sa.Column("closed_at", INSTANT),
        sa.Column("closed_reason", sa.Text()),
    ]


def line_columns() -> list[sa.Column]:
    return [
        sa.Column("details", sa.JSON(none_as_null=True)),
        sa.Column("adjusts_invoice_id", sa.String(length=40)),
    ]


def billed_columns() -> list[sa.Column]:
    return [
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("price_id", sa.String(length=40), nullable=True),
        sa.Column("subscription_id", sa.String(length=40), nullable=True),
        sa.Column("metric", sa.String(length=200), nullable=True),
        sa.Column("description", sa.String(length=300), nullable=False),
        sa.Column("period_start", INSTANT, nullable=False),
        sa.Column("period_end", INSTANT, nullable=False),
        sa.Column("quantity", quantity(50, 12), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("price_snapshot", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
    ]


def create_invoice_indexes() -> None:
    op.create_index(
        "uq_invoices_identity",
        "invoices",
        ["tenant_id", "cycle", "currency", "period_start", "period_end", "kind"],
        unique=True,
        sqlite_where=COUNTS,
        postgresql_where=COUNTS,
    )
    is_draft = sa.text("status = 'draft'")
    op.create_index(
        "ix_invoices_draft", "invoices", ["finalize_after"], sqlite_where=is_draft, postgresql_where=is_draft
    )


def create_line_indexes() -> None:
    adjusts = sa.text("adjusts_invoice_id IS NOT NULL")
    op.create_index(
        "ix_invoice_lines_adjusts_invoice_id",
        "invoice_lines",
        ["tenant_id", "adjusts_invoice_id"],
        sqlite_where=adjusts,
        postgresql_where=adjusts,
    )


def add_plain_columns() -> None:
    op.add_column("tenants", sa.Column("parked_at", INSTANT))
    op.add_column("tenants", sa.Column("parked_reason", sa.Text()))
    op.add_column("subscriptions", sa.Column("trial_ends_at", INSTANT))
    op.add_column("subscriptions", sa.Column("anchor_on", sa.Date()))


def upgrade_prices() -> None:
    """Every price that there is becomes the first version of itself."""
    since = sa.Column("effective_on", sa.Date(), nullable=False, server_default="1900-01-01")
    op.add_column("prices", since)
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("prices", "effective_on", server_default=None)
    op.add_column("prices", sa.Column("ended_on", sa.Date()))
    create_price_indexes(" AND ended_on IS NULL")


def create_price_indexes(more: str) -> None:
    for name, columns, condition in (
        ("uq_prices_plan_id", ["plan_id", "key", "currency"], "plan_id IS NOT NULL"),
        ("uq_prices_key", ["key", "currency"], "plan_id IS NULL"),
    ):
        op.drop_index(name, "prices")
        where = sa.text(condition + more)
        op.create_index(name, "prices", columns, unique=True, sqlite_where=where, postgresql_where=where)


def create_tables() -> None:
    op.create_table(
        "usage_changes",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("metric", sa.String(length=200), nullable=False),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("changes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "metric", "month", name="pk_usage_changes"),
    )
    op.create_table(
        "pending_lines",
        *billed_columns(),
        *line_columns(),
        sa.Column("cycle", sa.String(length=40), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_pending_lines"),
    )
    op.create_index("ix_pending_lines_tenant_id", "pending_lines", ["tenant_id", "cycle", "currency"])
    op.create_table(
        "credit_notes",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("invoice_id", sa.String(length=40), nullable=False),
        sa.Column("series", sa.String(length=40), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("total_amount", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("issued_at", INSTANT, nullable=False),
        sa.CheckConstraint("total_amount > 0", name=op.f("ck_credit_notes_total_amount")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "invoice_id"],
            ["invoices.tenant_id", "invoices.id"],
            name="fk_credit_notes_tenant_id_invoice_id_invoices",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_credit_notes"),
        sa.UniqueConstraint("tenant_id", "series", "number", name="uq_credit_notes_number"),
    )
    op.create_index("ix_credit_notes_invoice_id", "credit_notes", ["tenant_id", "invoice_id"])
    op.create_table(
        "credit_note_lines",
        sa.Column("tenant_id", sa.String(length=255), nullable=False),
        sa.Column("credit_note_id", sa.String(length=40), nullable=False),
        sa.Column("invoice_line_id", sa.String(length=40), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount > 0", name=op.f("ck_credit_note_lines_amount")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "credit_note_id"],
            ["credit_notes.tenant_id", "credit_notes.id"],
            name="fk_credit_note_lines_tenant_id_credit_note_id_credit_notes",
            deferrable=True,
            initially="DEFERRED",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "invoice_line_id"],
            ["invoice_lines.tenant_id", "invoice_lines.id"],
            name="fk_credit_note_lines_tenant_id_invoice_line_id_invoice_lines",
        ),
        sa.PrimaryKeyConstraint(
            "tenant_id", "credit_note_id", "invoice_line_id", name="pk_credit_note_lines"
        ),
    )
    op.create_index(
        "ix_credit_note_lines_invoice_line_id", "credit_note_lines", ["tenant_id", "invoice_line_id"]
    )


def downgrade() -> None:
    """Back to the shapes before. Later versions of prices, pending lines and credit notes are lost."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    for table in ("credit_note_lines", "credit_notes", "pending_lines", "usage_changes"):
        op.drop_table(table)
    if is_postgresql:
        for name in ("invoices_insert", "invoices_update", "invoices_delete"):
            op.execute(f"DROP TRIGGER {name} ON invoices")
        for name in ("invoice_lines_insert", "invoice_lines_update", "invoice_lines_delete"):
            op.execute(f"DROP TRIGGER {name} ON invoice_lines")
        op.execute("DROP TRIGGER prices_change ON prices")
        for name in FUNCTIONS:
            op.execute(f"DROP FUNCTION guard_{name}()")
    else:
        op.execute("DROP TRIGGER prices_update")
        op.execute("DROP TRIGGER prices_delete")
    op.execute("UPDATE invoices SET number = NULL WHERE status = 'draft'")
    op.execute("DELETE FROM prices WHERE effective_on <> '1900-01-01'")
    create_price_indexes("")
    op.drop_column("prices", "effective_on")
    op.drop_column("prices", "ended_on")
    for name in ("trial_ends_at", "anchor_on", "cycle"):
        op.drop_column("subscriptions", name)
    for name in ("parked_at", "parked_reason"):
        op.drop_column("tenants", name)
    if is_postgresql:
        downgrade_postgresql()
    else:
        downgrade_sqlite()


def downgrade_postgresql() -> None:
    op.drop_constraint("ex_subscriptions_period", "subscriptions")
    op.drop_column("subscriptions", "quantity")
    op.drop_column("tenants", "due_days")
    op.drop_index("ix_invoice_lines_adjusts_invoice_id", "invoice_lines")
    for column in line_columns():
        op.drop_column("invoice_lines", column.name)
    name = "fk_invoice_lines_tenant_id_invoice_id_invoices"
    op.drop_constraint(name, "invoice_lines", type_="foreignkey")
    op.create_foreign_key(name, "invoice_lines", "invoices", ["tenant_id", "invoice_id"], ["tenant_id", "id"])
    op.create_foreign_key("fk_invoice_lines_price_id_prices", "invoice_lines", "prices", ["price_id"], ["id"])
    op.drop_index("uq_invoices_identity", "invoices")
    op.drop_index("ix_invoices_draft", "invoices")
    op.drop_constraint("ex_invoices_period", "invoices")
    for check in INVOICE_CHECKS:
        op.drop_constraint(op.f(f"ck_invoices_{check}"), "invoices")
    for column in [*invoice_columns(), sa.Column("credited_amount", sa.BigInteger())]:
        op.drop_column("invoices", column.name)
    op.alter_column("invoices", "issued_at", new_column_name="finalized_at")
    identity = ["tenant_id", "cycle", "currency", "period_start", "period_end", "kind"]
    op.create_unique_constraint("uq_invoices_identity", "invoices", identity)
    op.execute(EXCLUDE_INVOICES)


def downgrade_sqlite() -> None:
    op.execute("ALTER TABLE subscriptions DROP COLUMN quantity")
    op.execute("ALTER TABLE tenants DROP COLUMN due_days")
    rebuild(
        invoices_table("new_invoices", is_new=False),
        lines_table("new_invoice_lines", "new_invoices", is_new=False),
        {"finalized_at": "issued_at"},
    )


INVOICE_CHECKS = {
    "issued_at": "(status = 'draft') = (issued_at IS NULL)",
    "credited_amount": "credited_amount = 0 OR (credited_amount > 0 AND credited_amount <= total_amount)",
}

GUARDS = {
    "postgresql": [
        (
            "CREATE OR REPLACE FUNCTION guard_invoices_insert() RETURNS trigger LANGUAGE plpgsql SET "
            "enable_seqscan = off AS $$ BEGIN IF EXISTS (SELECT 1 FROM added a WHERE a.status <> 'draft' "
            "AND a.total_amount <> (SELECT coalesce(sum(l.amount), 0) FROM invoice_lines l WHERE "
            "l.tenant_id = a.tenant_id AND l.invoice_id = a.id)) THEN RAISE EXCEPTION 'the total of an "
            "issued invoice is not the sum of its lines' USING ERRCODE = 'check_violation'; END IF; "
            "RETURN NULL; END $$"
        ),
        (
            "CREATE OR REPLACE FUNCTION guard_invoices_update() RETURNS trigger LANGUAGE plpgsql SET "
            "enable_seqscan = off AS $$ BEGIN IF NOT (NEW.status = OLD.status OR (OLD.status = 'draft' "
            "AND NEW.status = 'finalized') OR (OLD.status IN ('finalized', 'uncollectible') AND "
            "NEW.status IN ('paid', 'void', 'uncollectible'))) OR (OLD.status <> 'draft' AND "
            "(OLD.tenant_id IS DISTINCT FROM NEW.tenant_id OR OLD.id IS DISTINCT FROM NEW.id OR OLD.cycle"
            " IS DISTINCT FROM NEW.cycle OR OLD.kind IS DISTINCT FROM NEW.kind OR OLD.currency IS "
            "DISTINCT FROM NEW.currency OR OLD.period_start IS DISTINCT FROM NEW.period_start OR "
            "OLD.period_end IS DISTINCT FROM NEW.period_end OR OLD.series IS DISTINCT FROM NEW.series OR "
            "OLD.number IS DISTINCT FROM NEW.number OR OLD.total_amount IS DISTINCT FROM NEW.total_amount"
            " OR OLD.created_at IS DISTINCT FROM NEW.created_at OR OLD.issued_at IS DISTINCT FROM "
            "NEW.issued_at OR OLD.due_at IS DISTINCT FROM NEW.due_at OR NEW.credited_amount < "
            "OLD.credited_amount)) THEN RAISE EXCEPTION 'an issued invoice does not change' USING ERRCODE"
            " = 'check_violation'; END IF; IF OLD.status = 'draft' AND NEW.status <> 'draft' AND "
            "NEW.total_amount <> (SELECT coalesce(sum(l.amount), 0) FROM invoice_lines l WHERE "
            "l.tenant_id = NEW.tenant_id AND l.invoice_id = NEW.id) THEN RAISE EXCEPTION 'the total of an"
            " issued invoice is not the sum of its lines' USING ERRCODE = 'check_violation'; END IF; "
            "RETURN NEW; END $$"
        ),
        (
            "CREATE OR REPLACE FUNCTION guard_invoices_delete() RETURNS trigger LANGUAGE plpgsql SET "
            "enable_seqscan = off AS $$ BEGIN IF OLD.status <> 'draft' THEN RAISE EXCEPTION 'an issued "
            "invoice does not change' USING ERRCODE = 'check_violation'; END IF; RETURN OLD; END $$"
        ),
        (
            "CREATE OR REPLACE FUNCTION guard_invoice_lines_insert() RETURNS trigger LANGUAGE plpgsql SET"
            " enable_seqscan = off AS $$ BEGIN PERFORM 1 FROM invoices i WHERE (i.tenant_id, i.id) IN "
            "(SELECT tenant_id, invoice_id FROM added) FOR SHARE; IF FOUND AND EXISTS (SELECT 1 FROM "
            "added a JOIN invoices i ON i.tenant_id = a.tenant_id AND i.id = a.invoice_id AND i.status <>"
            " 'draft') THEN RAISE EXCEPTION 'the lines of an issued invoice do not change' USING ERRCODE "
            "= 'check_violation'; END IF; RETURN NULL; END $$"
        ),
        (
            "CREATE OR REPLACE FUNCTION guard_invoice_lines_update() RETURNS trigger LANGUAGE plpgsql SET"
            " enable_seqscan = off AS $$ BEGIN PERFORM 1 FROM invoices i WHERE i.tenant_id = "
            "OLD.tenant_id AND i.id = OLD.invoice_id AND i.status <> 'draft' FOR SHARE; IF FOUND THEN "
            "RAISE EXCEPTION 'the lines of an issued invoice do not change' USING ERRCODE = "
            "'check_violation'; END IF; PERFORM 1 FROM invoices i WHERE i.tenant_id = NEW.tenant_id AND "
            "i.id = NEW.invoice_id AND i.status <> 'draft' FOR SHARE; IF FOUND THEN RAISE EXCEPTION 'the "
            "lines of an issued invoice do not change' USING ERRCODE = 'check_violation'; END IF; RETURN "
            "NEW; END $$"
        ),
        (
            "CREATE OR REPLACE FUNCTION guard_invoice_lines_delete() RETURNS trigger LANGUAGE plpgsql SET"
            " enable_seqscan = off AS $$ BEGIN PERFORM 1 FROM invoices i WHERE i.tenant_id = "
            "OLD.tenant_id AND i.id = OLD.invoice_id AND i.status <> 'draft' FOR SHARE; IF FOUND THEN "
            "RAISE EXCEPTION 'the lines of an issued invoice do not change' USING ERRCODE = "
            "'check_violation'; END IF; RETURN OLD; END $$"
        ),
        (
            "CREATE OR REPLACE FUNCTION guard_credit_notes_insert() RETURNS trigger LANGUAGE plpgsql SET "
            "enable_seqscan = off AS $$ BEGIN UPDATE invoices SET credited_amount = credited_amount + "
            "NEW.total_amount WHERE tenant_id = NEW.tenant_id AND id = NEW.invoice_id AND status IN "
            "('finalized', 'paid', 'uncollectible'); IF NOT FOUND THEN RAISE EXCEPTION 'only an issued "
            "invoice that is not void can be credited' USING ERRCODE = 'check_violation'; END IF; IF "
            "NEW.total_amount <> (SELECT coalesce(sum(c.amount), 0) FROM credit_note_lines c WHERE "
            "c.tenant_id = NEW.tenant_id AND c.credit_note_id = NEW.id) OR EXISTS (SELECT 1 FROM "
            "credit_note_lines c JOIN invoice_lines l ON l.tenant_id = c.tenant_id AND l.id = "
            "c.invoice_line_id WHERE c.tenant_id = NEW.tenant_id AND c.credit_note_id = NEW.id AND "
            "(l.invoice_id <> NEW.invoice_id OR (SELECT sum(o.amount) FROM credit_note_lines o WHERE "
            "o.tenant_id = l.tenant_id AND o.invoice_line_id = l.id) > l.amount)) THEN RAISE EXCEPTION 'a"
            " credit note takes back the sum of its lines, and no more of a line than was billed' USING "
            "ERRCODE = 'check_violation'; END IF; RETURN NULL; END $$"
        ),
        (
            "CREATE OR REPLACE FUNCTION guard_credit_notes_change() RETURNS trigger LANGUAGE plpgsql SET "
            "enable_seqscan = off AS $$ BEGIN RAISE EXCEPTION 'a credit note does not change' USING "
            "ERRCODE = 'check_violation'; RETURN NULL; END $$"
        ),
        (
            "CREATE OR REPLACE FUNCTION guard_credit_note_lines_insert() RETURNS trigger LANGUAGE plpgsql"
            " SET enable_seqscan = off AS $$ BEGIN PERFORM 1 FROM credit_notes n WHERE n.tenant_id = "
            "NEW.tenant_id AND n.id = NEW.credit_note_id; IF FOUND THEN RAISE EXCEPTION 'a credit note "
            "does not change' USING ERRCODE = 'check_violation'; END IF; RETURN NEW; END $$"
        ),
        (
            "CREATE OR REPLACE FUNCTION guard_prices_change() RETURNS trigger LANGUAGE plpgsql SET "
            "enable_seqscan = off AS $$ BEGIN IF TG_OP = 'DELETE' OR OLD.id IS DISTINCT FROM NEW.id OR "
            "OLD.plan_id IS DISTINCT FROM NEW.plan_id OR OLD.key IS DISTINCT FROM NEW.key OR OLD.currency"
            " IS DISTINCT FROM NEW.currency OR OLD.model IS DISTINCT FROM NEW.model OR OLD.unit_amount IS"
            " DISTINCT FROM NEW.unit_amount OR OLD.metric IS DISTINCT FROM NEW.metric OR "
            "OLD.recurring_interval IS DISTINCT FROM NEW.recurring_interval OR OLD.effective_on IS "
            "DISTINCT FROM NEW.effective_on OR OLD.created_at IS DISTINCT FROM NEW.created_at OR "
            "OLD.terms::text IS DISTINCT FROM NEW.terms::text THEN RAISE EXCEPTION 'a version of a price "
            "does not change, but for its end; make a new version' USING ERRCODE = 'check_violation'; END"
            " IF; RETURN NEW; END $$"
        ),
        (
            "CREATE TRIGGER invoices_insert AFTER INSERT ON invoices REFERENCING NEW TABLE AS added FOR "
            "EACH STATEMENT EXECUTE FUNCTION guard_invoices_insert()"
        ),
        (
            "CREATE TRIGGER invoices_update BEFORE UPDATE ON invoices FOR EACH ROW EXECUTE FUNCTION "
            "guard_invoices_update()"
        ),
        (
            "CREATE TRIGGER invoices_delete BEFORE DELETE ON invoices FOR EACH ROW EXECUTE FUNCTION "
            "guard_invoices_delete()"
        ),
        (
            "CREATE TRIGGER invoice_lines_insert AFTER INSERT ON invoice_lines REFERENCING NEW TABLE AS "
            "added FOR EACH STATEMENT EXECUTE FUNCTION guard_invoice_lines_insert()"
        ),
        (
            "CREATE TRIGGER invoice_lines_update BEFORE UPDATE ON invoice_lines FOR EACH ROW EXECUTE "
            "FUNCTION guard_invoice_lines_update()"
        ),
        (
            "CREATE TRIGGER invoice_lines_delete BEFORE DELETE ON invoice_lines FOR EACH ROW EXECUTE "
            "FUNCTION guard_invoice_lines_delete()"
        ),
        (
            "CREATE TRIGGER credit_notes_insert AFTER INSERT ON credit_notes FOR EACH ROW EXECUTE "
            "FUNCTION guard_credit_notes_insert()"
        ),
        (
            "CREATE TRIGGER credit_notes_change BEFORE UPDATE OR DELETE ON credit_notes FOR EACH ROW "
            "EXECUTE FUNCTION guard_credit_notes_change()"
        ),
        (
            "CREATE TRIGGER credit_note_lines_insert BEFORE INSERT ON credit_note_lines FOR EACH ROW "
            "EXECUTE FUNCTION guard_credit_note_lines_insert()"
        ),
        (
            "CREATE TRIGGER prices_change BEFORE UPDATE OR DELETE ON prices FOR EACH ROW EXECUTE FUNCTION"
            " guard_prices_change()"
        ),
        (
            "CREATE TRIGGER credit_note_lines_change BEFORE UPDATE OR DELETE ON credit_note_lines FOR "
            "EACH ROW EXECUTE FUNCTION guard_credit_notes_change()"
        ),
    ],
    "sqlite": [
        (
            "CREATE TRIGGER invoices_insert AFTER INSERT ON invoices WHEN NEW.status <> 'draft' AND "
            "NEW.total_amount <> (SELECT coalesce(sum(l.amount), 0) FROM invoice_lines l WHERE "
            "l.tenant_id = NEW.tenant_id AND l.invoice_id = NEW.id) BEGIN SELECT RAISE(ABORT, 'the total "
            "of an issued invoice is not the sum of its lines'); END"
        ),
        (
            "CREATE TRIGGER invoices_issue AFTER UPDATE ON invoices WHEN OLD.status = 'draft' AND "
            "NEW.status <> 'draft' AND NEW.total_amount <> (SELECT coalesce(sum(l.amount), 0) FROM "
            "invoice_lines l WHERE l.tenant_id = NEW.tenant_id AND l.invoice_id = NEW.id) BEGIN SELECT "
            "RAISE(ABORT, 'the total of an issued invoice is not the sum of its lines'); END"
        ),
        (
            "CREATE TRIGGER invoices_update BEFORE UPDATE ON invoices WHEN NOT (NEW.status = OLD.status "
            "OR (OLD.status = 'draft' AND NEW.status = 'finalized') OR (OLD.status IN ('finalized', "
            "'uncollectible') AND NEW.status IN ('paid', 'void', 'uncollectible'))) OR (OLD.status <> "
            "'draft' AND (OLD.tenant_id IS NOT NEW.tenant_id OR OLD.id IS NOT NEW.id OR OLD.cycle IS NOT "
            "NEW.cycle OR OLD.kind IS NOT NEW.kind OR OLD.currency IS NOT NEW.currency OR "
            "OLD.period_start IS NOT NEW.period_start OR OLD.period_end IS NOT NEW.period_end OR "
            "OLD.series IS NOT NEW.series OR OLD.number IS NOT NEW.number OR OLD.total_amount IS NOT "
            "NEW.total_amount OR OLD.created_at IS NOT NEW.created_at OR OLD.issued_at IS NOT "
            "NEW.issued_at OR OLD.due_at IS NOT NEW.due_at OR NEW.credited_amount < OLD.credited_amount))"
            " BEGIN SELECT RAISE(ABORT, 'an issued invoice does not change'); END"
        ),
        (
            "CREATE TRIGGER invoices_delete BEFORE DELETE ON invoices WHEN OLD.status <> 'draft' BEGIN "
            "SELECT RAISE(ABORT, 'an issued invoice does not change'); END"
        ),
        (
            "CREATE TRIGGER invoice_lines_insert BEFORE INSERT ON invoice_lines WHEN EXISTS (SELECT 1 "
            "FROM invoices i WHERE i.tenant_id = NEW.tenant_id AND i.id = NEW.invoice_id AND i.status <> "
            "'draft') BEGIN SELECT RAISE(ABORT, 'the lines of an issued invoice do not change'); END"
        ),
        (
            "CREATE TRIGGER invoice_lines_update BEFORE UPDATE ON invoice_lines WHEN EXISTS (SELECT 1 "
            "FROM invoices i WHERE i.tenant_id = OLD.tenant_id AND i.id = OLD.invoice_id AND i.status <> "
            "'draft') OR EXISTS (SELECT 1 FROM invoices i WHERE i.tenant_id = NEW.tenant_id AND i.id = "
            "NEW.invoice_id AND i.status <> 'draft') BEGIN SELECT RAISE(ABORT, 'the lines of an issued "
            "invoice do not change'); END"
        ),
        (
            "CREATE TRIGGER invoice_lines_delete BEFORE DELETE ON invoice_lines WHEN EXISTS (SELECT 1 "
            "FROM invoices i WHERE i.tenant_id = OLD.tenant_id AND i.id = OLD.invoice_id AND i.status <> "
            "'draft') BEGIN SELECT RAISE(ABORT, 'the lines of an issued invoice do not change'); END"
        ),
        (
            "CREATE TRIGGER credit_notes_creditable BEFORE INSERT ON credit_notes WHEN NOT EXISTS (SELECT"
            " 1 FROM invoices i WHERE i.tenant_id = NEW.tenant_id AND i.id = NEW.invoice_id AND i.status "
            "IN ('finalized', 'paid', 'uncollectible')) BEGIN SELECT RAISE(ABORT, 'only an issued invoice"
            " that is not void can be credited'); END"
        ),
        (
            "CREATE TRIGGER credit_notes_update BEFORE UPDATE ON credit_notes WHEN 1 BEGIN SELECT "
            "RAISE(ABORT, 'a credit note does not change'); END"
        ),
        (
            "CREATE TRIGGER credit_notes_delete BEFORE DELETE ON credit_notes WHEN 1 BEGIN SELECT "
            "RAISE(ABORT, 'a credit note does not change'); END"
        ),
        (
            "CREATE TRIGGER credit_note_lines_insert BEFORE INSERT ON credit_note_lines WHEN EXISTS "
            "(SELECT 1 FROM credit_notes n WHERE n.tenant_id = NEW.tenant_id AND n.id = "
            "NEW.credit_note_id) BEGIN SELECT RAISE(ABORT, 'a credit note does not change'); END"
        ),
        (
            "CREATE TRIGGER credit_note_lines_update BEFORE UPDATE ON credit_note_lines WHEN 1 BEGIN "
            "SELECT RAISE(ABORT, 'a credit note does not change'); END"
        ),
        (
            "CREATE TRIGGER credit_note_lines_delete BEFORE DELETE ON credit_note_lines WHEN 1 BEGIN "
            "SELECT RAISE(ABORT, 'a credit note does not change'); END"
        ),
        (
            "CREATE TRIGGER prices_update BEFORE UPDATE ON prices WHEN OLD.id IS NOT NEW.id OR "
            "OLD.plan_id IS NOT NEW.plan_id OR OLD.key IS NOT NEW.key OR OLD.currency IS NOT NEW.currency"
            " OR OLD.model IS NOT NEW.model OR OLD.unit_amount IS NOT NEW.unit_amount OR OLD.metric IS "
            "NOT NEW.metric OR OLD.recurring_interval IS NOT NEW.recurring_interval OR OLD.effective_on "
            "IS NOT NEW.effective_on OR OLD.created_at IS NOT NEW.created_at OR OLD.terms IS NOT "
            "NEW.terms BEGIN SELECT RAISE(ABORT, 'a version of a price does not change, but for its end; "
            "make a new version'); END"
        ),
        (
            "CREATE TRIGGER prices_delete BEFORE DELETE ON prices WHEN 1 BEGIN SELECT RAISE(ABORT, 'a "
            "version of a price does not change, but for its end; make a new version'); END"
        ),
        (
            "CREATE TRIGGER credit_notes_insert AFTER INSERT ON credit_notes BEGIN UPDATE invoices SET "
            "credited_amount = credited_amount + NEW.total_amount WHERE tenant_id = NEW.tenant_id AND id "
            "= NEW.invoice_id; SELECT RAISE(ABORT, 'a credit note takes back the sum of its lines, and no"
            " more of a line than was billed') WHERE NEW.total_amount <> (SELECT coalesce(sum(c.amount), "
            "0) FROM credit_note_lines c WHERE c.tenant_id = NEW.tenant_id AND c.credit_note_id = NEW.id)"
            " OR EXISTS (SELECT 1 FROM credit_note_lines c JOIN invoice_lines l ON l.tenant_id = "
            "c.tenant_id AND l.id = c.invoice_line_id WHERE c.tenant_id = NEW.tenant_id AND "
            "c.credit_note_id = NEW.id AND (l.invoice_id <> NEW.invoice_id OR (SELECT sum(o.amount) FROM "
            "credit_note_lines o WHERE o.tenant_id = l.tenant_id AND o.invoice_line_id = l.id) > "
            "l.amount)); END"
        ),
    ],
}
FUNCTIONS = (
    "invoices_insert",
    "invoices_update",
    "invoices_delete",
    "invoice_lines_insert",
    "invoice_lines_update",
    "invoice_lines_delete",
    "credit_notes_insert",
    "credit_notes_change",
    "credit_note_lines_insert",
    "prices_change",
)
