"""Tables for people: nothing is cut, and what may have to be copied stays in one piece."""

from __future__ import annotations

import re
import sys

import pytest

from svc_infra.cli.table import print_table

ID = "01a2147f-ea60-7396-8e8a-0cd86c371ad5"
ROWS = [(ID, "billing.run_monthly_invoicing", None, "it said that nobody was there to answer", "[red]")]
COLUMNS = ["id", "name", "queue", "error", "tenant"]


@pytest.mark.parametrize(("columns", "lines"), [("140", 1), ("120", 2), ("80", 4), (None, 1)])
def test_a_table_fits_the_terminal_and_keeps_ids_whole(
    columns: str | None, lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns or "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: columns is not None, raising=False)
    print_table(COLUMNS, ROWS)
    printed = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    content = [line for line in printed if line.strip() and "─" not in line and "queue" not in line]
    assert len(content) == lines
    assert max(map(len, printed)) <= int(columns or 1_000)
    for whole in (ID, "billing.run_monthly_invoicing", "[red]"):
        assert whole in "\n".join(printed)
