"""The commands for people and programs: catalog, subscriptions, endpoints, invoices, doctor, and --help."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text
from sqlalchemy.orm import Session

from svc_infra.billing.invoicing import InvoiceRequest, generate_invoices
from svc_infra.billing.tenants import change_settings
from svc_infra.billing.usage import NewUsage, quantity, record_many
from svc_infra.cli import cli
from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.exceptions import InvalidCatalog, InvalidSubscription, NotFound, SchemaMissing

ROOT = Path(__file__).resolve().parents[2]
CATALOG = str(ROOT / "config" / "catalog.toml")
JANUARY, FEBRUARY = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC)


def run(url: str, *arguments: str) -> Result:
    """Run one command; an error of ours passes through, as ``main`` would get it."""
    result = CliRunner().invoke(cli, [*arguments, "--database-url", url])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def read_json(url: str, *arguments: str) -> object:
    result = run(url, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def url(empty_database_url: str) -> str:
    async def bring_up() -> None:
        engine = make_engine(empty_database_url)
        await migrate(engine)
        await engine.dispose()

    asyncio.run(bring_up())
    return empty_database_url


def bill_january(url: str) -> str:
    """Give t1 the shipped plan and 5 cds in January, and return its invoice."""

    def make(session: Session) -> str:
        usage = NewUsage("t1", "cds", quantity("5"), datetime(2025, 1, 9, tzinfo=UTC), "k1")
        record_many(session, [usage], now=FEBRUARY)
        requests = [InvoiceRequest(tenant, JANUARY, FEBRUARY, "usd") for tenant in ("t1", "t2")]
        first, _ = generate_invoices(session, requests, now=FEBRUARY)
        assert first.invoice_id is not None
        return first.invoice_id

    async def bill() -> str:
        engine = make_engine(url)
        async with make_session_factory(engine).begin() as session:
            invoice_id = await session.run_sync(make)
        await engine.dispose()
        return invoice_id

    run(url, "catalog", "apply", CATALOG)
    run(url, "subscriptions", "add", "t1", "standard", "--from", "2025-01-01")
    return asyncio.run(bill())


def test_a_catalog_is_applied_once(url: str) -> None:
    first = read_json(url, "catalog", "apply", CATALOG)
    second = read_json(url, "catalog", "apply", CATALOG)
    assert isinstance(first, dict)
    assert len(first["created"]) == 4
    assert second == {"created": [], "updated": [], "unchanged": first["created"]}
    assert "unchanged  plan standard" in run(url, "catalog", "apply", CATALOG).stdout


@pytest.mark.sqlite_only
def test_an_error_in_a_catalog_names_its_line(empty_database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "catalog.toml"
    file.write_text('[[plans]]\nkey = "a"\nnmae = "A"\n')
    with pytest.raises(InvalidCatalog, match=r"catalog\.toml:3: "):
        run(empty_database_url, "catalog", "apply", str(file))
    file.write_bytes(b'[[plans]]\nkey = "\xff"\n')
    with pytest.raises(InvalidCatalog, match=r"catalog\.toml:2: not valid UTF-8"):
        run(empty_database_url, "catalog", "apply", str(file))


@pytest.mark.sqlite_only
def test_subscriptions_begin_at_the_tenants_own_midnight(url: str) -> None:
    async def move_to_zurich() -> None:
        engine = make_engine(url)
        async with make_session_factory(engine).begin() as session:
            await session.run_sync(change_settings, "t1", now=JANUARY, timezone="Europe/Zurich")
        await engine.dispose()

    run(url, "catalog", "apply", CATALOG)
    asyncio.run(move_to_zurich())
    arguments = ("subscriptions", "add", "t1", "standard", "--from", "2025-01-01", "--to", "2025-07-01")
    added = run(url, *arguments)
    run(url, "subscriptions", "add", "t2", "standard", "--from", "2025-01-01T00:00:00Z")
    listed = read_json(url, "subscriptions", "list")
    plain = {"quantity": 1, "trial_ends_at": None, "cycle": "calendar"}
    assert listed == [
        {
            "id": added.stdout.strip(),
            "tenant_id": "t1",
            "plan": "standard",
            "effective_at": "2024-12-31T23:00:00Z",
            "ended_at": "2025-06-30T22:00:00Z",
        }
        | plain,
        {**_any_id(listed, 1), "tenant_id": "t2", "plan": "standard"}
        | {"effective_at": "2025-01-01T00:00:00Z", "ended_at": None}
        | plain,
    ]
    assert "t2" not in run(url, "subscriptions", "list", "--tenant", "t1").stdout
    with pytest.raises(InvalidSubscription):
        run(url, *arguments)
    with pytest.raises(NotFound, match="no plan 'gold'"):
        run(url, "subscriptions", "add", "t3", "gold", "--from", "2025-01-01")


def _any_id(listed: object, index: int) -> dict[str, str]:
    assert isinstance(listed, list)
    return {"id": listed[index]["id"]}


@pytest.mark.sqlite_only
@pytest.mark.parametrize("day", ["yesterday", "2025-02-30", "2025-01-01T00:00:00"])
def test_a_day_that_is_none_is_wrong_usage(empty_database_url: str, day: str) -> None:
    assert run(empty_database_url, "subscriptions", "add", "t1", "standard", "--from", day).exit_code == 2


def test_an_endpoints_secret_is_shown_once(url: str) -> None:
    arguments = ("endpoints", "add", "https://example.com/hook", "--topic", "billing.*", "--topic", "a.b")
    added = read_json(url, *arguments, "--tenant", "t1", "--description", "books")
    assert isinstance(added, dict)
    assert added.pop("secret").startswith("whsec_")
    assert read_json(url, "endpoints", "list") == [added]
    assert (added["topics"], added["tenant_id"], added["description"]) == (
        ["billing.*", "a.b"],
        "t1",
        "books",
    )
    assert read_json(url, "endpoints", "list", "--tenant", "t2") == []
    table = run(url, "endpoints", "list").stdout
    assert "https://example.com/hook" in table
    assert "whsec_" not in table
    assert run(url, "endpoints", "add", "https://example.com").exit_code == 2


def test_invoices_are_listed_shown_and_exported(url: str, tmp_path: Path) -> None:
    invoice_id = bill_january(url)
    listed = read_json(url, "invoices", "list", "--tenant", "t1")
    assert isinstance(listed, list)
    [summary] = listed
    assert (summary["id"], summary["total_amount"], summary["currency"]) == (invoice_id, 525, "usd")
    assert read_json(url, "invoices", "list", "--period", "2025-02") == []
    assert len(read_json(url, "invoices", "list", "--period", "2025-01")) == 2  # type: ignore[arg-type]  # a list
    assert "USD 5.25" in run(url, "invoices", "list").stdout

    shown = read_json(url, "invoices", "show", invoice_id)
    assert isinstance(shown, dict)
    assert [(line["quantity"], line["amount"]) for line in shown["lines"]] == [("1", 500), ("5", 25)]
    table = run(url, "invoices", "show", invoice_id, "--tenant", "t1").stdout
    assert "0.25" in table
    assert "USD 5.25" in table
    with pytest.raises(NotFound):
        run(url, "invoices", "show", invoice_id, "--tenant", "t2")
    with pytest.raises(NotFound):
        run(url, "invoices", "show", "nowhere")

    exported = list(csv.DictReader(io.StringIO(run(url, "invoices", "export").stdout)))
    assert [(r["tenant_id"], r["amount"]) for r in exported] == [("t1", "500"), ("t1", "25"), ("t2", "")]
    out = tmp_path / "invoices.jsonl"
    run(url, "invoices", "export", "--format", "jsonl", "--out", str(out), "--tenant", "t1")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(row["amount"] for row in rows) == rows[0]["total_amount"] == 525


@pytest.mark.sqlite_only
def test_a_month_that_is_none_is_wrong_usage(empty_database_url: str) -> None:
    assert run(empty_database_url, "invoices", "list", "--period", "2025-13").exit_code == 2
    assert run(empty_database_url, "invoices", "list", "--period", "January").exit_code == 2


def test_the_doctor_names_each_check(url: str, target: str) -> None:
    checks = read_json(url, "doctor")
    assert isinstance(checks, list)
    # The tests' server forgets at a crash, and they log in as the superuser that they made it with.
    of_database = {
        "sqlite": {"clock": "skipped", "sqlite": "ok", "disk": "ok"},
        "postgres": {"clock": "ok", "durability": "warning", "role": "warning", "notifications": "ok"},
    }
    assert {check["name"]: check["outcome"] for check in checks} == {
        "settings": "ok",
        "database": "ok",
        "migrations": "ok",
        **of_database[target],
        "schedule billing.daily": "ok",
        "schedule billing.monthly": "ok",
        "schedule billing.audit": "ok",
        "webhook secrets": "warning",
        "endpoints": "skipped",
    }


@pytest.mark.postgres_only
def test_the_doctor_warns_of_what_a_crash_would_lose_and_of_a_role_that_is_not_held_back(url: str) -> None:
    async def forget_soon() -> None:
        engine = make_engine(url)
        async with engine.begin() as connection:
            name = engine.url.database
            await connection.execute(text(f'ALTER DATABASE "{name}" SET synchronous_commit = off'))
        await engine.dispose()

    asyncio.run(forget_soon())
    result = run(url, "doctor", "--json", "--set", "database.tenant_role=nobody_made_it")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert (checks["durability"]["outcome"], checks["tenant role"]["outcome"]) == ("warning", "failed")
    assert "synchronous_commit" in checks["durability"]["detail"]
    assert result.exit_code == 1


def test_the_doctor_fails_without_the_schema(empty_database_url: str, target: str) -> None:
    result = run(empty_database_url, "doctor", "--json")
    failed = [check for check in json.loads(result.stdout) if check["outcome"] == "failed"]
    assert result.exit_code == 1
    assert [check["name"] for check in failed] == ["database" if target == "sqlite" else "migrations"]
    assert "worker.py migrate" in failed[0]["detail"]
    if target == "sqlite":
        assert not Path(empty_database_url.split("///")[1]).exists()


@pytest.mark.sqlite_only
def test_the_doctor_says_which_cron_cannot_be_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVC__SCHEDULER__DAILY_CRON", "whenever")
    result = run(url, "doctor", "--json")
    assert result.exit_code == 1
    assert [c["name"] for c in json.loads(result.stdout) if c["outcome"] == "failed"] == ["schedules"]


@pytest.mark.sqlite_only
def test_the_doctor_dials_endpoints_only_when_asked_and_no_private_ones(url: str) -> None:
    run(url, "endpoints", "add", "https://localhost:8443/hook", "--topic", "*")
    assert run(url, "doctor").exit_code == 0
    result = run(url, "doctor", "--endpoints", "--json")
    [check] = [c for c in json.loads(result.stdout) if c["name"].startswith("endpoint")]
    assert result.exit_code == 1
    assert "may not be dialled" in check["detail"]


@pytest.mark.postgres_only
def test_the_doctor_says_that_a_database_does_not_answer(empty_database_url: str) -> None:
    result = run(empty_database_url + "_that_is_not_there", "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert "does not answer" in checks["database"]["detail"]
    assert checks["migrations"]["outcome"] == "skipped"


@pytest.mark.sqlite_only
def test_commands_need_the_schema(empty_database_url: str) -> None:
    for arguments in (["invoices", "list"], ["endpoints", "list"], ["subscriptions", "list"]):
        with pytest.raises(SchemaMissing, match=r"worker\.py migrate"):
            run(empty_database_url, *arguments)


COMMANDS = """
    usage import, catalog apply, subscriptions add, subscriptions list, endpoints add, endpoints list,
    invoices list, invoices show, invoices export, doctor
"""


@pytest.mark.parametrize("command", [name.strip() for name in COMMANDS.split(",")])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "--database-url" in result.output


def test_the_list_of_commands_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from svc_infra.cli import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "print(sorted({'sqlalchemy', 'rich', 'httpx', 'pydantic', 'asyncio'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
