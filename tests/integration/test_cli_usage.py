"""``worker.py usage import``: what it prints, what it exits with, and what is in the database afterwards."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.billing.models import UsageEvent
from svc_infra.billing.usage_file import UsageLine, read_usage
from svc_infra.billing.usage_import import UsageImport
from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidUsage

ROOT = Path(__file__).resolve().parents[2]
HEADER = "tenant_id,metric,amount,at,idempotency_key\n"

Factory = async_sessionmaker[AsyncSession]


def worker(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(ROOT / "worker.py"), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)


def row(key: str, amount: str = "1", tenant: str = "t1") -> str:
    return f"{tenant},cds,{amount},2025-01-31T12:00:00Z,{key}\n"


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema as ``worker.py migrate`` makes it, to be copied."""
    file = tmp_path_factory.mktemp("migrated") / "template.sqlite"
    assert worker("migrate", "--database-url", f"sqlite:///{file}").returncode == 0
    return file


@pytest.fixture
def url(migrated: Path, tmp_path: Path) -> str:
    shutil.copyfile(migrated, tmp_path / "test.sqlite")
    return f"sqlite:///{tmp_path / 'test.sqlite'}"


def recorded(url: str) -> list[tuple[str, str]]:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        return database.execute(
            "SELECT idempotency_key, amount FROM usage_events ORDER BY idempotency_key"
        ).fetchall()


def test_an_import_can_be_run_again_and_prints_its_counts(url: str, tmp_path: Path) -> None:
    file = tmp_path / "usage.csv.gz"
    file.write_bytes(gzip.compress((HEADER + row("a") + row("b", "2.50") + row("a")).encode()))
    first = worker("usage", "import", str(file), "--json", "--database-url", url)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout) == {"read": 3, "inserted": 2, "duplicate": 1, "rejected": 0}
    second = worker("usage", "import", str(file), "--database-url", url)
    assert second.stdout == b"3 read: 0 inserted, 3 duplicate, 0 rejected.\n"
    assert recorded(url) == [("a", "1"), ("b", "2.5")]


def test_standard_input_is_read_in_both_formats(url: str) -> None:
    line = {
        "tenant_id": "t1",
        "metric": "cds",
        "amount": "3",
        "at": "2025-01-31T12:00:00Z",
        "idempotency_key": "j",
    }
    for data in ((HEADER + row("a")).encode(), gzip.compress(json.dumps(line).encode())):
        done = worker("usage", "import", "-", "--json", "--database-url", url, stdin=data)
        assert json.loads(done.stdout)["inserted"] == 1, done.stderr
    assert recorded(url) == [("a", "1"), ("j", "3")]


def test_a_bad_line_ends_the_import_with_its_place_and_exit_1(url: str, tmp_path: Path) -> None:
    file = tmp_path / "usage.csv"
    file.write_text(HEADER + row("a") + row("b", "-1"))
    done = worker("usage", "import", str(file), "--database-url", url)
    assert done.returncode == 1
    assert f"Error: {file}:3: amount is -1; a quantity of 'cds' cannot be negative" in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert recorded(url) == []


def test_bad_lines_can_be_set_aside(url: str, tmp_path: Path) -> None:
    file, rejects = tmp_path / "usage.csv", tmp_path / "bad.jsonl"
    lines = [HEADER.encode(), row("a").encode(), b"t\xff1,cds,1,2025-01-31T12:00:00Z,b\n"]
    lines += [row("a", "2").encode(), b"t1,cds\n", row("c").encode()]
    file.write_bytes(b"".join(lines))
    done = worker("usage", "import", str(file), "--skip-bad", str(rejects), "--json", "--database-url", url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"read": 5, "inserted": 2, "duplicate": 0, "rejected": 3}
    written = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(reject["file"], reject["line"]) for reject in written] == [(str(file), n) for n in (3, 4, 5)]
    assert written[0]["raw"] == r"t\xff1,cds,1,2025-01-31T12:00:00Z,b"
    assert "used before with another payload" in written[1]["reason"]
    assert written[2] == {
        "file": str(file),
        "line": 5,
        "reason": "2 columns where the header has 5",
        "raw": "t1,cds",
    }
    assert recorded(url) == [("a", "1"), ("c", "1")]


@pytest.mark.parametrize(
    "arguments",
    [["nowhere.csv"], [], ["usage.csv", "--no-such-option"], ["usage.csv", "--skip-bad", "usage.csv"]],
    ids=["missing file", "no file", "unknown option", "rejects over the input"],
)
def test_wrong_usage_exits_with_2(url: str, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "usage.csv").write_text(HEADER + row("a"))
    placed = [str(tmp_path / part) if part.endswith(".csv") else part for part in arguments]
    done = worker("usage", "import", *placed, "--database-url", url)
    assert done.returncode == 2, done.stderr
    assert (tmp_path / "usage.csv").read_text() == HEADER + row("a")


def test_a_database_without_the_schema_exits_with_1_and_names_the_command(tmp_path: Path) -> None:
    file = tmp_path / "usage.csv"
    file.write_text(HEADER)
    done = worker("usage", "import", str(file), "--database-url", f"sqlite:///{tmp_path / 'empty.sqlite'}")
    assert done.returncode == 1
    assert b"run 'worker.py migrate'" in done.stderr


@pytest.mark.postgres_only
def test_it_imports_into_postgres(empty_database_url: str) -> None:
    assert worker("migrate", "--database-url", empty_database_url).returncode == 0
    data = (HEADER + row("a") + row("b")).encode()
    arguments = ("usage", "import", "-", "--json", "--database-url", empty_database_url)
    done = worker(*arguments, stdin=data)
    assert json.loads(done.stdout)["inserted"] == 2, done.stderr
    conflict = worker(*arguments, stdin=(HEADER + row("c") + row("a", "5")).encode())
    assert conflict.returncode == 1
    assert b"-:3: the idempotency key was used before with another payload" in conflict.stderr


def make_import(
    factory: Factory, text: str, *, on_rejected: Callable[[UsageLine], None] | None = None
) -> UsageImport:
    return UsageImport(
        factory,
        read_usage(io.BytesIO((HEADER + text).encode()), "u.csv"),
        name="u.csv",
        clock=FixedClock(datetime(2025, 2, 1, tzinfo=UTC)),
        on_rejected=on_rejected,
        chunk_lines=2,
    )


async def keys(factory: Factory) -> set[str]:
    async with factory() as session:
        return set(await session.scalars(select(UsageEvent.idempotency_key)))


async def test_chunks_before_a_bad_line_stay_and_its_own_is_not_written(session_factory: Factory) -> None:
    stopped = make_import(session_factory, row("a") + row("b") + row("c") + row("d", "x") + row("e"))
    with pytest.raises(InvalidUsage, match=r"^u\.csv:5: amount 'x' is not a number"):
        await stopped.run()
    assert await keys(session_factory) == {"a", "b"}
    assert (stopped.counts.read, stopped.counts.inserted) == (2, 2)


@pytest.mark.parametrize(
    ("text", "line", "kept"),
    [
        (row("a") + row("a", "2"), 3, set()),
        (row("a") + row("b") + row("c") + row("a", "2"), 5, {"a", "b"}),
        (row("a") + row("b") + row("c") + row("b", "2") + row("d", "x"), 5, {"a", "b"}),
    ],
    ids=["in one chunk", "in another chunk", "before a bad line of the next chunk"],
)
async def test_a_key_with_another_payload_is_blamed_on_the_line_that_repeats_it(
    session_factory: Factory, text: str, line: int, kept: set[str]
) -> None:
    with pytest.raises(InvalidUsage, match=rf"^u\.csv:{line}: the idempotency key was used before"):
        await make_import(session_factory, text).run()
    assert await keys(session_factory) == kept


async def test_an_equal_number_instant_and_metadata_is_the_same_payload(session_factory: Factory) -> None:
    same = row("a", "1.50") + "t1,cds,1.5,2025-01-31T13:00:00+01:00,a\n"
    counts = await make_import(session_factory, same).run()
    assert (counts.inserted, counts.duplicate) == (1, 1)


async def test_set_aside_lines_come_in_the_order_of_the_file(session_factory: Factory) -> None:
    rejected: list[UsageLine] = []
    text = row("a") + row("a", "2") + row("b", "x") + row("c") + row("a", "3") + row("d")
    counts = await make_import(session_factory, text, on_rejected=rejected.append).run()
    assert [line.number for line in rejected] == [3, 4, 6]
    assert (counts.read, counts.inserted, counts.duplicate, counts.rejected) == (6, 3, 0, 3)
    assert await keys(session_factory) == {"a", "c", "d"}


async def test_what_is_counted_is_what_is_in_the_table(session_factory: Factory) -> None:
    text = "".join(row(f"k{n % 7}", tenant=f"t{n % 3}") for n in range(100))
    counts = await make_import(session_factory, text).run()
    async with session_factory() as session:
        stored = await session.scalar(select(func.count()).select_from(UsageEvent))
    assert (counts.read, counts.inserted, counts.duplicate) == (100, stored, 100 - (stored or 0))
    assert stored == 21
