"""Where each key of a TOML text stands: ``tomllib`` gives the values but no positions.

The text has been accepted by ``tomllib``, so this walk need not check anything; it only keeps count of lines,
tables and array elements.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# ("prices", 1, "tiers", 0, "up_to"): keys and array positions from the top of the document.
KeyPath = tuple[str | int, ...]

_TOKEN = re.compile(
    r'''(?P<skip>[ \t\r]+|\#[^\n]*)
      | (?P<string>"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\')
      | (?P<mark>[\[\]{}=,.\n])
      | (?P<bare>[^\s\[\]{}=,.\#"\']+)''',
    re.VERBOSE | re.DOTALL,
)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every key, table and array element of a valid TOML text."""
    walk = _Walk(_tokens(text))
    walk.document()
    return walk.lines


def line_of(lines: dict[KeyPath, int], path: KeyPath) -> int:
    """The line of a path, or of the nearest table or key around it that has one; 1 for the document."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    line = 1
    for match in _TOKEN.finditer(text):
        kind, value = match.lastgroup or "", match.group()
        if kind != "skip":
            tokens.append(_Token(kind, value, line))
        line += value.count("\n")
    return [*tokens, _Token("mark", "\n", line)]


class _Walk:
    """One pass over the tokens that remembers the line of each path."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._tokens = tokens
        self._at = 0
        self._last_index: dict[KeyPath, int] = {}  # of each array of tables: the element being filled

    def document(self) -> None:
        table: KeyPath = ()
        while self._at < len(self._tokens):
            if self._take("\n"):
                continue
            table = self._header() if self._take("[") else self._entry(table)

    def _header(self) -> KeyPath:
        is_array = self._take("[")
        line = self._tokens[self._at].line
        path: KeyPath = ()
        for key in self._dotted_key():
            path += (key,)
            if path in self._last_index:
                path += (self._last_index[path],)
        while self._take("]"):
            pass
        if is_array:
            # A header that names the array again has been resolved to its last element: the next one begins.
            array = path[:-1] if path and isinstance(path[-1], int) else path
            self._last_index[array] = self._last_index.get(array, -1) + 1
            path = (*array, self._last_index[array])
        self.lines[path] = line
        return path

    def _entry(self, table: KeyPath) -> KeyPath:
        line = self._tokens[self._at].line
        path = table + self._dotted_key()
        self.lines[path] = line
        self._take("=")
        self._value(path)
        return table

    def _value(self, path: KeyPath) -> None:
        self.lines.setdefault(path, self._tokens[self._at].line)
        if self._take("{"):
            while not self._take("}"):
                if not self._take(",") and not self._take("\n"):
                    self._entry(path)
        elif self._take("["):
            index = 0
            while not self._take("]"):
                if not self._take(",") and not self._take("\n"):
                    self._value((*path, index))
                    index += 1
        else:
            while self._tokens[self._at].text not in (",", "]", "}", "\n"):
                self._at += 1

    def _dotted_key(self) -> KeyPath:
        keys = [self._key()]
        while self._take("."):
            keys.append(self._key())
        return tuple(keys)

    def _key(self) -> str:
        token = self._tokens[self._at]
        self._at += 1
        return token.text.strip("\"'") if token.kind == "string" else token.text

    def _take(self, mark: str) -> bool:
        token = self._tokens[self._at]
        if token.kind != "mark" or token.text != mark:
            return False
        self._at += 1
        return True
