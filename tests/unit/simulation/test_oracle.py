from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest

from svc_infra.simulation import oracle
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


def test_the_oracle_shares_no_code_with_the_product() -> None:
    tree = ast.parse(Path(oracle.__file__).read_text(encoding="utf-8"))
    imported = {
        module.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."]
        )
    }
    assert imported <= {
        "__future__", "collections", "csv", "datetime", "fractions", "gzip", "io", "json", "pathlib",
        "tomllib", "typing",
    }  # fmt: skip
