"""How commands answer wrong usage: one sentence, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from svc_infra.application import Application, load_application
from svc_infra.exceptions import InvalidSettings

ROOT = Path(__file__).resolve().parents[2]


def worker(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "worker.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("invoices", "list", "--database-url", "nonsense"),
        ("invoices", "list", "--database-url", "oracle://host/db"),
        ("migrate", "--database-url", "sqlite:///new.db", "--to", "nonsense"),
        ("run", "--app", "nowhere:app"),
        ("run", "--app", "nowhere"),
    ],
    ids=["no url", "other database", "no revision", "no module", "no attribute"],
)
def test_wrong_usage_is_one_sentence_and_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    run = worker(*arguments, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("Error: ")
    assert len(run.stderr.splitlines()) == 1


def test_reading_makes_no_database(tmp_path: Path) -> None:
    run = worker("invoices", "list", "--database-url", "sqlite:///none.db", cwd=tmp_path)
    assert (run.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "worker.py migrate" in run.stderr


def test_an_import_that_a_bad_line_ends_says_in_json_what_stands(tmp_path: Path) -> None:
    (tmp_path / "usage.csv").write_text(
        "tenant_id,metric,amount,at,idempotency_key\na,m,x,2024-01-01T00:00Z,1\n"
    )
    assert worker("migrate", "--database-url", "sqlite:///a.db", cwd=tmp_path).returncode == 0
    run = worker("usage", "import", "usage.csv", "--json", "--database-url", "sqlite:///a.db", cwd=tmp_path)
    assert run.returncode == 1
    assert json.loads(run.stdout) == {"read": 0, "inserted": 0, "duplicate": 0, "rejected": 0}
    assert "usage.csv:2:" in run.stderr


def test_an_application_beside_the_worker_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_of_this_test.py").write_text(
        "from svc_infra.application import Application\n\nother = 1\n"
        "\n\ndef make():\n    return Application()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert isinstance(load_application("shop_of_this_test:make"), Application)
    with pytest.raises(InvalidSettings, match="is a int, not an Application"):
        load_application("shop_of_this_test:other")
