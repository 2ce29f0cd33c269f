"""The README and the documents, held to what they say: blocks run, tests exist, links lead somewhere.

A document with an entry in ``SET_UPS`` is run from top to bottom in a folder of its own: Python blocks share
one namespace, commands are given to the command line, and a block with a file name after its language is
written to that file. Elsewhere a ``python runnable`` block is run by itself, and of a plain ``python`` block
the syntax and the names that it imports from us are checked.
"""

from __future__ import annotations

import ast
import asyncio
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.billing import UsageEvent
from svc_infra.cli import cli
from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine
from svc_infra.jobs import process_one

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if path.name != "specification.md"  # which has a test of its own
}
READING_PATH_LINES = range(1_700, 2_100)
BLOCK = re.compile(r"^```(\S+)(?: +(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
NAMED_TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")

Names = dict[str, Any]


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    argument: str
    code: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> Iterator[Block]:
    for match in BLOCK.finditer(PAGES[page]):
        line = PAGES[page].count("\n", 0, match.start()) + 1
        yield Block(page, line, match[1], match[2] or "", match[3])


def python(block: Block, names: Names) -> None:
    exec(compile(block.code, block.place, "exec", dont_inherit=True), names)


# --- documents that are run as a whole ------------------------------------------------------------


def a_migrated_database() -> None:
    async def bring_up() -> None:
        engine = make_engine("sqlite:///svc_infra.db")
        await migrate(engine)
        await engine.dispose()

    asyncio.run(bring_up())


def nothing() -> None:
    """The document begins with nothing, as its reader does."""


SET_UPS: dict[str, Callable[[], None]] = {
    "README.md": a_migrated_database,
    "docs/howto/billing.md": nothing,
    "docs/howto/http.md": nothing,
}


def run_page(page: str) -> Names:
    """Run a document's Python, files and ``worker.py`` commands in the working directory."""
    SET_UPS[page]()
    names: Names = {"__name__": "document"}
    for block in blocks(page):
        if block.language == "python":
            python(block, names)
        elif block.argument:
            Path(block.argument).write_text(block.code, encoding="utf-8")
        elif block.language == "console":
            for line in block.code.splitlines():
                if line.startswith("worker.py "):
                    command(block, line)
    return names


def command(block: Block, line: str) -> None:
    result = CliRunner().invoke(cli, shlex.split(line)[1:])
    assert result.exit_code == 0, f"{block.place}: {line}: {result.output}{result.exception!r}"


def test_the_how_to_of_billing_bills_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page("docs/howto/billing.md")
    exported = (tmp_path / "invoices.csv").read_text(encoding="utf-8").splitlines()
    assert len(exported) == 1 + 2, "the header and the two lines of the one invoice"


def test_the_how_to_of_http_is_answered_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page("docs/howto/http.md")


def test_the_readme_s_example_commits_usage_job_and_effects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page("README.md")

    async def use() -> list[tuple[str, str]]:
        await names["order"]("t1", "order-1")
        handlers = names["app"].handlers
        assert await process_one(names["queue"], handlers)
        assert not await process_one(names["queue"], handlers)
        async with names["sessions"]() as session:
            found = await session.execute(select(UsageEvent.tenant_id, UsageEvent.metric))
            rows = sorted(tuple(row) for row in found)
        await names["engine"].dispose()
        return rows

    assert asyncio.run(use()) == [("t1", "orders"), ("t1", "reports")]


def test_the_readme_is_two_screens() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 100


def test_the_reading_path_is_as_long_as_it_says() -> None:
    _, _, path = PAGES["README.md"].partition("read these in order")
    files = [target for target, _ in LINK.findall(path.partition("The reasons")[0])]
    assert len(files) > 5
    lines = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in files)
    assert lines in READING_PATH_LINES


# --- all other blocks -----------------------------------------------------------------------------


OTHERS = [
    block
    for page in PAGES
    if page not in SET_UPS
    for block in blocks(page)
    if block.language in ("python", "py", "python3")
]


@pytest.mark.parametrize("block", OTHERS or [None], ids=lambda block: block.place if block else "none")
def test_a_block_elsewhere_runs_or_at_least_names_what_exists(
    block: Block | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block is None:
        return
    assert block.language == "python", f"{block.place}: write ```python"
    assert block.argument in ("", "runnable"), f"{block.place}: nobody knows how to run {block.argument!r}"
    monkeypatch.chdir(tmp_path)
    if block.argument == "runnable":
        python(block, {"__name__": "document"})
    else:
        check_names(block)


def check_names(block: Block) -> None:
    """Of a block that needs an application around it: it parses, and what it imports from us is there."""
    tree = compile(
        block.code,
        block.place,
        "exec",
        flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "svc_infra":
            module = import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{block.place}: {node.module} has no {alias.name}"


def test_the_check_of_names_finds_one_that_is_not_there() -> None:
    with pytest.raises(AssertionError, match="has no Wrokload"):
        check_names(Block("page.md", 1, "python", "", "from svc_infra.jobs import Wrokload\n"))


def test_every_promise_of_the_readme_has_its_section() -> None:
    promised = re.findall(r"^\| \[(P\d)\]", PAGES["README.md"], re.MULTILINE)
    assert promised == re.findall(r"^## (P\d):", PAGES["docs/guarantees.md"], re.MULTILINE)
    assert len(promised) == 9


def test_every_promise_names_a_test() -> None:
    sections = re.split(r"^## (?=P\d)", PAGES["docs/guarantees.md"], flags=re.MULTILINE)[1:]
    assert [section[:2] for section in sections if not NAMED_TEST.search(section)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page: str) -> None:
    missing = [
        f"{file}::{name}" for file, name in NAMED_TEST.findall(PAGES[page]) if name not in functions_in(file)
    ]
    assert missing == []


def functions_in(file: str) -> set[str]:
    path = ROOT / file
    if not path.exists():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    broken = []
    for target, anchor in LINK.findall(PAGES[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- queries for the operator ---------------------------------------------------------------------


def queries() -> list[str]:
    found = [block.code for block in blocks("docs/operations.md") if block.language == "sql"]
    return [query for code in found for query in code.split(";") if query.strip()]


async def test_the_operator_s_queries_find_nothing_wrong_in_a_quiet_database(
    engine: AsyncEngine,
) -> None:
    statements = queries()
    assert len(statements) >= 9
    async with engine.connect() as connection:
        for statement in statements:
            rows = (await connection.execute(text(statement))).all()
            assert all(row[0] == 0 for row in rows), statement


def test_the_log_lines_to_alert_on_are_written_somewhere() -> None:
    _, _, in_the_log = PAGES["docs/operations.md"].partition("\nIn the log:")
    events = re.findall(r"`(\w+\.\w+)`", in_the_log.partition("###")[0])
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert len(events) >= 6
    assert [event for event in events if f'"{event}"' not in source] == []


def test_the_failpoints_of_the_life_cycle_are_those_of_the_code() -> None:
    _, _, crashes = PAGES["docs/job_lifecycle.md"].partition("## What each crash does")
    documented = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", crashes)) - {"grace_seconds"}
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert documented == set(re.findall(r"\breached\(\"(\w+)\"\)", source))
