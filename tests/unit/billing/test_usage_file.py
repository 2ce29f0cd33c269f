"""Usage files: which lines are events, what a bad one is told, and where it stands."""

from __future__ import annotations

import gzip
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from svc_infra.billing.usage_file import UsageLine, read_usage
from svc_infra.exceptions import InvalidUsage

HEADER = "tenant_id,metric,amount,at,idempotency_key"
GOOD = {
    "tenant_id": "t1",
    "metric": "cds",
    "amount": "2.50",
    "at": "2025-01-31T23:30:00-02:00",
    "idempotency_key": "k1",
}


def read(text: str | bytes, name: str = "-") -> list[UsageLine]:
    data = text.encode() if isinstance(text, str) else text
    return list(read_usage(io.BytesIO(data), name))


def csv_line(**changes: str) -> str:
    return ",".join({**GOOD, **changes}.values())


def json_line(**changes: Any) -> str:
    return json.dumps({**GOOD, **changes})


def only(lines: list[UsageLine]) -> UsageLine:
    [line] = lines
    return line


@pytest.mark.parametrize("text", [f"{HEADER}\n{csv_line()}\n", json_line()], ids=["csv", "json lines"])
def test_both_formats_give_the_same_event_and_are_told_apart_by_their_first_character(text: str) -> None:
    event = only(read(text)).event
    assert event is not None
    assert (event.tenant_id, event.metric, event.idempotency_key) == ("t1", "cds", "k1")
    assert event.amount == Decimal("2.5")
    assert event.at == datetime(2025, 2, 1, 1, 30, tzinfo=UTC)
    assert event.metadata_json is None


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\n{csv_line()}",
        f"\ufeff{HEADER}\n{csv_line()}\n",
        f"{HEADER}\r\n{csv_line()}\r\n",
        f"\n  \n{HEADER}\n\n{csv_line()}\n   \n\n",
        f"\ufeff{json_line()}",
        f"\r\n  {json_line()}\r\n\r\n",
    ],
    ids=["no last line end", "byte order mark", "crlf", "blank lines", "json mark", "json crlf and blanks"],
)
@pytest.mark.parametrize("is_gzipped", [False, True])
def test_what_editors_do_to_files_is_read_over(text: str, is_gzipped: bool) -> None:
    data = gzip.compress(text.encode()) if is_gzipped else text.encode()
    assert only(read(data)).event is not None


def test_columns_may_stand_in_any_order_and_metadata_may_be_one_of_them() -> None:
    text = (
        "metadata,idempotency_key,at,amount,metric,tenant_id\n"
        '"{""b"": 1.0, ""a"": 2}",k1,2025-01-01T00:00:00Z,1,cds,t1\n'
        ",k2,2025-01-01T00:00:00Z,1,cds,t1\n"
    )
    first, second = (line.event for line in read(text))
    assert first is not None
    assert second is not None
    assert (first.tenant_id, first.metadata_json) == ("t1", '{"a":2,"b":1}')
    assert second.metadata_json is None


@pytest.mark.parametrize("name", ["a.jsonl", "a.NDJSON", "a.jsonl.gz"])
def test_a_name_that_tells_the_format_is_believed(name: str) -> None:
    assert "not valid JSON" in only(read(HEADER, name)).reason
    assert read("", name) == []


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ("", "-:1: the header is missing"),
        ("\n \n", "-:1: the header is missing"),
        ("tenant_id,metric,amount,at", "-:1: wrong header: column 'idempotency_key' is missing"),
        (f"\n{HEADER},extra", "-:2: wrong header: column 'extra' is unknown"),
        (f"{HEADER},at", "column 'at' is there 2 times"),
        (csv_line(), "column 'tenant_id' is missing"),
    ],
)
def test_a_wrong_header_ends_the_reading(header: str, fault: str) -> None:
    with pytest.raises(InvalidUsage) as raised:
        read(header)
    assert fault in str(raised.value)


BAD_FIELDS = [
    ({"tenant_id": ""}, "tenant_id must have 1 to 255"),
    ({"tenant_id": "t" * 256}, "tenant_id must have 1 to 255"),
    ({"metric": ""}, "metric must have 1 to 200"),
    ({"metric": "m" * 201}, "metric must have 1 to 200"),
    ({"idempotency_key": ""}, "idempotency_key must have 1 to 255"),
    ({"idempotency_key": "k" * 256}, "idempotency_key must have 1 to 255"),
    ({"tenant_id": "a\x00b"}, "NUL"),
    ({"amount": ""}, "is not a number"),
    ({"amount": "NaN"}, "is not a number"),
    ({"amount": "Infinity"}, "is not a number"),
    ({"amount": "1_000"}, "is not a number"),
    ({"amount": " 1"}, "is not a number"),
    ({"amount": "١"}, "is not a number"),
    ({"amount": "1" + "0" * 26}, "too many digits"),
    ({"amount": "0.0000000000001"}, "too many digits"),
    ({"at": "2025-01-01T00:00:00"}, "has no UTC offset"),
    ({"at": "2025-01-01"}, "not an ISO 8601 instant"),
    ({"at": "2025-W01-1T00:00:00Z"}, "not an ISO 8601 instant"),
    ({"at": "2025-01-01x00:00:00Z"}, "not an ISO 8601 instant"),
    ({"at": "2025-01-01T00:00:00.1234567Z"}, "not an ISO 8601 instant"),
    ({"at": "2025-01-01T12:000Z"}, "not an ISO 8601 instant"),
    ({"at": "2025-02-29T00:00:00Z"}, "day is out of range"),
    ({"at": "2025-01-01T00:00:00+25:00"}, "offset must be"),
    ({"at": "0001-01-01T00:00:00Z"}, "in the year 1"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD_FIELDS)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_field_that_cannot_be_recorded_is_named(changes: dict[str, str], reason: str, kind: str) -> None:
    text = f"{HEADER}\n{csv_line(**changes)}" if kind == "csv" else json_line(**changes)
    line = only(read(text, f"a.{kind}"))
    assert line.event is None
    assert reason in line.reason
    assert line.number == (2 if kind == "csv" else 1)


@pytest.mark.parametrize(
    ("amount", "value"),
    [
        ("0", "0"),
        ("9" * 26 + "." + "9" * 12, "9" * 26 + "." + "9" * 12),
        ("000" + "9" * 26, "9" * 26),
        ("1." + "0" * 20, "1"),
        (".5", "0.5"),
    ],
)
def test_the_largest_and_the_oddest_amounts_that_fit_are_exact(amount: str, value: str) -> None:
    event = only(read(json_line(amount=amount))).event
    assert event is not None
    assert event.amount == Decimal(value)


@pytest.mark.parametrize(
    "at",
    [
        "2025-01-31T12:00:00Z",
        "2025-01-31 12:00z",
        "2025-01-31T13:00:00.000000000+01:00",
        "2025-01-31T07:00-0500",
    ],
)
def test_the_ways_to_write_one_instant_are_one_instant(at: str) -> None:
    event = only(read(json_line(at=at))).event
    assert event is not None
    assert event.at == datetime(2025, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("{} {}", "Extra data"),
        ("{}", "key 'tenant_id' is missing"),
        (json_line(amount=1), "amount must be a string"),
        (json_line(amount=1.5), "amount must be a string"),
        (json_line(tenant_id=None), "tenant_id must be a string"),
        (json_line(extra="x"), "unknown key 'extra'"),
        (json_line(metadata=[1]), "metadata is a list"),
        (json_line(metadata="{}"), "metadata is a str"),
        (json_line(metadata={"a": float("nan")}), "NaN is not JSON"),
        (json_line()[:-1] + ',"metric":"other"}', "key 'metric' is there twice"),
        (json_line()[:-1] + ',"metadata":{"a":1,"a":2}}', "key 'a' is there twice"),
        (json_line()[:-1] + ',"metadata":' + "[" * 100_000 + "}", "nested too deeply"),
        (json_line()[:-1] + ',"metadata":{"a":1e999}}', "metadata.a"),
        (json_line(tenant_id="\ud800"), "surrogate"),
    ],
)
def test_a_bad_json_line_says_why(text: str, reason: str) -> None:
    line = only(read(text, "a.jsonl"))
    assert line.event is None
    assert reason in line.reason


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [("{", "metadata is not valid JSON"), ("[]", "not a JSON object"), ('"{""a"":1,""a"":1}"', "twice")],
)
def test_bad_metadata_in_csv_says_why(metadata: str, reason: str) -> None:
    assert reason in only(read(f"{HEADER},metadata\n{csv_line()},{metadata}")).reason


@pytest.mark.parametrize("fields", ["t1,cds,1", csv_line() + ",extra", "t1"])
def test_a_line_with_another_number_of_columns_says_both_numbers(fields: str) -> None:
    line = only(read(f"{HEADER}\n{fields}\n"))
    assert line.reason == f"{fields.count(',') + 1} columns where the header has 5"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_bytes_that_are_not_utf_8_are_refused_and_shown_escaped(kind: str) -> None:
    good = csv_line(idempotency_key="é") if kind == "csv" else json_line(idempotency_key="é")
    bad = (csv_line() if kind == "csv" else json_line()).encode().replace(b"cds", b"c\xffs")
    data = (HEADER.encode() + b"\n" if kind == "csv" else b"") + good.encode() + b"\n" + bad
    first, second = read(data, f"a.{kind}")
    assert first.event is not None
    assert second.event is None
    assert second.reason == "not valid UTF-8: byte 0xff"
    assert r"c\xffs" in second.printable
    second.printable.encode()


def test_line_numbers_are_physical_also_behind_fields_with_line_ends() -> None:
    record = csv_line() + ',"{\n""a"":\n1}"\n'
    lines = read(f"{HEADER},metadata\n{record}\n{csv_line(amount='x')},\n{csv_line(idempotency_key='k2')},\n")
    assert [(line.number, line.event is not None) for line in lines] == [(2, True), (6, False), (7, True)]


def test_an_event_over_several_lines_that_is_bad_is_one_bad_line() -> None:
    bad = csv_line(amount="x") + ',"{\n}"\n'
    lines = read(f"{HEADER},metadata\n{bad}{csv_line()},\n")
    assert [(line.number, line.event is not None) for line in lines] == [(2, False), (4, True)]
    assert lines[0].raw == bad


def test_a_quote_that_is_never_closed_costs_its_own_line_only() -> None:
    others = "\n".join(csv_line(idempotency_key=f"k{i}") for i in range(50))
    lines = read(f'{HEADER}\n"t1{csv_line()}\n{others}\n')
    assert [line.number for line in lines if line.event is None] == [2]
    assert [line.number for line in lines if line.event] == list(range(3, 53))
    assert lines[0].printable == f'"t1{csv_line()}'


def test_a_quote_that_a_later_line_closes_costs_its_own_line_only() -> None:
    quoted = csv_line(tenant_id='"a,b"')
    lines = read(f'{HEADER}\n"t1{csv_line()}\n{csv_line()}\n{quoted}\n{csv_line(idempotency_key="k3")}\n')
    assert [(line.number, line.event is not None) for line in lines] == [
        (2, False),
        (3, True),
        (4, True),
        (5, True),
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_endless_line_is_refused_without_being_kept(kind: str) -> None:
    class Endless(io.RawIOBase):
        def __init__(self) -> None:
            self.blocks = 64
            self.rest = (HEADER + "\n" if kind == "csv" else "").encode()

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            if not self.rest and self.blocks:
                self.blocks -= 1
                self.rest = b"x" * 2**20
            n = min(len(buffer), len(self.rest))
            buffer[:n], self.rest = self.rest[:n], self.rest[n:]
            return n

    line = only(list(read_usage(io.BufferedReader(Endless()), f"a.{kind}")))
    assert line.event is None
    assert len(line.raw) < 8 * 2**20
    assert len(line.printable) == 2**20


def test_metadata_of_the_largest_size_fits_into_a_csv_field() -> None:
    metadata = json.dumps({"a": "x" * 200_000}).replace('"', '""')
    assert only(read(f'{HEADER},metadata\n{csv_line()},"{metadata}"\n')).event is not None


@pytest.mark.parametrize("damage", ["cut off", "changed"])
def test_damaged_gzip_data_ends_the_reading_at_its_line(damage: str) -> None:
    data = bytearray(gzip.compress(f"{HEADER}\n{csv_line()}\n".encode()))
    if damage == "cut off":
        del data[-9:]
    else:
        data[-6] ^= 0xFF
    with pytest.raises(InvalidUsage, match=r"-:\d+: the gzip data is damaged or cut off"):
        read(bytes(data))


def test_gzip_members_after_each_other_are_one_file() -> None:
    data = gzip.compress(f"{HEADER}\n{csv_line()}\n".encode()) + gzip.compress(f"{csv_line()}\n".encode())
    assert [line.number for line in read(data, "a.csv.gz")] == [2, 3]
