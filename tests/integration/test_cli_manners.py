"""How commands answer wrong usage: one sentence, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import ProgrammingError

from svc_infra.application import Application, load_application
from svc_infra.cli.unusable import why_unusable
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


@pytest.mark.parametrize("command", [["invoices", "list"], ["run"], ["api"]], ids=" ".join)
def test_what_needs_a_database_makes_none(command: list[str], tmp_path: Path) -> None:
    run = worker(*command, "--database-url", "sqlite:///none.db", cwd=tmp_path)
    assert (run.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "worker.py migrate" in run.stderr


@pytest.mark.parametrize(
    ("command", "file"), [("migrate", "nowhere/x.db"), ("migrate", "text.db"), ("run", "text.db")]
)
def test_a_database_that_cannot_be_used_is_one_sentence_and_1(
    command: str, file: str, tmp_path: Path
) -> None:
    (tmp_path / "text.db").write_text("no database, and long enough to be looked at as one" * 100)
    run = worker(command, "--database-url", f"sqlite:///{file}", "--set", "log.level=error", cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr.startswith("Error: the database cannot be used: ")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.postgres_only
def test_a_database_that_is_not_there_is_one_sentence_without_the_password(
    empty_database_url: str, tmp_path: Path
) -> None:
    url = make_url(empty_database_url).set(database="nobody_made_it", password="canary")
    shown = url.render_as_string(hide_password=False)
    for command in ("migrate", "doctor"):
        run = worker(command, "--database-url", shown, cwd=tmp_path)
        assert run.returncode == 1
        assert '"nobody_made_it" does not exist' in run.stdout + run.stderr
        assert "canary" not in run.stdout + run.stderr
        assert "Traceback" not in run.stderr


def test_a_host_that_has_no_address_and_a_fault_of_our_own_are_told_apart() -> None:
    away = why_unusable(socket.gaierror(-2, "Name or service not known"))
    assert away is not None
    assert "Name or service not known" in away
    assert why_unusable(ProgrammingError("SELECT nonsense", {}, Exception("no such column"))) is None
    assert why_unusable(FileNotFoundError("usage.csv")) is None


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
