"""The log: a line for each job and each delivery attempt that ended, with nothing secret in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.jobs import Discard, Handlers, Job, JobRequest, Outcome, Snooze, SqlJobQueue, process_one
from svc_infra.jobs.executor import Executor
from svc_infra.logs import configure_logging
from svc_infra.tracing import carried
from svc_infra.webhooks.delivery import Answer, SendFailure
from svc_infra.webhooks.endpoint_options import EndpointOptions
from tests.contract.webhook_shop import TOPIC, URL, Factory, Shop

Lines = Callable[[], list[dict[str, Any]]]
TRACE = f"00-{'ab' * 16}-{'cd' * 8}-01"
SECRET = "canary-4711"
ENDS = ("jobs.ended", "webhooks.attempt_ended")


@pytest.fixture
def logging() -> Iterator[None]:
    before, was_configured = structlog.get_config(), structlog.is_configured()
    configure_logging("info")
    yield
    structlog.configure(**before)
    if not was_configured:
        structlog.reset_defaults()


@pytest.fixture
def lines(logging: None, capsys: pytest.CaptureFixture[str]) -> Lines:
    """What was logged of ends since the last look; no line of any kind has the secret in it."""

    def read() -> list[dict[str, Any]]:
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        found = [json.loads(line) for line in err.splitlines()]
        return [line for line in found if line["event"] in ENDS]

    return read


async def work(session_factory: Factory, *requests: JobRequest) -> None:
    """Run jobs, one after the other, whose payloads and errors hold a secret."""
    queue, handlers = SqlJobQueue(session_factory), Handlers(session_factory)

    @handlers.job("ship")
    async def ship(job: Job, session: AsyncSession) -> Outcome | None:
        if job.payload.get("fails"):
            raise LookupError(SECRET)
        return Snooze(timedelta(days=1)) if job.payload.get("waits") else None

    @handlers.plain("call")
    async def call(job: Job) -> Outcome | None:
        return Discard(SECRET) if job.payload.get("fails") else None

    @handlers.batch("count")
    async def count(jobs: Sequence[Job], session: AsyncSession) -> Mapping[str, Outcome]:
        if any(job.payload.get("fails") for job in jobs):
            raise ValueError(SECRET)
        return {job.id: Discard(SECRET) for job in jobs if job.payload.get("is_refused")}

    async with session_factory.begin() as session:
        await queue.enqueue_many(session, requests)
    executor = Executor(queue, handlers)
    await executor.run(await queue.claim(100))


@pytest.mark.parametrize(
    ("name", "payload", "level", "outcome", "error"),
    [
        ("ship", {}, "info", "completed", None),
        ("ship", {"waits": True}, "info", "snoozed", None),
        ("ship", {"fails": True}, "warning", "retried", "LookupError"),
        ("call", {}, "info", "completed", None),
        ("call", {"fails": True}, "warning", "discarded", None),
        ("count", {}, "info", "completed", None),
    ],
)
async def test_a_job_ends_in_one_line(
    session_factory: Factory,
    lines: Lines,
    name: str,
    payload: dict[str, Any],
    level: str,
    outcome: str,
    error: str | None,
) -> None:
    with carried(TRACE):
        request = JobRequest(name, {**payload, "card": SECRET}, queue="q", tenant_id=SECRET)
    await work(session_factory, request)
    [line] = lines()
    assert (line["name"], line["queue"], line["attempt"]) == (name, "q", 1)
    assert (line["level"], line["outcome"], line.get("error")) == (level, outcome, error)
    assert line["trace_id"] == "ab" * 16
    assert min(line["ms"], line["wait_ms"]) >= 0


async def test_what_completed_of_a_batch_is_one_line_and_each_other_job_one_of_its_own(
    session_factory: Factory, lines: Lines
) -> None:
    refused = JobRequest("count", {"is_refused": True, "card": SECRET})
    await work(session_factory, JobRequest("count"), refused, JobRequest("count"))
    other, completed = lines()
    assert (other["outcome"], other["level"], "job_id" in other) == ("discarded", "warning", True)
    assert (completed["outcome"], completed["jobs"], "job_id" in completed) == ("completed", 2, False)


async def test_a_batch_that_is_split_tells_of_the_job_that_failed(
    session_factory: Factory, lines: Lines
) -> None:
    await work(session_factory, JobRequest("count"), JobRequest("count", {"fails": True, "card": SECRET}))
    told = lines()
    assert sorted((line["outcome"], line.get("error")) for line in told) == [
        ("completed", None),
        ("retried", "ValueError"),
    ]


async def test_a_callable_s_job_and_one_that_is_cancelled_end_in_a_line_too(
    session_factory: Factory, lines: Lines
) -> None:
    queue = SqlJobQueue(session_factory)
    async with session_factory.begin() as session:
        for _ in range(2):
            queue.bind(session).enqueue("ship", {"card": SECRET})

    async def fail(job: Job) -> None:
        raise LookupError(SECRET)

    await process_one(queue, fail)
    [claimed] = await queue.claim(1)
    await Executor(queue, Handlers(session_factory)).cancel({claimed.id: SECRET}, [claimed])
    assert [(line["outcome"], line.get("error")) for line in lines()] == [
        ("retried", "LookupError"),
        ("cancelled", None),
    ]


async def test_a_delivery_attempt_ends_in_one_line(session_factory: Factory, lines: Lines) -> None:
    shop = Shop(session_factory, attempts=2)
    options = EndpointOptions(headers={"X-Key": SECRET})
    endpoint_id = await shop.add(f"{URL}/{SECRET}", options=options)
    shop.sender.answers[f"{URL}/{SECRET}"] = [
        SendFailure("timeout", SECRET, 15_000),
        Answer(500, None, SECRET.encode(), 7),
        Answer(204, None, b"", 1),
    ]
    with carried(TRACE):
        [message_id] = await shop.publish({"card": SECRET})
    for _ in range(2):
        await shop.service.deliver_due()
        shop.clock.advance(timedelta(minutes=1))
    await shop.publish({})
    await shop.service.deliver_due()
    told = lines()
    assert [
        (one["attempt"], one["level"], one["state"], one["outcome"], one.get("status"), one["ms"])
        for one in told
    ] == [
        (1, "info", "retry", "timeout", None, 15_000),
        (2, "warning", "dead", "server_error", 500, 7),
        (1, "info", "delivered", "success", 204, 1),
    ]
    assert (told[0]["endpoint_id"], told[0]["message_id"]) == (endpoint_id, message_id)
    assert (told[0]["topic"], told[0]["trace_id"]) == (TOPIC, "ab" * 16)


async def test_above_info_only_what_went_wrong_is_told(session_factory: Factory, lines: Lines) -> None:
    configure_logging("warning")
    await work(session_factory, JobRequest("ship"), JobRequest("ship", {"fails": True}))
    assert [line["outcome"] for line in lines()] == ["retried"]


async def test_without_configured_logging_nothing_is_written_of_ends(
    session_factory: Factory, logging: None, capsys: pytest.CaptureFixture[str]
) -> None:
    structlog.reset_defaults()
    await work(session_factory, JobRequest("ship"))
    assert "jobs.ended" not in "".join(capsys.readouterr())
