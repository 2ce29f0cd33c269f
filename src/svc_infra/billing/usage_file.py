"""Usage files: CSV or JSON lines, plain or gzipped, read as a stream; each fault has its line number.

CSV has the header ``tenant_id,metric,amount,at,idempotency_key`` (in any order, ``metadata`` as JSON if
wanted); JSON lines have objects with the same keys. ``amount`` is a decimal string in both, because a JSON
number would be a binary float. Blank lines, a byte order mark and CRLF are read over.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from operator import itemgetter
from typing import Any, BinaryIO, NamedTuple, NoReturn

from svc_infra.billing.usage_event import NewUsage, quantity
from svc_infra.billing.usage_lines import MAX_LINE_LENGTH, LineSource
from svc_infra.exceptions import InvalidUsage

COLUMNS = ("tenant_id", "metric", "amount", "at", "idempotency_key")
ALL_COLUMNS = (*COLUMNS, "metadata")
_REQUIRED, _KNOWN = frozenset(COLUMNS), frozenset(ALL_COLUMNS)
_pick = itemgetter(*COLUMNS)

_ENDING = re.compile(r"\.(csv|jsonl|ndjson)(?:\.gz)?$", re.IGNORECASE)
# ``fromisoformat`` also takes dates without a time, week dates and any separator, and it cuts off what is
# finer than a microsecond.
_INSTANT = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d(?::\d\d(?:\.\d{1,6}0*)?)?)(Z|z|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)
_NOT_UTF_8 = re.compile("[\udc80-\udcff]")


class UsageLine(NamedTuple):
    """One record of a file: an event, or the ``reason`` why it is none.

    ``number`` is that of its first physical line, counted from 1. In ``raw`` bytes that are not UTF-8 are
    lone surrogates; ``printable`` shows them.
    """

    number: int
    raw: str
    event: NewUsage | None
    reason: str = ""

    @property
    def printable(self) -> str:
        r"""The text as it was read, with bytes that are not UTF-8 written as ``\xNN``."""
        text = self.raw[:MAX_LINE_LENGTH].rstrip("\r\n")
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_usage(stream: BinaryIO, name: str = "-") -> Iterator[UsageLine]:
    """Read a usage file; a bad line comes out with its reason and does not end the reading.

    ``name`` is what errors call the file. Its ending tells the format (``.csv``, ``.jsonl``, ``.ndjson``,
    each also with ``.gz``); under any other name the first character does: ``{`` means JSON lines. Whether
    it is gzipped shows in its first bytes.

    Raises:
        InvalidUsage: it cannot be read at all: the CSV header is wrong, or gzip data is damaged.
    """
    source = LineSource(stream, name)
    ending = _ENDING.search(name)
    is_csv = ending.group(1).lower() == "csv" if ending else source.first_character() != "{"
    return _read_csv(source) if is_csv else _read_json_lines(source)


def _read_json_lines(source: LineSource) -> Iterator[UsageLine]:
    for raw in source:
        source.taken.clear()
        if not raw.isspace():
            yield _judged(source.number, raw, _json_event, raw)


def _read_csv(source: LineSource) -> Iterator[UsageLine]:
    # The default would refuse metadata that may be recorded. The limit is the process's; only ever raise it.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_LENGTH))
    rows = csv.reader(source, strict=True)
    columns = _read_header(source)
    pick = itemgetter(*(columns.index(name) for name in ALL_COLUMNS if name in columns))
    width = len(columns)
    while True:
        source.taken.clear()
        first = source.number + 1
        try:
            fields = next(rows, None)
            reason = ""
        except csv.Error as error:
            fields, reason = [], f"not valid CSV: {error}"
        if fields is None:
            return
        raw = "".join(source.taken)
        if raw.isspace():
            continue
        if len(fields) == width:
            yield _judged(first, raw, _csv_event, pick(fields))
            continue
        # A stray quote swallows the lines behind it: only the first is to blame, so read on at the second.
        source.give_back_all_but_first()
        reason = reason or f"{len(fields)} columns where the header has {width}"
        yield UsageLine(first, source.taken[0], None, _reason(reason, source.taken[0]))


def _read_header(source: LineSource) -> list[str]:
    for raw in source:
        if not raw.isspace():
            break
    else:
        raise InvalidUsage(f"{source.name}:1: the header is missing; begin the file with {','.join(COLUMNS)}")
    try:
        columns = next(csv.reader([raw], strict=True))
        faults = _header_faults(columns)
    except csv.Error as error:
        faults = [f"not valid CSV: {error}"]
    if faults:
        raise InvalidUsage(f"{source.name}:{source.number}: wrong header: {'; '.join(faults)}")
    return columns


def _header_faults(columns: list[str]) -> list[str]:
    faults = [f"column {name!r} is missing" for name in COLUMNS if name not in columns]
    faults += [f"column {name!r:.60} is unknown" for name in columns if name not in ALL_COLUMNS]
    faults += [f"column {name!r} is there {n} times" for name, n in Counter(columns).items() if n > 1]
    return faults[:6]


def _judged(number: int, raw: str, read: Callable[[Any], NewUsage], fields: Any) -> UsageLine:
    """Make the line's event, or say why there is none."""
    try:
        if len(raw) > MAX_LINE_LENGTH:
            raise InvalidUsage(f"longer than {MAX_LINE_LENGTH:,} characters")
        return UsageLine(number, raw, read(fields))
    except InvalidUsage as error:
        return UsageLine(number, raw, None, _reason(str(error), raw))


def _reason(reason: str, raw: str) -> str:
    if found := _NOT_UTF_8.search(raw):
        return f"not valid UTF-8: byte 0x{ord(found.group()) - 0xDC00:02x}"
    return reason


def _csv_event(fields: tuple[str, ...]) -> NewUsage:
    tenant_id, metric, amount, at, key, *rest = fields
    metadata = _metadata(rest[0]) if rest and rest[0] else None
    return NewUsage(tenant_id, metric, _amount(amount), _instant(at), key, metadata)


def _json_event(raw: str) -> NewUsage:
    values = _parsed(raw, "the line")
    if not isinstance(values, dict):
        raise InvalidUsage("not a JSON object")
    if values.keys() != _REQUIRED:
        _check_keys(values)
    tenant_id, metric, amount, at, key = fields = _pick(values)
    for name, value in zip(COLUMNS, fields, strict=True):
        if not isinstance(value, str):
            raise InvalidUsage(f'{name} must be a string in quotes, as in "{name}": "…"')
    return NewUsage(tenant_id, metric, _amount(amount), _instant(at), key, values.get("metadata"))


def _check_keys(values: dict[str, Any]) -> None:
    for name in values:
        if name not in _KNOWN:
            raise InvalidUsage(f"unknown key {name!r:.60}; the keys are {', '.join(ALL_COLUMNS)}")
    for name in COLUMNS:
        if name not in values:
            raise InvalidUsage(f"key {name!r} is missing")


# Most of a file's amounts and many of its instants come again and again.
@lru_cache(maxsize=8192)
def _amount(text: str) -> Decimal:
    return quantity(text)


@lru_cache(maxsize=8192)
def _instant(text: str) -> datetime:
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise InvalidUsage(f"at {text!r:.60} is not an ISO 8601 instant like '2025-01-31T12:00:00Z'")
    day, time, offset = match.groups()
    if offset is None:
        raise InvalidUsage(f"at {text!r:.60} has no UTC offset; end it with Z or, for example, +01:00")
    try:
        return datetime.fromisoformat(f"{day}T{time}{offset.upper()}")
    except ValueError as error:
        raise InvalidUsage(f"at {text!r:.60}: {error}") from None


def _metadata(text: str) -> dict[str, Any]:
    metadata = _parsed(text, "metadata")
    if not isinstance(metadata, dict):
        raise InvalidUsage("metadata is not a JSON object")
    return metadata


def _parsed(text: str, name: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidUsage(f"{name} is not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise InvalidUsage(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise InvalidUsage(f"{name} is not valid JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise InvalidUsage(f"key {twice!r:.60} is there twice")
    return values


def _refuse(constant: str) -> NoReturn:
    raise InvalidUsage(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
