"""The commands for jobs, queues and schedules."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from svc_infra.cli import cli
from svc_infra.clock import SystemClock
from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.exceptions import InvalidAct, NotFound
from svc_infra.jobs import Discard, JobRequest, SqlJobQueue
from tests.contract.queue_contract import ended


def run(url: str, *arguments: str) -> str:
    result = CliRunner().invoke(cli, [*arguments, "--database-url", url])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def read_json(url: str, *arguments: str) -> Any:
    return json.loads(run(url, *arguments, "--json"))


@pytest.fixture
def jobs(empty_database_url: str) -> list[str]:
    """Two dead letters and a waiting job, in a database that ``url`` names."""

    async def make() -> list[str]:
        engine = make_engine(empty_database_url)
        await migrate(engine)
        sessions = make_session_factory(engine)
        queue = SqlJobQueue(sessions)
        now = SystemClock().now() - timedelta(days=2)
        async with sessions.begin() as session:
            ids = await queue.enqueue_many(session, [JobRequest("n", {"k": n}, run_at=now) for n in range(2)])
        dead = await queue.claim(2)
        await queue.finish([ended(job, Discard(f"no account {job.payload['k']}"), now=now) for job in dead])
        async with sessions.begin() as session:
            ids += await queue.enqueue_many(session, [JobRequest("[red]", queue="slow")])
        await engine.dispose()
        return ids

    return asyncio.run(make())


@pytest.fixture
def url(jobs: list[str], empty_database_url: str) -> str:
    return empty_database_url


def test_jobs_are_listed_and_shown(url: str, jobs: list[str]) -> None:
    assert [row["id"] for row in read_json(url, "jobs", "list")] == jobs
    assert [row["name"] for row in read_json(url, "jobs", "list", "--state", "available")] == ["[red]"]
    assert jobs[0] in run(url, "jobs", "list", "--error-like", "no account%")
    shown = read_json(url, "jobs", "show", jobs[1])
    assert (shown["payload"], shown["last_error"], shown["acts"]) == ({"k": 1}, "no account 1", [])
    with pytest.raises(NotFound):
        run(url, "jobs", "show", "nothing")


def test_dead_letters_are_retried_requeued_and_purged(url: str, jobs: list[str]) -> None:
    run(url, "jobs", "retry", jobs[0], "--actor", "ann")
    assert read_json(url, "jobs", "show", jobs[0])["state"] == "available"
    assert [act["actor"] for act in read_json(url, "jobs", "show", jobs[0])["acts"]] == ["ann"]
    (group,) = read_json(url, "jobs", "errors")
    assert (group["pattern"], group["jobs"]) == ("no account #", 1)
    assert read_json(url, "jobs", "requeue", "--fingerprint", group["fingerprint"]) == {"jobs": 1}
    run(url, "jobs", "cancel", jobs[1])
    purge = ("jobs", "purge", "--state", "cancelled", "--older-than-days")
    assert read_json(url, *purge, "1") == {"jobs": 0}
    assert read_json(url, *purge, "0") == {"jobs": 1}
    with pytest.raises(InvalidAct):
        run(url, "jobs", "requeue")


def test_queues_are_paused_and_resumed(url: str) -> None:
    run(url, "queues", "pause", "slow")
    (slow,) = read_json(url, "queues", "list")
    assert (slow["name"], slow["available"], slow["paused_at"] is None) == ("slow", 1, False)
    run(url, "queues", "resume", "slow")
    assert read_json(url, "queues", "list")[0]["paused_at"] is None
    assert "slow" in run(url, "queues", "list")


def test_schedules_are_listed_with_their_fires_and_run_by_hand(url: str) -> None:
    (first, *_) = read_json(url, "schedules", "list")
    assert first["paused_at"] is None
    fires = read_json(url, "schedules", "next", first["name"], "-n", "3")
    assert fires == sorted(set(fires))
    assert len(fires) == 3
    job_id = read_json(url, "schedules", "run", first["name"])["job_id"]
    assert read_json(url, "jobs", "show", job_id)["name"] == first["job"]
    for act in ("next", "run"):
        with pytest.raises(NotFound):
            run(url, "schedules", act, "nothing")
    with pytest.raises(NotFound, match="no scheduler has started"):
        run(url, "schedules", "pause", first["name"])
    assert first["name"] in run(url, "schedules", "list")
