"""The commands for jobs, queues and schedules."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from svc_infra.cli import cli
from svc_infra.clock import FixedClock, SystemClock
from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.exceptions import InvalidAct, NotFound
from svc_infra.jobs import Discard, JobRequest, SqlJobQueue
from svc_infra.jobs.overview import overview
from tests.contract.queue_contract import NOW, Sessions, ended


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
    assert read_json(url, "jobs", "cancel", jobs[1]) == {"id": jobs[1], "done": "cancelled"}
    purge = ("jobs", "purge", "--state", "cancelled", "--older-than-days")
    assert read_json(url, *purge, "1") == {"jobs": 0}
    assert read_json(url, *purge, "0") == {"jobs": 1}
    with pytest.raises(InvalidAct):
        run(url, "jobs", "requeue")


def test_queues_are_paused_and_resumed(url: str) -> None:
    run(url, "queues", "pause", "slow")
    (slow,) = read_json(url, "queues", "list")
    assert (slow["name"], slow["available"], slow["paused_at"] is None) == ("slow", 1, False)
    assert read_json(url, "queues", "resume", "slow") == {"queue": "slow", "done": "resumed"}
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


def test_a_schedule_is_added_by_hand_listed_run_and_removed(url: str) -> None:
    add = ("schedules", "add", "nightly", "--job", "n", "--cron", "0 3 * * *", "--payload", '{"k": 1}')
    assert read_json(url, *add) == {"schedule": "nightly", "done": "added"}
    listed = {row["name"]: row for row in read_json(url, "schedules", "list")}
    assert (listed["nightly"]["cron"], listed["nightly"]["job"]) == ("0 3 * * *", "n")
    assert read_json(url, "schedules", "next", "nightly", "-n", "1") == [listed["nightly"]["next_fire_at"]]
    job_id = read_json(url, "schedules", "run", "nightly")["job_id"]
    assert read_json(url, "jobs", "show", job_id)["payload"]["k"] == 1
    assert read_json(url, "schedules", "remove", "nightly") == {"schedule": "nightly", "done": "removed"}
    with pytest.raises(NotFound):
        run(url, "schedules", "next", "nightly")


def test_top_shows_what_goes_on_as_a_screen_and_as_json(url: str, jobs: list[str]) -> None:
    run(url, "queues", "pause", "slow")
    seen = read_json(url, "top")
    (slow,) = seen["jobs"]["queues"]
    assert (slow["name"], slow["due"], slow["paused_at"] is None) == ("slow", 1, False)
    assert slow["oldest_due_at"] is not None
    assert [name["name"] for name in seen["jobs"]["names"]] == ["[red]"]
    assert [failure["error"] for failure in seen["jobs"]["failures"]] == ["no account 1", "no account 0"]
    named = {schedule["name"] for schedule in seen["schedules"]}
    assert named == {"billing.audit", "billing.daily", "billing.monthly"}
    screen = run(url, "top", "--once")
    for shown in ("slow", "[red]", "billing.daily", "no account 1", "paused: slow"):
        assert shown in screen


async def test_top_counts_what_runs_what_ended_in_the_last_minute_and_what_failed_before(
    session_factory: Sessions,
) -> None:
    clock = FixedClock(NOW)
    queue = SqlJobQueue(session_factory, clock=clock)
    async with session_factory.begin() as session:
        later = JobRequest("b", run_at=NOW + timedelta(hours=1), queue="q")
        await queue.enqueue_many(session, [*[JobRequest("a")] * 6, JobRequest("b", queue="q"), later])
    first, second, third, *_ = await queue.claim(4, names=["a"])
    await queue.finish([ended(first), ended(second, Discard("no")), ended(third, ValueError("x"))])
    async with session_factory() as session:
        seen = await session.run_sync(lambda sync: overview(sync, now=NOW))
        old = await session.run_sync(lambda sync: overview(sync, now=NOW + timedelta(minutes=2)))
    (default, q), (a, b) = seen.queues, seen.names
    assert (default.due, default.scheduled, default.running, default.completed_per_minute) == (2, 1, 1, 1)
    assert (q.due, q.oldest_due_at, q.scheduled) == (1, NOW, 1)
    assert (a.waiting, a.retrying, a.running) == (3, 1, 1)
    assert (a.completed_per_minute, a.discarded_per_minute, b.completed_per_minute) == (1, 1, 0)
    ((lease, failure),) = zip(seen.leases, seen.failures, strict=True)
    assert (lease.jobs, lease.name, 0 < lease.seconds_left <= 30) == (1, "a", True)
    assert (failure.job_id, failure.error) == (second.id, "no")
    assert [name.completed_per_minute for name in old.names] == [0, 0]
