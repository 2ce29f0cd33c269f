"""The commands that explain, preview, audit and simulate billing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CATALOG = """
[[plans]]
key = "pro"
default = true
[[prices]]
key = "base"
plan = "pro"
currency = "usd"
unit_amount = "500"
recurring_interval = "month"
[[prices]]
key = "calls"
plan = "pro"
currency = "usd"
metric = "calls"
unit_amount = "2"
"""
USAGE = """tenant_id,metric,amount,at,idempotency_key
acme,calls,10,2025-01-05T12:00:00Z,1
acme,calls,5,2025-02-05T12:00:00Z,2
"""


def worker(*arguments: str, folder: Path, code: int = 0) -> str:
    command = [sys.executable, ROOT / "worker.py", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_usage_is_simulated_month_by_month(tmp_path: Path) -> None:
    (tmp_path / "catalog.toml").write_text(CATALOG)
    (tmp_path / "usage.csv").write_text(USAGE)
    span = ("--from", "2025-01-01", "--to", "2025-03-01")
    files = ("--catalog", "catalog.toml", "--usage", "usage.csv")
    found = json.loads(worker("simulate", *span, *files, "--json", folder=tmp_path))
    assert [(each["month"], each["total_amount"]) for each in found["months"]] == [
        ("2025-01", 520),
        ("2025-02", 510),
    ]
    assert not list(tmp_path.glob("*.db"))


def test_an_invoice_is_previewed_made_explained_and_audited(tmp_path: Path) -> None:
    (tmp_path / "catalog.toml").write_text(CATALOG)
    (tmp_path / "dearer.toml").write_text(CATALOG.replace('"2"', '"3"'))
    (tmp_path / "usage.csv").write_text(USAGE)
    worker("migrate", folder=tmp_path)
    worker("catalog", "apply", "catalog.toml", folder=tmp_path)
    worker("usage", "import", "usage.csv", folder=tmp_path)
    worker("subscriptions", "add", "acme", "pro", "--from", "2025-01-01", folder=tmp_path)

    def as_json(*arguments: str) -> Any:
        return json.loads(worker(*arguments, "--json", folder=tmp_path))

    asked = ("invoices", "preview", "acme", "--period", "2025-01", "--catalog", "dearer.toml")
    found = as_json(*asked)
    assert [each["total_amount"] for each in (*found["invoices"], *found["under_catalog"])] == [520, 530]
    assert "Difference: USD 0.10" in worker(*asked, folder=tmp_path)
    report = as_json("audit", "--tenant", "acme")
    assert (report["clean"], report["invoices"], report["events"]) == (True, 0, 2)
