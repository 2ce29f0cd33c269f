"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

import svc_infra

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "svc_infra"

LINES_PER_FILE = 350
LINES_PER_FUNCTION = 60

# Where whatever a stranger's code raises ends: the job handler boundary, the delivery send boundary,
# and the supervisor that keeps the worker's loops running.
MAY_CATCH_EVERYTHING = {
    "jobs/attempt.py",
    "jobs/executor.py",
    "jobs/loop.py",
    "webhooks/transport.py",
}
READS_THE_ENVIRONMENT = {"config.py"}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc"}

# Written so that no pattern matches this file.
REGISTRY_HOSTS = re.compile(
    r"pypi\.org|pythonhosted\.org|registry\.npmjs|npmjs\.com|deb\.debian\.org|proxy\.golang\.org|"
    r"crates\.io|--(?:extra-)?index-url[ =]\S|https?://\S+/simple(?:/|\b)",
    re.IGNORECASE,
)
HOME_PATHS = re.compile(r"(?<![\w.~])/(?:root|home/[\w.-]+|Users/[\w.-]+)/|[A-Z]:\\Users\\", re.ASCII)


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py")) + [path for path in [ROOT / "worker.py"] if path.exists()]


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE if path.is_relative_to(SOURCE) else ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in source_files():
        for node in ast.walk(tree_of(path)):
            yield name_of(path), node


def test_files_are_one_noun_long() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in source_files()}
    assert {name: length for name, length in lengths.items() if length > LINES_PER_FILE} == {}


def test_functions_fit_a_screen() -> None:
    too_long = {
        f"{file}:{node.name}": length
        for file, node in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > LINES_PER_FUNCTION
    }
    assert too_long == {}


def test_only_the_boundaries_catch_everything() -> None:
    catching = {
        f"{file}:{node.lineno}"
        for file, node in nodes()
        if isinstance(node, ast.ExceptHandler) and catches_everything(node) and not passes_on(node)
    }
    assert {place for place in catching if place.rsplit(":", 1)[0] not in MAY_CATCH_EVERYTHING} == set()


def catches_everything(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"} for kind in kinds)


def passes_on(handler: ast.ExceptHandler) -> bool:
    """Whether the handler only tidies up: it ends by raising the same error again."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_only_the_settings_read_the_environment() -> None:
    reading = {file for file, node in nodes() if reads_the_environment(node)}
    assert reading - READS_THE_ENVIRONMENT == set()


def reads_the_environment(node: ast.AST) -> bool:
    names = {"environ", "environb", "getenv", "getenvb", "putenv"}
    if isinstance(node, ast.Attribute):
        return node.attr in names and isinstance(node.value, ast.Name) and node.value.id == "os"
    return (
        isinstance(node, ast.ImportFrom)
        and node.module == "os"
        and any(alias.name in names for alias in node.names)
    )


def test_every_name_says_what_a_file_holds() -> None:
    parts = {part for path in source_files() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert parts & VAGUE_NAMES == set()


def test_modules_with_functions_or_classes_leave_annotations_unevaluated() -> None:
    eager = {
        name_of(path)
        for path in source_files()
        if any(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            for node in tree_of(path).body
        )
        and not any(
            isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree_of(path).body
        )
    }
    assert eager == set()


@cache
def kept_texts() -> dict[str, str]:
    """Every text file that is in git or would be added, by its path."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    texts = {}
    for name in filter(None, listing.stdout.split("\0")):
        try:
            texts[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # data, or a file that was just deleted
            continue
    return texts


@pytest.mark.parametrize(
    "pattern", [REGISTRY_HOSTS, HOME_PATHS], ids=["a package registry's host", "somebody's home folder"]
)
def test_no_kept_file_names(pattern: re.Pattern[str]) -> None:
    found = {
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match.group()}"
        for name, text in kept_texts().items()
        for match in pattern.finditer(text)
    }
    assert found == set()


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (REGISTRY_HOSTS, "https://files." + "pythonhosted" + ".org/packages/x.whl"),
        (REGISTRY_HOSTS, "--index" + "-url https://mirror.example"),
        (HOME_PATHS, "see /" + "home/somebody/project"),
        (HOME_PATHS, "cd /" + "root/project"),
    ],
)
def test_the_patterns_find_what_they_are_for(pattern: re.Pattern[str], text: str) -> None:
    assert pattern.search(text)


def test_the_lock_pins_every_package_by_hash_and_names_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    entries = re.split(r"\n(?=[a-z0-9])", lock)
    assert len(entries) > 20
    assert [entry.split()[0] for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []


def test_the_lock_holds_every_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[\[<>=~! ;]", requirement)[0] for requirement in declared} - {project["name"]}
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert names - locked == set()


def test_the_package_and_the_distribution_agree_on_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == svc_infra.__version__


def test_make_check_runs_every_wall_and_ci_runs_make_check() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    for command in ("ruff format --check", "ruff check", "mypy --strict src", "lint-imports", "pytest"):
        assert command in recipe.group(1)
    assert re.search(r"^make check\b", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
