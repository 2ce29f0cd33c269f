from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Any

import pytest

from svc_infra.billing.toml_lines import KeyPath, key_lines, line_of

TEXT = '''\
# [[plans]] in a comment is none
title = "[[plans]] # in a string"
note = """
[[plans]]
key = "not a key" \\"""
"""
dotted.key = 1
"quoted key" = [ 1, 2.5, [ 3 ], 1979-05-27T07:32:00Z ]

[[plans]]
key = "a"
  [[plans.entitlements]]
  key = "x"   # a comment
  [[plans.entitlements]]

  key = "y"
[[plans]]
key = 'b # }'
entitlements = [
  { key = "x", limit = 1 },  # one

  { key = "y" }
]
[table.nested]
inner = { deep.er = "1", list = [ { a = 1 } ] }
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("note",), 3),
        (("dotted", "key"), 7),
        (("quoted key",), 8),
        (("quoted key", 2, 0), 8),
        (("plans", 0), 10),
        (("plans", 0, "key"), 11),
        (("plans", 0, "entitlements", 0), 12),
        (("plans", 0, "entitlements", 0, "key"), 13),
        (("plans", 0, "entitlements", 1), 14),
        (("plans", 0, "entitlements", 1, "key"), 16),
        (("plans", 1), 17),
        (("plans", 1, "key"), 18),
        (("plans", 1, "entitlements"), 19),
        (("plans", 1, "entitlements", 0, "limit"), 20),
        (("plans", 1, "entitlements", 1), 22),
        (("plans", 1, "entitlements", 1, "key"), 22),
        (("table", "nested"), 24),
        (("table", "nested", "inner", "deep", "er"), 25),
        (("table", "nested", "inner", "list", 0, "a"), 25),
    ],
)
def test_every_key_has_the_line_it_stands_on(path: KeyPath, line: int) -> None:
    assert key_lines(TEXT)[path] == line


def paths_in(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return {path}.union(*(paths_in(inner, (*path, key)) for key, inner in items))


def test_only_what_no_line_introduces_by_itself_has_no_line() -> None:
    assert paths_in(tomllib.loads(TEXT)) - key_lines(TEXT).keys() == {
        (),
        ("dotted",),
        ("plans",),
        ("plans", 0, "entitlements"),
        ("table",),
        ("table", "nested", "inner", "deep"),
    }
    assert key_lines(TEXT).keys() <= paths_in(tomllib.loads(TEXT))


def test_windows_line_ends_count_once() -> None:
    assert key_lines("a = 1\r\nb = 2\r\n") == {("a",): 1, ("b",): 2}


def test_a_key_that_is_missing_is_blamed_on_the_table_around_it() -> None:
    lines = key_lines(TEXT)
    assert line_of(lines, ("plans", 1, "name")) == 17
    assert line_of(lines, ("plans", 1, "entitlements", 1, "limit")) == 22
    assert line_of(lines, ("prices",)) == 1
