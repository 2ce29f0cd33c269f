"""The README and the documents, held to what they say: blocks run, tests exist, links lead somewhere.

The pages of ``FOLLOWED`` are followed from top to bottom (``reader.py``). Elsewhere a ``python runnable``
block is run by itself; of a plain ``python`` block the syntax and the names that it imports from us are
checked, of a command its options, of settings their keys, and of a request its route.
"""

from __future__ import annotations

import ast
import asyncio
import configparser
import json
import re
import shlex
import shutil
import socket
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.api.fastapi.service import make_app
from svc_infra.billing import UsageEvent
from svc_infra.billing.catalog import parse_catalog
from svc_infra.cli import cli
from svc_infra.config import Settings
from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine
from svc_infra.jobs import process_one
from tests.examples.reader import OURS, ROOT, Block, Reader, blocks, commands, python

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if path.name != "specification.md"  # which has a test of its own
}
READING_PATH_LINES = range(1_700, 2_100)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
NAMED_TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")

# --- pages that are followed as a whole -----------------------------------------------------------

FOLLOWED = {
    "README.md",
    "docs/howto/billing.md",
    "docs/howto/http.md",
    "docs/tutorials/fastapi.md",
    "docs/tutorials/first_customer.md",
    "docs/tutorials/postgresql.md",
    "docs/tutorials/receive_webhooks.md",
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to be in, for pages that begin in a checkout and go on beside it."""
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    sys.modules.pop("shop", None)


def free_ports(*said: int) -> dict[str, str]:
    """For each port that a page names, one that is free."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in said]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {str(port): str(each.getsockname()[1]) for port, each in zip(said, sockets, strict=True)}


def test_a_customer_is_billed_by_following_the_tutorial(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader(monkeypatch) as reader:
        reader.follow("docs/tutorials/first_customer.md")


@pytest.mark.postgres_only
def test_a_database_is_moved_to_postgresql_by_following_the_tutorial(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, empty_database_url: str
) -> None:
    with Reader(monkeypatch, {"postgresql://localhost/billing": empty_database_url}) as reader:
        reader.follow("docs/tutorials/first_customer.md")
        reader.follow("docs/tutorials/postgresql.md")


def test_billing_is_mounted_by_following_the_tutorial(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader(monkeypatch, free_ports(8000)) as reader:
        reader.follow("docs/tutorials/fastapi.md")


def test_webhooks_are_received_by_following_the_tutorial(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "docs/tutorials/receive_webhooks.md"
    with Reader(monkeypatch, free_ports(9000, 9001)) as reader:
        if shutil.which("node"):
            reader.follow(page)
        else:
            reader.follow(page, until="js")
            pytest.skip("ONLY THE PYTHON HALF WAS RUN: node is missing; install Node.js 18 or newer")


def test_the_how_to_of_billing_bills_as_it_says(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Reader(monkeypatch) as reader:
        reader.follow("docs/howto/billing.md")
    exported = (checkout / "invoices.csv").read_text(encoding="utf-8").splitlines()
    assert len(exported) == 1 + 2, "the header and the two lines of the one invoice"


def test_the_how_to_of_http_is_answered_as_it_says(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Reader(monkeypatch) as reader:
        reader.follow("docs/howto/http.md")


def test_the_readme_s_example_commits_usage_job_and_effects(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bring_up() -> None:
        engine = make_engine("sqlite:///svc_infra.db")
        await migrate(engine)
        await engine.dispose()

    asyncio.run(bring_up())
    with Reader(monkeypatch) as reader:
        names = reader.follow("README.md")

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
    assert len(PAGES["README.md"].splitlines()) <= 80


def test_the_reading_path_is_as_long_as_it_says() -> None:
    _, _, path = PAGES["CONTRIBUTING.md"].partition("Read these in order")
    files = [target for target, _ in LINK.findall(path.partition("The reasons")[0])]
    assert len(files) > 5
    lines = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in files)
    assert lines in READING_PATH_LINES


# --- all other blocks -----------------------------------------------------------------------------

OTHERS = [block for page in PAGES if page not in FOLLOWED for block in blocks(page)]


@pytest.mark.parametrize("block", OTHERS, ids=lambda block: block.place)
def test_a_block_elsewhere_runs_or_at_least_names_what_exists(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert block.argument == ("runnable" if block.argument else ""), f"{block.place}: nobody runs it"
    monkeypatch.chdir(tmp_path)
    if block.argument == "runnable":
        python(block, {"__name__": "document"})
    else:
        CHECKS[block.language](block)


def check_commands(block: Block) -> None:
    for command in commands(block):
        words = shlex.split(command)
        if words[0] in OURS:
            check_command(words[1:], block.place)
        elif words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), (
                f"{block.place}: {command}"
            )
        elif words[0] == "curl":
            check_request(words, block.place)


def check_command(words: list[str], place: str) -> None:
    """That there is such a command or group, with these options and no more arguments than it takes."""
    command: click.Command = cli
    context = click.Context(cli, info_name="worker.py", **cli.context_settings)
    while words and isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, f"{place}: there is no command {words[0]!r}"
        command, words = found, words[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    words = words[: words.index(">")] if ">" in words else words
    try:
        command.make_parser(context).parse_args(words)
    except click.ClickException as error:
        raise AssertionError(f"{place}: {error.format_message()}") from error


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_a_sentence_exists(page: str) -> None:
    sentences = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(rf"`((?:{'|'.join(OURS)}) [^`…]+)`", sentences):
        check_command(shlex.split(span)[1:], page)


def check_request(words: list[str], place: str) -> None:
    path = next(word.removeprefix("$API") for word in words if word.startswith("$API"))
    method = words[words.index("-X") + 1].lower() if "-X" in words else "get"
    paths = make_app(make_engine("sqlite:///:memory:")).openapi()["paths"]
    assert method in paths.get(path, {}), f"{place}: there is no {method} {path}"


def check_toml(block: Block) -> None:
    """That it is a catalog, or names settings that exist."""
    written = tomllib.loads(block.code)
    if written.keys() & {"plans", "prices"}:
        parse_catalog(block.code)
        return
    for section, keys in written.items():
        known = type(getattr(Settings(), section)).model_fields
        assert {key.removesuffix("_file") for key in keys} <= known.keys(), block.place


CHECKS: dict[str, Any] = {
    "python": lambda block: check_names(block),
    "console": check_commands,
    "toml": check_toml,
    "json": lambda block: json.loads(block.code),
    "ini": lambda block: configparser.ConfigParser(strict=False, interpolation=None).read_string(block.code),
    "sql": lambda block: None,  # run below
}


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


def test_the_index_leads_to_every_page() -> None:
    folder = ROOT / "docs"
    linked = {(folder / target).resolve() for target, _ in LINK.findall(PAGES["docs/README.md"])}
    missing = {
        page
        for page in PAGES
        if page.startswith("docs/")
        and page != "docs/README.md"
        and not linked & {ROOT / page, (ROOT / page).parent}
    }
    assert missing == set()


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
