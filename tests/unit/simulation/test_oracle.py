from __future__ import annotations

import ast
import gzip
import io
import json
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest

from svc_infra.billing.usage_file import read_usage
from svc_infra.simulation import (
    audit_fee_lines,
    audit_fees,
    audit_lines,
    audit_oracle,
    audit_records,
    audit_usage,
    oracle,
    oracle_prices,
)
from svc_infra.simulation.oracle import ExpectedInvoice, ExpectedLine, Oracle

CATALOG = """\
[[plans]]
key = "standard"
default = true
[[plans]]
key = "other"
[[prices]]
key = "base"
plan = "standard"
currency = "usd"
unit_amount = "500"
recurring_interval = "month"
[[prices]]
key = "cds"
plan = "standard"
currency = "usd"
metric = "cds"
model = "graduated"
tiers = [ { up_to = "3", unit_amount = "0" }, { up_to = "20", unit_amount = "12.5" }, \
{ unit_amount = "9", flat_amount = "100" } ]
[[prices]]
key = "calls"
currency = "usd"
metric = "calls"
unit_amount = "0.5"
[[prices]]
key = "seats"
plan = "other"
currency = "usd"
metric = "seats"
unit_amount = "7"
"""

HEADER = "tenant_id,metric,amount,at,idempotency_key"
BASE = ExpectedLine("base", Fraction(1), 500)


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.toml"
    path.write_text(CATALOG)
    return path


def read(catalog_path: Path, lines: Sequence[str], header: str = HEADER) -> Oracle:
    usage_path = catalog_path.with_name("usage.csv")
    usage_path.write_text("\n".join([header, *lines]) + "\n")
    return Oracle(usage_path, catalog_path)


def test_a_tenant_is_billed_each_month_from_its_first_event_to_the_files_last(catalog_path: Path) -> None:
    oracle = read(
        catalog_path,
        [
            "a,cds,4,2024-11-30T12:00:00Z,1",
            "b,cds,1,2025-01-01T00:00:00Z,1",
        ],
    )
    assert [invoice.month for invoice in oracle.expected_invoices("a")] == ["2024-11", "2024-12", "2025-01"]
    assert oracle.expected_invoices("a")[0] == ExpectedInvoice(
        "2024-11", (BASE, ExpectedLine("cds", Fraction(4), 13)), 513
    )
    # Without usage there is only the base fee; usage within the free tier is a line of zero.
    assert oracle.expected_invoices("a")[1] == ExpectedInvoice("2024-12", (BASE,), 500)
    assert oracle.expected_invoices("b") == [
        ExpectedInvoice("2025-01", (BASE, ExpectedLine("cds", Fraction(1), 0)), 500)
    ]
    assert list(oracle.all_invoices()) == [(name, oracle.expected_invoices(name)) for name in ("a", "b")]
    assert oracle.expected_invoices("nobody") == []


def test_events_of_a_month_are_added_up_before_they_are_priced(catalog_path: Path) -> None:
    oracle = read(
        catalog_path,
        [
            "a,calls,0.5,2025-01-01T12:00:00Z,1",
            "a,calls,0.5,2025-01-31T23:59:59.999999Z,2",
            "a,calls,10,2025-02-01T00:30:00+01:00,3",
            "a,cds,21,2025-01-05T12:00:00Z,1",
        ],
    )
    assert oracle.expected_invoices("a") == [
        ExpectedInvoice(
            "2025-01",
            (BASE, ExpectedLine("calls", Fraction(11), 6), ExpectedLine("cds", Fraction(21), 322)),
            828,
        )
    ]
    assert (oracle.usage_events, oracle.aggregates) == (4, 3)


def test_a_repeated_line_counts_once(catalog_path: Path) -> None:
    oracle = read(
        catalog_path,
        [
            "a,calls,2,2025-01-01T12:00:00Z,1",
            "a,calls,2.0,2025-01-01T13:00:00+01:00,1",
            "a,cds,2,2025-01-01T12:00:00Z,1",
            "b,calls,2,2025-01-01T12:00:00Z,1",
        ],
    )
    assert (oracle.usage_events, oracle.duplicates, oracle.tenants) == (3, 1, ["a", "b"])
    assert ExpectedLine("calls", Fraction(2), 1) in oracle.expected_invoices("a")[0].lines


def test_one_key_for_two_different_events_is_an_error(catalog_path: Path) -> None:
    with pytest.raises(ValueError, match="two different events"):
        read(catalog_path, ["a,calls,2,2025-01-01T12:00:00Z,1", "a,calls,3,2025-01-01T12:00:00Z,1"])


def test_metadata_is_compared_as_json(catalog_path: Path) -> None:
    header = HEADER + ",metadata"
    oracle = read(
        catalog_path,
        [
            'a,calls,2,2025-01-01T12:00:00Z,1,"{""x"": 1, ""y"": 2}"',
            'a,calls,2,2025-01-01T12:00:00Z,1,"{""y"":2,""x"":1}"',
            "a,calls,2,2025-01-01T12:00:00Z,2,",
        ],
        header,
    )
    assert (oracle.usage_events, oracle.duplicates) == (2, 1)


def test_a_metric_without_a_price_has_no_line_and_is_named(catalog_path: Path) -> None:
    oracle = read(
        catalog_path,
        [
            "a,seats,2,2025-01-01T12:00:00Z,1",
            "a,disk,2,2025-01-01T12:00:00Z,1",
            "a,calls,2,2025-01-01T12:00:00Z,1",
        ],
    )
    # Another plan has a price for seats; the default plan has none.
    assert oracle.unpriced_metrics == ["disk", "seats"]
    assert [line.price_key for line in oracle.expected_invoices("a")[0].lines] == ["base", "calls"]


def test_usage_that_adds_up_to_zero_has_no_line(catalog_path: Path) -> None:
    oracle = read(catalog_path, ["a,calls,0,2025-01-01T12:00:00Z,1"])
    assert oracle.expected_invoices("a") == [ExpectedInvoice("2025-01", (BASE,), 500)]


def test_a_catalog_without_plans_bills_every_tenant(catalog_path: Path) -> None:
    catalog_path.write_text(
        CATALOG[CATALOG.index('[[prices]]\nkey = "calls"') : CATALOG.index('key = "seats"')]
    )
    catalog_path.write_text(catalog_path.read_text().removesuffix("[[prices]]\n"))
    oracle = read(catalog_path, ["a,calls,3,2025-01-01T12:00:00Z,1"])
    assert oracle.expected_invoices("a") == [
        ExpectedInvoice("2025-01", (ExpectedLine("calls", Fraction(3), 2),), 2)
    ]


def test_an_empty_file_has_no_tenants(catalog_path: Path) -> None:
    assert read(catalog_path, []).tenants == []
    catalog_path.with_name("usage.csv").write_text("")
    assert Oracle(catalog_path.with_name("usage.csv"), catalog_path).tenants == []


@pytest.mark.parametrize("name", ["usage.csv", "usage.csv.gz", "usage.jsonl", "usage.jsonl.gz"])
def test_every_format_of_one_history_gives_the_same_invoices(catalog_path: Path, name: str) -> None:
    rows = [
        ("a", "cds", "4", "2025-01-30T12:00:00Z", "1"),
        ('"b', "calls", "1.5", "2025-02-01T00:00:00Z", "2"),
    ]
    columns = HEADER.split(",")
    if ".csv" in name:
        text = HEADER + "\r\n" + "".join(",".join(json.dumps(cell) for cell in row) + "\r\n" for row in rows)
        text = text.replace('\\"', '""')
    else:
        text = "\n" + "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
    path = catalog_path.with_name(name)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    oracle = Oracle(path, catalog_path)
    assert oracle.tenants == ["a", '"b']
    assert [invoice.total_minor for invoice in oracle.expected_invoices("a")] == [513, 500]
    assert [invoice.total_minor for invoice in oracle.expected_invoices('"b')] == [501]


def json_line(key: str = "1", metadata: str = "null", at: str = "2025-01-31T12:00:00Z") -> str:
    return (
        f'{{"tenant_id":"a","metric":"calls","amount":"1","at":"{at}","idempotency_key":"{key}",'
        f'"metadata":{metadata}}}\n'
    )


CSV = HEADER + ",metadata\n"
ROW = "a,calls,2,2025-01-31T12:00:00Z,1,\n"
AT = [
    *("2025-01-31T12:00:00z", "2025-01-31t12:00Z", "2025-01-31 12:00+00", "2025-01-31T13:00:00.5+0100"),
    *("2025-01-31T23:30:00.123456000-01:00", "2025-02-01T00:30:00.1+01:00", "2025-01-31T23:59:59-00:01"),
]
ODD_FILES = [
    pytest.param("u.csv", CSV + ROW + "   \n\t\n\n \r\n" + ROW.replace(",1,", ",2,"), id="blank lines"),
    pytest.param("u.csv", " \n\n" + CSV + ROW, id="blank lines before the header"),
    pytest.param("u.csv", "\ufeff" + (CSV + ROW).replace("\n", "\r\n"), id="byte order mark and CRLF"),
    pytest.param("u.csv", (CSV + ROW).rstrip("\n"), id="no line feed at the end"),
    pytest.param("u.csv", CSV + '"a\n  \nb""c",calls,2,2025-01-31T12:00:00Z,"x\r\ny, z",\n', id="quotes"),
    pytest.param("u.csv", CSV + 'a"b,calls,2,2025-01-31T12:00:00Z, 1 ,\n', id="a quote within a field"),
    pytest.param("u.csv", CSV + "".join(f"a,calls,1,{at},{n},\n" for n, at in enumerate(AT)), id="instants"),
    pytest.param(
        "u.csv",
        CSV + "".join(
            f"a,calls,{amount},2025-01-31T12:00:00Z,{n},\n"
            for n, amount in enumerate(["1e0", "+1", ".5", "7.", "1E+1", "25e-1", "-0", "0e9999", "0" * 5000])
        ),
        id="amounts",
    ),
    pytest.param(
        "u.csv",
        CSV + "".join(ROW.replace(",\n", f",{cell}\n") for cell in ("", "{}", '"{ }"')),
        id="empty metadata is none",
    ),
    pytest.param("u.csv", CSV + ROW.replace(",\n", ',"{""x"": ""' + "y" * 200_000 + '""}"\n'), id="long"),
    pytest.param(
        "u.csv",
        "metadata,at,amount,idempotency_key,metric,tenant_id\n,2025-01-31T12:00:00Z,2,1,calls,a\n",
        id="columns in another order",
    ),
    pytest.param("u.jsonl", "   " + json_line() + json_line("2"), id="JSON lines that begin with a blank"),
    pytest.param("u.ndjson", "\n   \n\t" + json_line() + "  \r\n" + json_line("2"), id="blank JSON lines"),
    pytest.param("u.jsonl", "\ufeff" + json_line().replace(",", "\r,"), id="JSON with mark and returns"),
    pytest.param("u.jsonl", "".join(json_line(at=at, key=at) for at in AT), id="instants in JSON"),
    pytest.param(
        "u.jsonl",
        "".join(json_line(metadata=text) for text in ('{"v":1}', '{"v":1.0}', '{"v": 1e0}', '{"v":10E-1}'))
        + "".join(json_line("2", text) for text in ('{"v":[1e23,-0.0]}', '{"v":[1' + "0" * 23 + ",0]}"))
        + "".join(json_line("3", text) for text in ('{"v":0.10,"w":{}}', '{"w":{},"v":0.1}'))
        + json_line("4", "{}") + json_line("4", "null"),
        id="metadata by value",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), ODD_FILES)
def test_an_odd_file_is_read_as_the_importer_reads_it(catalog_path: Path, name: str, text: str) -> None:
    data = text.encode()
    lines = list(read_usage(io.BytesIO(data), name))
    assert [line.reason for line in lines if line.event is None] == []
    events = [line.event for line in lines if line.event is not None]
    first = {event.identity: event for event in reversed(events)}
    assert all(event.payload == first[event.identity].payload for event in events)
    path = catalog_path.with_name(name)
    path.write_bytes(data)
    oracle = Oracle(path, catalog_path)
    assert oracle.usage_events == len(first) > 0
    assert oracle.duplicates == len(events) - len(first)
    assert oracle.aggregates == len({(e.tenant_id, e.metric, e.at.date()) for e in first.values()})
    quantities: dict[tuple[str, str], Fraction] = {}
    for event in first.values():
        month = (event.tenant_id, f"{event.at:%Y-%m}")
        quantities[month] = quantities.get(month, Fraction(0)) + Fraction(event.amount)
    assert {
        (tenant_id, invoice.month): line.quantity
        for tenant_id, invoices in oracle.all_invoices()
        for invoice in invoices
        for line in invoice.lines
        if line.price_key == "calls"
    } == quantities


@pytest.mark.parametrize("other", ['{"v":true}', '{"v":"1"}', '{"v":1.5}', '{"v":[1]}', "{}", '{"w":1}'])
def test_other_metadata_is_another_event(catalog_path: Path, other: str) -> None:
    path = catalog_path.with_name("usage.jsonl")
    path.write_text(json_line(metadata='{"v":1}') + json_line(metadata=other))
    with pytest.raises(ValueError, match="two different events"):
        Oracle(path, catalog_path)


RECOMPUTATION = (
    *(oracle, oracle_prices),
    *(audit_fee_lines, audit_fees, audit_lines, audit_oracle, audit_records, audit_usage),
)


@pytest.mark.parametrize("module", RECOMPUTATION)
def test_the_oracle_shares_no_code_with_the_product(module: ModuleType) -> None:
    own = {each.__name__ for each in RECOMPUTATION}
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]
        )
    }
    assert {name for name in imported - own if name.partition(".")[0] not in sys.stdlib_module_names} == set()
