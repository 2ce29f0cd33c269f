"""The public test kit for jobs, used as an application's tests would use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from svc_infra.jobs import Handlers, InMemoryJobQueue, Job, JobState
from svc_infra.testing.jobs import assert_enqueued, drain, enqueued

APPLICATION_TESTS = """
from datetime import timedelta

import pytest

from svc_infra.jobs import Handlers, JobState
from svc_infra.testing.jobs import assert_enqueued, drain


@pytest.mark.asyncio
async def test_a_reminder_is_sent_the_day_after(svc_queue, svc_sessions, svc_clock):
    handlers, sent = Handlers(svc_sessions), []

    @handlers.job("remind")
    async def remind(job, session):
        sent.append(job.payload["to"])

    async with svc_sessions.begin() as session:
        svc_queue.bind(session).enqueue("remind", {"to": "ann"}, delay_seconds=86_400)
    assert await drain(svc_queue, handlers) == 0
    svc_clock.advance(timedelta(days=1))
    await assert_enqueued(svc_queue, "remind", {"to": "ann"}, count=1)
    assert await drain(svc_queue, handlers) == 1
    assert sent == ["ann"]
    await assert_enqueued(svc_queue, "remind", state=JobState.COMPLETED)


def test_a_queue_in_memory(svc_memory_queue, svc_clock):
    assert svc_memory_queue.enqueue("n").run_at == svc_clock.now()
"""


def test_an_applications_tests_use_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["svc_infra.testing.plugin"]\n')
    (tmp_path / "test_application.py").write_text(APPLICATION_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


async def test_draining_a_queue_runs_what_its_jobs_enqueue() -> None:
    queue, handlers = InMemoryJobQueue(), Handlers()

    async def first(job: Job) -> None:
        queue.enqueue("second")

    async def second(job: Job) -> None:
        return None

    handlers.add_plain("first", first)
    handlers.add_plain("second", second)
    queue.enqueue("first")
    assert await drain(queue, handlers) == 2
    assert [stored.state for stored in await enqueued(queue)] == [JobState.COMPLETED] * 2


async def test_what_was_not_enqueued_is_said_with_what_was() -> None:
    queue = InMemoryJobQueue()
    queue.enqueue("ship", {"order": 1, "by": "air"}, queue="slow")
    (job,) = await assert_enqueued(queue, "ship", {"order": 1}, count=1, queue="slow")
    assert job.payload["by"] == "air"
    for options in ({"payload": {"order": 2}}, {"count": 2}, {"queue": "fast"}, {"state": JobState.RUNNING}):
        with pytest.raises(AssertionError, match=r"there are: \{'order': 1, 'by': 'air'\}"):
            await assert_enqueued(queue, "ship", **options)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="there are: none"):
        await assert_enqueued(queue, "other")
    await assert_enqueued(queue, "other", count=0)
