"""The commands that move invoices, subscriptions, tenants and the catalog on."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from svc_infra.billing.invoicing import InvoiceRequest, generate_invoices
from svc_infra.cli import cli
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.exceptions import InvalidCatalog, InvalidStatus, NotFound

CATALOG = """
[[plans]]
key = "standard"
default = true
[[prices]]
key = "base"
plan = "standard"
currency = "usd"
unit_amount = "500"
recurring_interval = "month"
"""
JANUARY, FEBRUARY = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC)

pytestmark = pytest.mark.sqlite_only


def run(url: str, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, [*arguments, "--database-url", url])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def read(url: str, *arguments: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run(url, *arguments, "--json").stdout)
    return found


def bill(url: str) -> str:
    async def make() -> str:
        engine = make_engine(url)
        async with make_session_factory(engine).begin() as session:
            request = InvoiceRequest("t", JANUARY, FEBRUARY, "usd")
            [result] = await session.run_sync(generate_invoices, [request], now=FEBRUARY)
        await engine.dispose()
        return str(result.invoice_id)

    return asyncio.run(make())


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.toml"
    path.write_text(CATALOG)
    return path


@pytest.fixture
def url(empty_database_url: str, catalog: Path) -> str:
    run(empty_database_url, "migrate")
    run(empty_database_url, "catalog", "apply", str(catalog))
    return empty_database_url


def test_an_invoice_is_finalized_credited_and_paid(url: str) -> None:
    run(url, "tenants", "set", "t", "--grace-seconds", "86400", "--due-days", "14")
    settings = json.loads(run(url, "tenants", "show", "t", "--json").stdout)
    assert (settings["grace_seconds"], settings["due_days"], settings["timezone"]) == (86400, 14, "UTC")
    run(url, "subscriptions", "add", "t", "standard", "--from", "2025-01-01", "--quantity", "2")
    invoice_id = bill(url)
    with pytest.raises(InvalidStatus):
        run(url, "invoices", "paid", invoice_id)
    assert "INV-1 is finalized" in run(url, "invoices", "finalize", invoice_id).stdout
    credited = ["credit", invoice_id, "--reason", "outage", "--actor", "ann", "--amount", "250"]
    assert "CN-INV-1 of USD 2.50" in run(url, "invoices", *credited).stdout
    assert "is uncollectible" in run(url, "invoices", "uncollectible", invoice_id, "--reason", "gone").stdout
    assert "is paid" in run(url, "invoices", "paid", invoice_id).stdout
    [shown] = read(url, "invoices", "list")
    assert (shown["total_amount"], shown["credited_amount"], shown["status"]) == (1000, 250, "paid")
    with pytest.raises(NotFound):
        run(url, "invoices", "void", "nothing", "--reason", "x")


def test_a_month_is_invoiced_when_somebody_says_so_and_a_worker_ends_when_nothing_is_due(url: str) -> None:
    run(url, "subscriptions", "add", "t", "standard", "--from", "2025-01-01")
    for _ in range(2):  # asked again, it makes nothing anew
        run(url, "invoices", "make", "--period", "2025-01")
        run(url, "run", "--until-idle")
    [invoice] = read(url, "invoices", "list")
    assert (invoice["period_start"], invoice["total_amount"]) == ("2025-01-01T00:00:00Z", 500)
    coming = f"{datetime.now(UTC):%Y-%m}"
    refused = CliRunner().invoke(cli, ["invoices", "make", "--period", coming, "--database-url", url])
    assert refused.exit_code == 2
    assert "preview" in refused.output


def test_what_waits_and_who_is_parked_can_be_seen(url: str) -> None:
    assert read(url, "invoices", "pending") == []
    assert read(url, "invoices", "parked") == []
    with pytest.raises(NotFound, match="not parked"):
        run(url, "invoices", "unpark", "t")


def test_a_subscription_is_changed_and_ended(url: str) -> None:
    options = ["--from", "2025-01-31", "--anchor", "2025-01-31", "--trial-days", "5"]
    first = run(url, "subscriptions", "add", "t", "standard", *options).stdout.strip()
    second = run(url, "subscriptions", "change", "t", first, "--quantity", "3", "--at", "2025-03-31")
    assert (
        "2025-06-30"
        in run(url, "subscriptions", "end", "t", second.stdout.strip(), "--at", "2025-06-30").stdout
    )
    listed = read(url, "subscriptions", "list")
    assert [(row["quantity"], row["cycle"], row["trial_ends_at"]) for row in listed] == [
        (1, "month:31", "2025-02-05T00:00:00Z"),
        (3, "month:31", None),
    ]


def test_a_diff_says_what_is_billed_differently_and_changes_nothing(url: str, catalog: Path) -> None:
    catalog.write_text(CATALOG.replace("500", "700"))
    for _ in range(2):
        shown = run(url, "catalog", "diff", str(catalog), "--from", "2099-01-01").stdout
        assert "price base in usd of plan standard: for what begins on 2099-01-01 or later" in shown
        assert "  - unit_amount = 500\n  + unit_amount = 700\n" in shown
    with pytest.raises(InvalidCatalog, match="say --retroactive"):
        run(url, "catalog", "apply", str(catalog), "--from", "2025-01-01")
    warned = run(url, "catalog", "diff", str(catalog), "--from", "2025-01-01", "--retroactive")
    assert "RETROACTIVE" in warned.stdout
    run(url, "catalog", "apply", str(catalog), "--from", "2099-01-01")
    assert "updated" not in run(url, "catalog", "diff", str(catalog)).stdout


def test_a_catalog_is_checked_without_a_database(catalog: Path) -> None:
    done = CliRunner().invoke(cli, ["catalog", "check", str(catalog)])
    assert "1 plans and 1 prices, no errors" in done.output
    catalog.write_text(CATALOG + 'oops = "x"\n')
    failed = CliRunner().invoke(cli, ["catalog", "check", str(catalog)])
    assert isinstance(failed.exception, InvalidCatalog)
    assert f"{catalog}:11: unknown key 'oops'" in str(failed.exception)
