"""One table of a TOML file being read: its keys as typed values, and the line to blame for each."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from svc_infra.billing.toml_lines import KeyPath, line_of
from svc_infra.exceptions import InvalidCatalog

# The lengths of the columns that these are stored in.
KEY_LENGTH, METRIC_LENGTH, NAME_LENGTH = 100, 200, 200


@dataclass(frozen=True, slots=True)
class Origin:
    """The name of the file and the line of each of its keys."""

    source: str
    lines: dict[KeyPath, int]


class Table:
    """One table of the file: reads its keys and knows the line to blame."""

    def __init__(self, values: dict[str, Any], path: KeyPath, origin: Origin) -> None:
        self.values = values
        self._path = path
        self._origin = origin

    def line(self, key: str | None = None) -> int:
        return line_of(self._origin.lines, self._path if key is None else (*self._path, key))

    def place(self, key: str | None = None) -> str:
        return f"{self._origin.source}:{self.line(key)}"

    def error(self, message: str, key: str | None = None) -> InvalidCatalog:
        return InvalidCatalog(f"{self.place(key)}: {message}")

    def refuse_unknown_keys(self, known: Sequence[str]) -> None:
        for key in self.values:
            if key not in known:
                raise self.error(f"unknown key {key!r}; {nearest(key, known)}", key)

    def tables(self, key: str) -> list[Table]:
        values = self.values.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.error(f"{key} must be an array of tables; begin each with [[{key}]]", key)
        path = (*self._path, key)
        return [Table(value, (*path, index), self._origin) for index, value in enumerate(values)]

    def table(self, key: str) -> Table | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(f"{key} must be a table, such as {key} = {{ … }}", key)
        return Table(value, (*self._path, key), self._origin)

    def text(self, key: str, max_length: int) -> str | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.error(f"{key} must be a string, so put it in quotes", key)
        if not value or value != value.strip() or not value.isprintable():
            raise self.error(f"{key} {value!r} is empty or has blanks or control characters around it", key)
        if len(value) > max_length:
            raise self.error(f"{key} has {len(value)} characters; at most {max_length} are stored", key)
        return value

    def required_text(self, key: str, max_length: int) -> str:
        value = self.text(key, max_length)
        if value is None:
            raise self.error(f"{key} is missing")
        return value

    def choice(self, key: str, choices: Sequence[str]) -> str | None:
        value = self.text(key, NAME_LENGTH)
        if value is not None and value not in choices:
            raise self.error(f"{key} {value!r} is not known; {nearest(value, choices)}", key)
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, without quotes", key)
        return value

    def amount(self, key: str, parse: Callable[[str], Decimal]) -> Decimal | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.error(f'{key} must be a decimal string; put it in quotes: {key} = "{value}"', key)
        try:
            amount = parse(value)
        except ValueError as error:
            raise self.error(f"{key}: {error}", key) from error
        if amount < 0:
            raise self.error(f"{key} {value!r} must not be negative", key)
        return amount


def nearest(word: str, known: Iterable[str]) -> str:
    """What to write instead: the known word that comes nearest, or all of them."""
    words = list(known)
    near = difflib.get_close_matches(word, words, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(words)}" if words else "none is known"
