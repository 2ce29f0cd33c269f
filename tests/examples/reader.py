"""Reads a page as its user does: writes its files, types its commands, and looks at what they print.

What a block is follows from its fence:

- ``console``: commands, one a line. ``worker.py`` and ``svc-worker`` run in this process, others in a shell.
  With ``background`` it is one command that goes on in a terminal of its own.
- any language with a file name after it: that file.
- ``python``: run in one namespace for the whole page.
- ``text``: what the block before it printed, or with ``background`` what the other terminal prints next.
  ``…`` stands for anything.

A word of a command that ends in ``…`` is what was printed last and begins so.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from click.testing import CliRunner

from svc_infra.cli import cli

ROOT = Path(__file__).resolve().parents[2]
OURS = ("worker.py", "svc-worker")
# What prepares a machine. The environment that runs the tests was made by the first of these.
NOT_RUN = ("make", "git", "python3", ".", ".venv/bin/python", "pip", "npm", "docker", "createdb")
BLOCK = re.compile(r"^```(\S+)(?: +(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMPLETED = re.compile(r"([\w+/-]+)…")


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
    """The fenced blocks of a page of the checkout, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page, line, match[1], match[2] or "", match[3])


def commands(block: Block) -> Iterator[str]:
    """The commands of a console block, without comments, a continued one as one line."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if command := re.sub(r"(^|\s+)# .*", "", line).strip():
            yield command


def python(block: Block, names: dict[str, Any]) -> None:
    exec(compile(block.code, block.place, "exec", dont_inherit=True), names)


class Reader:
    """Follows pages in the working directory; ``instead`` is what stands for what on this machine."""

    def __init__(self, patch: pytest.MonkeyPatch, instead: Mapping[str, str] | None = None) -> None:
        self.names: dict[str, Any] = {"__name__": "document"}
        self.printed: list[str] = [""]
        self._patch = patch
        self._instead = dict(instead or {})
        self._running: list[subprocess.Popen[str]] = []
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.setenv("PYTHONUNBUFFERED", "1")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running:
            process.kill()
            process.communicate()

    def follow(self, page: str, *, until: str = "") -> dict[str, Any]:
        """Do what the page says, up to a block of the language ``until``; return what its Python named."""
        for block in blocks(page):
            if block.language == until:
                break
            self._do(block)
        return self.names

    def _do(self, block: Block) -> None:
        if block.language == "text":
            self._compare(block)
        elif block.language == "console":
            for command in commands(block):
                self._type(block, self._completed(command), is_going_on=block.argument == "background")
        elif block.argument:
            Path(block.argument).write_text(self._replaced(block.code), encoding="utf-8")
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                python(block, self.names)
            self.printed.append(out.getvalue())

    def _type(self, block: Block, command: str, *, is_going_on: bool) -> None:
        words = shlex.split(command)
        if words[0] in NOT_RUN:
            return
        if words[0] == "cd":
            self._patch.chdir(words[1])
        elif words[0] == "export":
            name, _, value = words[1].partition("=")
            self._patch.setenv(name, value)
        elif is_going_on:
            process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
            )
            self._running.append(process)
        elif words[0] in OURS and not set("|>$") & set(command):
            result = CliRunner().invoke(cli, words[1:])
            assert result.exit_code == 0, f"{block.place}: {command}: {result.output}{result.exception!r}"
            self.printed.append(result.stdout)
        else:
            ran = subprocess.run(
                ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60
            )
            assert ran.returncode == 0, f"{block.place}: {command}: {ran.stdout}{ran.stderr}"
            self.printed.append(ran.stdout)

    def _compare(self, block: Block) -> None:
        wanted = _tidy(block.code)
        found = self._read_on(len(wanted.splitlines())) if block.argument else self.printed[-1]
        pattern = re.escape(wanted).replace("…", ".*?")
        assert re.fullmatch(pattern, _tidy(self._told(found)), re.DOTALL), (
            f"{block.place}: it prints\n{found}"
        )

    def _read_on(self, lines: int) -> str:
        stdout = self._running[-1].stdout
        assert stdout is not None
        return "".join(stdout.readline() for _ in range(lines))

    def _replaced(self, text: str) -> str:
        for said, meant in self._instead.items():
            text = text.replace(said, meant)
        return text

    def _told(self, text: str) -> str:
        for said, meant in self._instead.items():
            text = text.replace(meant, said)
        return text

    def _completed(self, command: str) -> str:
        def last(match: re.Match[str]) -> str:
            found = re.findall(rf"(?<![\w-]){re.escape(match[1])}[\w+/=-]+", "\n".join(self.printed))
            assert found, f"nothing that was printed begins with {match[1]}"
            return str(found[-1])

        return self._replaced(COMPLETED.sub(last, command))


def _tidy(text: str) -> str:
    """The lines that say something, without what only lays them out."""
    lines = (re.sub(r"─+", "─", " ".join(line.split())) for line in text.splitlines())
    return "\n".join(line for line in lines if line)
