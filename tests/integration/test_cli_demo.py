"""``worker.py demo`` as a person runs it: real processes, small histories of odd shapes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = "tenant_id,metric,amount,at,idempotency_key\n"
JSON_KEYS = [
    *("database", "usage_events", "duplicates", "tenants", "aggregates", "invoices", "invoice_lines"),
    *("invoiced_minor", "currency", "jobs_completed", "jobs_discarded", "messages", "deliveries"),
    *("deliveries_verified", "reconciled", "seconds"),
]
PLAN = '[[plans]]\nkey = "p"\nname = "P"\ndefault = true\n'


def demo(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "worker.py"), "demo", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)


def report_of(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return report


@pytest.fixture
def usage(tmp_path: Path) -> Path:
    """Two months, two tenants, a repeated line, a metric without a price, a name that looks like markup."""
    file = tmp_path / "usage.csv"
    file.write_text(
        HEADER
        + "[/x],cds,10,2024-01-31T23:30:00-02:00,1\n"  # February in UTC
        + "[/x],cds,2.5,2024-02-10T12:00:00Z,2\n"
        + "[/x],cds,2.50,2024-02-10T14:00:00+02:00,2\n"
        + "b,cds,1,2024-01-05T00:00:00Z,1\n"
        + "b,[free],7,2024-02-05T00:00:00Z,1\n"
    )
    return file


def test_it_bills_delivers_verifies_and_proves(usage: Path, tmp_path: Path) -> None:
    run = demo("--usage", usage, "--json", "--keep", tmp_path / "kept.sqlite", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    report = report_of(run)
    assert list(report) == JSON_KEYS
    expected = {
        "database": "sqlite",
        "usage_events": 4,
        "duplicates": 1,
        "tenants": 2,
        "aggregates": 4,
        "invoices": 3,  # b for January and February, the other for February
        "invoice_lines": 5,
        "invoiced_minor": 3 * 500 + 119,  # 12.5 units: 3 free, then 9.5 at 12.5, rounded once
        "messages": 7,
        "deliveries": 7,
        "deliveries_verified": 7,
        "jobs_discarded": 0,
        "reconciled": True,
    }
    assert {key: report[key] for key in expected} == expected
    with sqlite3.connect(tmp_path / "kept.sqlite") as kept:
        totals = kept.execute("SELECT total_amount FROM invoices ORDER BY tenant_id, period_start").fetchall()
    kept.close()
    assert totals == [(619,), (500,), (500,)]


def test_the_summary_survives_names_that_look_like_markup(usage: Path, tmp_path: Path) -> None:
    run = demo("--usage", usage, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "[/x]" in run.stdout
    assert "[free]" in run.stdout
    assert "Proved" in run.stdout


def test_a_file_without_events_is_billed_too(tmp_path: Path) -> None:
    (tmp_path / "usage.csv").write_text(HEADER)
    run = demo("--usage", "usage.csv", "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert report_of(run)["invoices"] == 0


def test_a_bad_line_ends_it_with_2_and_leaves_no_file(usage: Path, tmp_path: Path) -> None:
    usage.write_text(usage.read_text() + "b,cds,-1,2024-01-05T00:00:00Z,9\n")
    kept = tmp_path / "kept.sqlite"
    run = demo("--usage", usage, "--keep", kept, cwd=tmp_path)
    assert (run.returncode, kept.exists()) == (2, False)
    assert "usage.csv:7:" in run.stderr


def test_prices_in_two_currencies_end_it_with_2(usage: Path, tmp_path: Path) -> None:
    price = '[[prices]]\nkey = "{0}"\nplan = "p"\ncurrency = "{0}"\nunit_amount = "5"\n'
    price += 'recurring_interval = "month"\n'
    (tmp_path / "catalog.toml").write_text(PLAN + price.format("usd") + price.format("eur"))
    run = demo("--usage", usage, "--catalog", "catalog.toml", cwd=tmp_path)
    assert run.returncode == 2
    assert "eur, usd" in run.stderr


def test_a_database_with_data_is_refused(usage: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'used.sqlite'}"
    assert demo("--usage", usage, "--database-url", url, "--json", cwd=tmp_path).returncode == 0
    again = demo("--usage", usage, "--database-url", url, "--json", cwd=tmp_path)
    assert again.returncode == 1
    assert "has rows in" in again.stderr


@pytest.mark.postgres_only
def test_it_bills_the_same_on_postgresql(usage: Path, tmp_path: Path, empty_database_url: str) -> None:
    run = demo("--usage", usage, "--database-url", empty_database_url, "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    report = report_of(run)
    assert (report["database"], report["invoiced_minor"], report["reconciled"]) == ("postgresql", 1619, True)
