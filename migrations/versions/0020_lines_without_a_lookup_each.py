"""PostgreSQL: subscriptions of lines are looked up once a statement, periods are told apart by a hash."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_FOREIGN_KEY = "fk_invoice_lines_tenant_id_subscription_id_subscriptions"
_PERIODS = (
    "ALTER TABLE invoices ADD CONSTRAINT ex_invoices_period EXCLUDE USING gist"
    " ({key}, tstzrange(period_start, period_end) WITH &&) WHERE (status <> 'void')"
)
_HASH = "(hashtextextended(currency || ' ' || kind || ' ' || cycle || ' ' || tenant_id, 0)) WITH ="
_TEXTS = "tenant_id WITH =, cycle WITH =, currency WITH =, kind WITH ="

_GUARD = (
    "CREATE OR REPLACE FUNCTION guard_{name}() RETURNS trigger LANGUAGE plpgsql"
    " SET enable_seqscan = off AS $$ BEGIN {body} END $$"
)
_REFUSE = "RAISE EXCEPTION '{message}' USING ERRCODE = 'check_violation';"
_LINES = _REFUSE.format(message="the lines of an issued invoice do not change")
_UNKNOWN = _REFUSE.format(message="a line names a subscription that its tenant does not have")
_NAMED = _REFUSE.format(message="lines name this subscription, so it is ended and not taken away")
_IS_UNKNOWN = (
    "{row}.subscription_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM subscriptions s"
    " WHERE s.tenant_id = {row}.tenant_id AND s.id = {row}.subscription_id)"
)
_INSERTED = (
    "PERFORM 1 FROM invoices i WHERE (i.tenant_id, i.id) IN (SELECT tenant_id, invoice_id FROM added)"
    " FOR SHARE; IF FOUND AND EXISTS (SELECT 1 FROM added a JOIN invoices i ON"
    " i.tenant_id = a.tenant_id AND i.id = a.invoice_id AND i.status <> 'draft')"
    f" THEN {_LINES} END IF;"
)
_TOUCHED = (
    "PERFORM 1 FROM invoices i WHERE i.tenant_id = {row}.tenant_id AND i.id = {row}.invoice_id"
    f" AND i.status <> 'draft' FOR SHARE; IF FOUND THEN {_LINES} END IF;"
)
_UPDATED = f"{_TOUCHED.format(row='OLD')} {_TOUCHED.format(row='NEW')}"
_INSERT_LOOK = (
    f" IF EXISTS (SELECT 1 FROM added a WHERE {_IS_UNKNOWN.format(row='a')}) THEN {_UNKNOWN} END IF;"
)
_UPDATE_LOOK = f" IF {_IS_UNKNOWN.format(row='NEW')} THEN {_UNKNOWN} END IF;"
_SUBSCRIPTION = (
    "LOCK TABLE invoice_lines IN SHARE ROW EXCLUSIVE MODE; IF EXISTS (SELECT 1 FROM invoice_lines l"
    " WHERE l.tenant_id = OLD.tenant_id AND l.subscription_id = OLD.id)"
    f" THEN {_NAMED} END IF; IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;"
)


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    _guard("invoice_lines_insert", f"{_INSERTED}{_INSERT_LOOK} RETURN NULL;")
    _guard("invoice_lines_update", f"{_UPDATED}{_UPDATE_LOOK} RETURN NEW;")
    _guard("subscriptions_change", _SUBSCRIPTION)
    op.execute(
        "CREATE TRIGGER subscriptions_change BEFORE DELETE OR UPDATE OF tenant_id, id ON subscriptions"
        " FOR EACH ROW EXECUTE FUNCTION guard_subscriptions_change()"
    )
    op.drop_constraint(_FOREIGN_KEY, "invoice_lines")
    op.drop_constraint("ex_invoices_period", "invoices")
    op.execute(_PERIODS.format(key=_HASH))


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.drop_constraint("ex_invoices_period", "invoices")
    op.execute(_PERIODS.format(key=_TEXTS))
    columns = ["tenant_id", "subscription_id"]
    op.create_foreign_key(_FOREIGN_KEY, "invoice_lines", "subscriptions", columns, ["tenant_id", "id"])
    op.execute("DROP TRIGGER subscriptions_change ON subscriptions")
    op.execute("DROP FUNCTION guard_subscriptions_change()")
    _guard("invoice_lines_insert", f"{_INSERTED} RETURN NULL;")
    _guard("invoice_lines_update", f"{_UPDATED} RETURN NEW;")


def _guard(name: str, body: str) -> None:
    op.execute(_GUARD.format(name=name, body=body))
