"""Lines of a stream are read quickly only where the strict reading says the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from svc_infra.api.fastapi.billing.usage_intake import UsageIn
from svc_infra.api.fastapi.billing.usage_stream import read_quickly
from svc_infra.api.fastapi.strict_json import parse_body

_SPACE = st.sampled_from(["", " ", "\t", "\r", "  "])
_TEXT = st.text(alphabet='ab":\\ \t\u00e9,{}', max_size=6)
_VALUE = st.one_of(_TEXT, st.integers(), st.floats(), st.booleans(), st.none(), st.lists(_TEXT, max_size=2))
_FIELDS = {
    "metric": st.one_of(_TEXT, st.just("tokens")),
    "amount": st.sampled_from(["1", 2, 1.5, -1, None]),
    "at": st.sampled_from(["2025-01-01T00:00:00Z", "12:00", 5]),
    "idempotency_key": st.one_of(_TEXT, st.just("k")),
    "more": _TEXT,
}


@st.composite
def _objects(draw: st.DrawFn, pairs: list[tuple[str, str]]) -> str:
    """JSON of an object of these names and texts, with space where it may be."""
    written = [f"{draw(_SPACE)}{name}{draw(_SPACE)}:{draw(_SPACE)}{value}" for name, value in pairs]
    return "{" + ",".join(written) + "}"


@st.composite
def _lines(draw: st.DrawFn) -> bytes:
    usual = ["metric", "amount", "at", "idempotency_key"]
    names = draw(st.permutations(usual)) + draw(st.lists(st.sampled_from([*usual, "more"]), max_size=1))
    pairs = [(json.dumps(name), json.dumps(draw(_FIELDS[name]))) for name in names]
    metadata = [(json.dumps(draw(_TEXT)), json.dumps(draw(_VALUE))) for _ in range(draw(st.integers(0, 3)))]
    pairs.insert(draw(st.integers(0, len(pairs))), ('"metadata"', draw(_objects(metadata))))
    return draw(_objects(pairs)).encode()


def strictly(line: bytes) -> UsageIn | None:
    try:
        return UsageIn.model_validate(parse_body(line))
    except (ValidationError, ValueError):
        return None


@given(_lines())
def test_what_is_read_quickly_is_what_is_read_strictly(line: bytes) -> None:
    quickly = read_quickly(line)
    assert quickly is None or quickly == strictly(line)


_EVENT = b'{"metric":"m","amount":1,"idempotency_key":"k"'


def test_a_usual_line_is_read_quickly() -> None:
    assert read_quickly(_EVENT + b',"at":"2025-01-01T00:00:00Z","metadata":{"a":"b","n":1}}') is not None


@pytest.mark.parametrize(
    "end",
    [
        b',"amount":2}',
        b',"amount" :2}',
        b',"amount"\t:2}',
        b',"am\\u006funt":2}',
        b',"metadata":{"a":1,"a":1}}',
        b',"metadata":{"a":1,"a" :1}}',
        b',"metadata":{"a":NaN}}',
        b',"metadata":{"a":1e400}}',
        b',"metadata":{"a":[{"b":1,"b":2}]}}',
    ],
)
def test_what_parsers_read_differently_is_not_read_quickly(end: bytes) -> None:
    assert read_quickly(_EVENT + end) is None
    assert strictly(_EVENT + end) is None
