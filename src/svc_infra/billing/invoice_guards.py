"""The walls that keep issued documents as they are: triggers, the same rules on both databases.

An invoice is issued with a total that is the sum of its lines, and then only its status, the provider's id
and what was credited move on. A credit note never takes back more than was billed and never changes. A
version of a price never changes but for its end. Whoever breaks a rule gets an IntegrityError, whatever
client the statement comes from.

On PostgreSQL inserts are checked once a statement, so a batch of a thousand invoices costs one look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, MetaData, Table, event

from svc_infra.billing.invoice_models import CreditNoteLine
from svc_infra.db.base import Base

_FROZEN = (
    *("tenant_id", "id", "cycle", "kind", "currency", "period_start", "period_end", "series", "number"),
    *("total_amount", "created_at", "issued_at", "due_at"),
)
_PRICE = (
    *("id", "plan_id", "key", "currency", "model", "unit_amount", "metric", "recurring_interval"),
    *("effective_on", "created_at"),
)
_SUM_OF_LINES = (
    "(SELECT coalesce(sum(l.amount), 0) FROM invoice_lines l"
    " WHERE l.tenant_id = {row}.tenant_id AND l.invoice_id = {row}.id)"
)
_MOVES = (
    "NEW.status = OLD.status"
    " OR (OLD.status = 'draft' AND NEW.status = 'finalized')"
    " OR (OLD.status IN ('finalized', 'uncollectible') AND NEW.status IN ('paid', 'void', 'uncollectible'))"
)
_NOTE_SUM = (
    "(SELECT coalesce(sum(c.amount), 0) FROM credit_note_lines c"
    " WHERE c.tenant_id = NEW.tenant_id AND c.credit_note_id = NEW.id)"
)
# A line of the new note that belongs to another invoice, or of which more is taken back than was billed.
_OVERDRAWN = (
    "SELECT 1 FROM credit_note_lines c"
    " JOIN invoice_lines l ON l.tenant_id = c.tenant_id AND l.id = c.invoice_line_id"
    " WHERE c.tenant_id = NEW.tenant_id AND c.credit_note_id = NEW.id AND (l.invoice_id <> NEW.invoice_id"
    " OR (SELECT sum(o.amount) FROM credit_note_lines o"
    " WHERE o.tenant_id = l.tenant_id AND o.invoice_line_id = l.id) > l.amount)"
)
_TOTAL = "the total of an issued invoice is not the sum of its lines"
_ISSUED = "an issued invoice does not change"
_LINES = "the lines of an issued invoice do not change"
_NOTE = "a credit note does not change"
_NOTE_TOTAL = "a credit note takes back the sum of its lines, and no more of a line than was billed"
_CREDITABLE = "only an issued invoice that is not void can be credited"
_UNKNOWN = "a line names a subscription that its tenant does not have"
_NAMED = "lines name this subscription, so it is ended and not taken away"
_VERSION = "a version of a price does not change, but for its end; make a new version"


def guards(dialect: str) -> list[str]:
    """The statements that make every trigger (and on PostgreSQL its function), in order."""
    return _postgresql() if dialect == "postgresql" else _sqlite()


def _changed(columns: tuple[str, ...], differs: str) -> str:
    return " OR ".join(f"OLD.{name} {differs} NEW.{name}" for name in columns)


def _sqlite() -> list[str]:
    made = [
        f"CREATE TRIGGER {name} {when} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{message}'); END"
        for name, when, condition, message in (*_sqlite_invoice_rules(), *_sqlite_other_rules())
    ]
    made.append(
        "CREATE TRIGGER credit_notes_insert AFTER INSERT ON credit_notes BEGIN"
        " UPDATE invoices SET credited_amount = credited_amount + NEW.total_amount"
        " WHERE tenant_id = NEW.tenant_id AND id = NEW.invoice_id;"
        f" SELECT RAISE(ABORT, '{_NOTE_TOTAL}')"
        f" WHERE NEW.total_amount <> {_NOTE_SUM} OR EXISTS ({_OVERDRAWN}); END"
    )
    return made


def _sqlite_invoice_rules() -> list[tuple[str, str, str, str]]:
    """(trigger, when, condition, message)."""
    is_issued = (
        "(SELECT 1 FROM invoices i WHERE i.tenant_id = {row}.tenant_id AND i.id = {row}.invoice_id"
        " AND i.status <> 'draft')"
    )
    new_total = f"NEW.total_amount <> {_SUM_OF_LINES.format(row='NEW')}"
    return [
        ("invoices_insert", "AFTER INSERT ON invoices", f"NEW.status <> 'draft' AND {new_total}", _TOTAL),
        (
            "invoices_issue",
            "AFTER UPDATE ON invoices",
            f"OLD.status = 'draft' AND NEW.status <> 'draft' AND {new_total}",
            _TOTAL,
        ),
        (
            "invoices_update",
            "BEFORE UPDATE ON invoices",
            f"NOT ({_MOVES}) OR (OLD.status <> 'draft' AND"
            f" ({_changed(_FROZEN, 'IS NOT')} OR NEW.credited_amount < OLD.credited_amount))",
            _ISSUED,
        ),
        ("invoices_delete", "BEFORE DELETE ON invoices", "OLD.status <> 'draft'", _ISSUED),
        (
            "invoice_lines_insert",
            "BEFORE INSERT ON invoice_lines",
            f"EXISTS {is_issued.format(row='NEW')}",
            _LINES,
        ),
        (
            "invoice_lines_update",
            "BEFORE UPDATE ON invoice_lines",
            f"EXISTS {is_issued.format(row='OLD')} OR EXISTS {is_issued.format(row='NEW')}",
            _LINES,
        ),
        (
            "invoice_lines_delete",
            "BEFORE DELETE ON invoice_lines",
            f"EXISTS {is_issued.format(row='OLD')}",
            _LINES,
        ),
    ]


def _sqlite_other_rules() -> list[tuple[str, str, str, str]]:
    note_exists = (
        "EXISTS (SELECT 1 FROM credit_notes n"
        " WHERE n.tenant_id = NEW.tenant_id AND n.id = NEW.credit_note_id)"
    )
    no_credit = (
        "NOT EXISTS (SELECT 1 FROM invoices i WHERE i.tenant_id = NEW.tenant_id AND i.id = NEW.invoice_id"
        " AND i.status IN ('finalized', 'paid', 'uncollectible'))"
    )
    return [
        ("credit_notes_creditable", "BEFORE INSERT ON credit_notes", no_credit, _CREDITABLE),
        ("credit_notes_update", "BEFORE UPDATE ON credit_notes", "1", _NOTE),
        ("credit_notes_delete", "BEFORE DELETE ON credit_notes", "1", _NOTE),
        ("credit_note_lines_insert", "BEFORE INSERT ON credit_note_lines", note_exists, _NOTE),
        ("credit_note_lines_update", "BEFORE UPDATE ON credit_note_lines", "1", _NOTE),
        ("credit_note_lines_delete", "BEFORE DELETE ON credit_note_lines", "1", _NOTE),
        ("prices_update", "BEFORE UPDATE ON prices", _changed((*_PRICE, "terms"), "IS NOT"), _VERSION),
        ("prices_delete", "BEFORE DELETE ON prices", "1", _VERSION),
    ]


def _refusal(message: str) -> str:
    return f"RAISE EXCEPTION '{message}' USING ERRCODE = 'check_violation';"


def _postgresql_line_bodies() -> dict[str, str]:
    """The body of each trigger function that is about lines, or what lines name."""
    lines, no_such = _refusal(_LINES), _refusal(_UNKNOWN)
    touched = (
        "PERFORM 1 FROM invoices i WHERE i.tenant_id = {row}.tenant_id AND i.id = {row}.invoice_id"
        " AND i.status <> 'draft' FOR SHARE; IF FOUND THEN {raise_} END IF;"
    )
    unknown = (
        "{row}.subscription_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM subscriptions s"
        " WHERE s.tenant_id = {row}.tenant_id AND s.id = {row}.subscription_id)"
    )
    return {
        # Locks the drafts that the lines are added to: whoever issues one waits, or is waited for.
        "invoice_lines_insert": (
            "PERFORM 1 FROM invoices i WHERE (i.tenant_id, i.id) IN (SELECT tenant_id, invoice_id FROM added)"
            " FOR SHARE; IF FOUND AND EXISTS (SELECT 1 FROM added a JOIN invoices i ON"
            " i.tenant_id = a.tenant_id AND i.id = a.invoice_id AND i.status <> 'draft')"
            f" THEN {lines} END IF;"
            f" IF EXISTS (SELECT 1 FROM added a WHERE {unknown.format(row='a')})"
            f" THEN {no_such} END IF; RETURN NULL;"
        ),
        "invoice_lines_update": (
            f"{touched.format(row='OLD', raise_=lines)}"
            f" {touched.format(row='NEW', raise_=lines)}"
            f" IF {unknown.format(row='NEW')} THEN {no_such} END IF; RETURN NEW;"
        ),
        # Whoever writes lines is waited for, or waits and then does not find the subscription.
        "subscriptions_change": (
            "LOCK TABLE invoice_lines IN SHARE ROW EXCLUSIVE MODE; IF EXISTS (SELECT 1 FROM invoice_lines l"
            " WHERE l.tenant_id = OLD.tenant_id AND l.subscription_id = OLD.id)"
            f" THEN {_refusal(_NAMED)} END IF; IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;"
        ),
        "invoice_lines_delete": f"{touched.format(row='OLD', raise_=lines)} RETURN OLD;",
    }


def _postgresql_bodies() -> dict[str, str]:
    """The body of each trigger function."""
    messages = (_TOTAL, _ISSUED, _NOTE, _NOTE_TOTAL, _CREDITABLE, _VERSION)
    refuse = {message: _refusal(message) for message in messages}
    return {
        "invoices_insert": (
            f"IF EXISTS (SELECT 1 FROM added a WHERE a.status <> 'draft' AND a.total_amount <>"
            f" {_SUM_OF_LINES.format(row='a')}) THEN {refuse[_TOTAL]} END IF; RETURN NULL;"
        ),
        "invoices_update": (
            f"IF NOT ({_MOVES}) OR (OLD.status <> 'draft' AND ({_changed(_FROZEN, 'IS DISTINCT FROM')}"
            f" OR NEW.credited_amount < OLD.credited_amount)) THEN {refuse[_ISSUED]} END IF;"
            f" IF OLD.status = 'draft' AND NEW.status <> 'draft' AND NEW.total_amount <>"
            f" {_SUM_OF_LINES.format(row='NEW')} THEN {refuse[_TOTAL]} END IF; RETURN NEW;"
        ),
        "invoices_delete": f"IF OLD.status <> 'draft' THEN {refuse[_ISSUED]} END IF; RETURN OLD;",
        "credit_notes_insert": (
            # First the lock of the invoice: two notes at once see each other's lines.
            "UPDATE invoices SET credited_amount = credited_amount + NEW.total_amount"
            " WHERE tenant_id = NEW.tenant_id AND id = NEW.invoice_id"
            f" AND status IN ('finalized', 'paid', 'uncollectible'); IF NOT FOUND THEN {refuse[_CREDITABLE]}"
            f" END IF; IF NEW.total_amount <> {_NOTE_SUM} OR EXISTS ({_OVERDRAWN})"
            f" THEN {refuse[_NOTE_TOTAL]} END IF; RETURN NULL;"
        ),
        "credit_notes_change": f"{refuse[_NOTE]} RETURN NULL;",
        "credit_note_lines_insert": (
            "PERFORM 1 FROM credit_notes n WHERE n.tenant_id = NEW.tenant_id AND n.id = NEW.credit_note_id;"
            f" IF FOUND THEN {refuse[_NOTE]} END IF; RETURN NEW;"
        ),
        "prices_change": (
            f"IF TG_OP = 'DELETE' OR {_changed(_PRICE, 'IS DISTINCT FROM')}"
            f" OR OLD.terms::text IS DISTINCT FROM NEW.terms::text THEN {refuse[_VERSION]} END IF;"
            " RETURN NEW;"
        ),
    }


_POSTGRESQL_TRIGGERS = {
    "invoices_insert": "AFTER INSERT ON invoices REFERENCING NEW TABLE AS added FOR EACH STATEMENT",
    "invoices_update": "BEFORE UPDATE ON invoices FOR EACH ROW",
    "invoices_delete": "BEFORE DELETE ON invoices FOR EACH ROW",
    "invoice_lines_insert": (
        "AFTER INSERT ON invoice_lines REFERENCING NEW TABLE AS added FOR EACH STATEMENT"
    ),
    "invoice_lines_update": "BEFORE UPDATE ON invoice_lines FOR EACH ROW",
    "invoice_lines_delete": "BEFORE DELETE ON invoice_lines FOR EACH ROW",
    "credit_notes_insert": "AFTER INSERT ON credit_notes FOR EACH ROW",
    "credit_notes_change": "BEFORE UPDATE OR DELETE ON credit_notes FOR EACH ROW",
    "credit_note_lines_insert": "BEFORE INSERT ON credit_note_lines FOR EACH ROW",
    "prices_change": "BEFORE UPDATE OR DELETE ON prices FOR EACH ROW",
    "subscriptions_change": "BEFORE DELETE OR UPDATE OF tenant_id, id ON subscriptions FOR EACH ROW",
}


def _postgresql() -> list[str]:
    """Functions and triggers. In them an index is always right: a cached plan may be of an empty table."""
    made = [
        f"CREATE OR REPLACE FUNCTION guard_{name}() RETURNS trigger LANGUAGE plpgsql"
        f" SET enable_seqscan = off AS $$ BEGIN {body} END $$"
        for name, body in {**_postgresql_bodies(), **_postgresql_line_bodies()}.items()
    ]
    made += [
        f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION guard_{name}()"
        for name, when in _POSTGRESQL_TRIGGERS.items()
    ]
    made.append(
        "CREATE TRIGGER credit_note_lines_change BEFORE UPDATE OR DELETE ON credit_note_lines"
        " FOR EACH ROW EXECUTE FUNCTION guard_credit_notes_change()"
    )
    return made


def _make(_metadata: MetaData, connection: Connection, *, tables: Sequence[Table], **_: Any) -> None:
    if _LAST in tables:
        for statement in guards(connection.dialect.name):
            connection.exec_driver_sql(statement)


_LAST = Base.metadata.tables[CreditNoteLine.__tablename__]
event.listen(Base.metadata, "after_create", _make)
