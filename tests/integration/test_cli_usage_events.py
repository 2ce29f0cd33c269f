"""``usage trace``, ``void``, ``amend``, ``rejected`` and ``meters`` as an operator uses them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from svc_infra.cli import cli
from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine
from svc_infra.exceptions import InvalidMeter, InvalidUsage, NotFound

METER = ("usage", "meters", "set")
HEADER = "tenant_id,metric,amount,at,idempotency_key,metadata\n"


def run(url: str, *arguments: str) -> Result:
    """Run one command; an error of ours passes through, as ``main`` would get it."""
    result = CliRunner().invoke(cli, [*arguments, "--database-url", url])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def read(url: str, *arguments: str) -> Any:
    return json.loads(run(url, *arguments, "--json").stdout)


@pytest.fixture
def url(tmp_path: Path) -> str:
    async def bring_up() -> str:
        engine = make_engine(f"sqlite:///{tmp_path / 'cli.sqlite'}")
        await migrate(engine)
        await engine.dispose()
        return str(engine.url)

    return asyncio.run(bring_up())


def test_an_operator_sets_meters_and_corrects_single_events(url: str, tmp_path: Path) -> None:
    run(url, *METER, "users", "unique_count", "--unique-key", "user", "--dimension", "model")
    run(url, *METER, "bytes", "sum", "--divide-by", "1000", "--round", "ceil")
    assert [(row["metric"], row["meter"]) for row in read(url, "usage", "meters", "list")] == [
        ("bytes", "sum"),
        ("users", "unique_count"),
    ]
    file, rejects = tmp_path / "usage.csv", tmp_path / "bad.jsonl"
    rows = [
        't1,users,1,2025-01-31T12:00:00Z,a,"{""user"": ""ann""}"',
        "t1,bytes,1500,2025-01-31T12:00:00Z,b,",
    ]
    rows += ["t1,bytes,1,2999-01-01T00:00:00Z,c,", "t1,bytes,-1,2025-01-31T12:00:00Z,d,"]
    file.write_text(HEADER + "\n".join(rows) + "\n")
    counts = read(url, "usage", "import", str(file), "--skip-bad", str(rejects))
    assert (counts["inserted"], counts["rejected"]) == (2, 2)
    refused = read(url, "usage", "rejected", "--tenant", "t1")
    assert [row["idempotency_key"] for row in refused] == ["c", "d"]
    assert [json.loads(line)["reason"] for line in rejects.read_text().splitlines()] == [
        row["reason"] for row in refused
    ]
    with pytest.raises(InvalidMeter, match="fixed"):
        run(url, *METER, "bytes", "count")

    [event_id] = recorded_ids(url, "b")
    new = run(
        url, "usage", "amend", event_id, "--amount", "1400", "--reason", "typo", "--actor", "ann"
    ).stdout
    assert "amended" in run(url, "usage", "trace", event_id).stdout
    traced = read(url, "usage", "trace", new.strip())
    assert (traced["state"], traced["amount"], traced["lines"]) == ("waiting", "1400", [])
    run(url, "usage", "void", new.strip(), "--reason", "test data", "--actor", "ann")
    assert read(url, "usage", "trace", new.strip())["correction"]["reason"] == "test data"
    with pytest.raises(NotFound):
        run(url, "usage", "trace", "none")
    assert read(url, "usage", "archive", "--older-than", "62") == {"days": 0, "events": 0}
    assert CliRunner().invoke(cli, ["usage", "archive", "--database-url", url]).exit_code == 2
    with pytest.raises(InvalidUsage, match="changes nothing"):
        run(url, "usage", "amend", recorded_ids(url, "a")[0], "--amount", "1", "--reason", "r")


def recorded_ids(url: str, key: str) -> list[str]:
    from sqlalchemy import create_engine, text

    engine = create_engine(url.replace("+aiosqlite", ""))
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT id FROM usage_events WHERE idempotency_key = :key"), {"key": key}
        )
        ids = [row.id for row in found]
    engine.dispose()
    return ids
