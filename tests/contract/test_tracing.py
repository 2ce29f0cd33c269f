"""One trace from a request through its jobs and messages to the deliveries, with spans and without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.api.fastapi.billing.setup import add_billing
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.jobs import Handlers, Job, JobRequest, SqlJobQueue, process_one
from svc_infra.jobs.executor import Executor
from svc_infra.tracing import carried
from svc_infra.webhooks.delivery import Answer, SendFailure
from svc_infra.webhooks.service import Publication
from tests.contract.webhook_shop import TOPIC, URL, Factory, Shop
from tests.unit.api.asking import ONE, client_of, principal_of

THEIRS = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans of a process that has set a tracer provider; setting one for good is left to applications."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


class TracedShop(Shop):
    """A shop that is asked over HTTP, works in jobs, and tells of it by webhooks."""

    def __init__(self, factory: Factory, *, has_traced_framework: bool = False) -> None:
        super().__init__(factory)
        self.queue = SqlJobQueue(factory, clock=self.clock)
        self.handlers = Handlers(factory, clock=self.clock)
        self.handlers.add("shop.pay", self._pay)
        self.handlers.add_batch("shop.count", self._count)
        self.handlers.add_plain("shop.fail", self._fail)
        self.app = FastAPI(telemetry={"tracing": has_traced_framework})
        add_billing(self.app, session_factory=factory, principal=principal_of)
        self.app.router.routes.append(UnitOfWorkRoute("/orders/{id}", self._order, methods=["POST"]))

    async def ask(self, headers: dict[str, str] | None = None) -> str:
        async with client_of(self.app, ONE) as client:
            answer = await client.post("/orders/secret-order", headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.headers["traceparent"]

    async def work(self) -> None:
        while await process_one(self.queue, self.handlers):
            pass
        await self.service.deliver_due()

    async def _order(self, id: str, session: UnitSession) -> None:
        self.queue.bind(session).enqueue("shop.pay", {"card": "secret-card"}, tenant_id="secret-tenant")

    async def _pay(self, job: Job, session: AsyncSession) -> None:
        self.service.publish(TOPIC, {"card": job.payload["card"]}, session=session, tenant_id=job.tenant_id)
        await self.queue.enqueue_many(session, [JobRequest("shop.count"), JobRequest("shop.count")])

    async def _count(self, jobs: Sequence[Job], session: AsyncSession) -> None:
        await session.run_sync(
            lambda sync: self.service.publish_many(sync, [Publication("shop.counted", {})])
        )

    async def _fail(self, job: Job) -> None:
        raise LookupError("secret-card was refused")


async def test_one_trace_leads_from_a_request_to_the_delivery(
    session_factory: Factory, spans: InMemorySpanExporter
) -> None:
    shop = TracedShop(session_factory)
    await shop.add(f"{URL}/secret-path")
    answered = await shop.ask({"traceparent": THEIRS})
    await shop.work()
    found = {span.name: span for span in spans.get_finished_spans()}
    chain = [
        ("POST /orders/{id}", "SERVER"),
        ("enqueue shop.pay", "PRODUCER"),
        ("run shop.pay", "CONSUMER"),
        (f"publish {TOPIC}", "PRODUCER"),
        (f"deliver {TOPIC}", "CLIENT"),
    ]
    assert [(span.name, span.kind.name) for span in _line(found, f"deliver {TOPIC}")] == chain
    assert {span.context.trace_id for span in found.values()} == {int("ab" * 16, 16)}
    first = found["POST /orders/{id}"]
    assert first.parent is not None
    assert first.parent.span_id == int("cd" * 8, 16)
    # Jobs that a handler enqueues, and what theirs publish, go on with it.
    assert [span.name for span in _line(found, "publish shop.counted")][-3:] == [
        "run shop.pay",
        "run shop.count",
        "publish shop.counted",
    ]
    assert answered == _traceparent(found["POST /orders/{id}"])
    [request] = shop.sender.requests
    assert request.headers["traceparent"] == _traceparent(found[f"deliver {TOPIC}"])
    delivered = found[f"deliver {TOPIC}"].attributes or {}
    assert delivered["messaging.message.id"] == request.headers["webhook-id"]
    assert (delivered["messaging.destination.name"], delivered["http.response.status_code"]) == (TOPIC, 204)
    ran = found["run shop.pay"].attributes or {}
    assert (ran["messaging.system"], ran["messaging.operation.type"]) == ("svc_infra", "process")
    assert (ran["messaging.destination.name"], ran["svc_infra.job.attempt"]) == ("default", 1)
    assert "secret" not in "".join(span.to_json() for span in spans.get_finished_spans())


async def test_a_failure_is_told_by_its_class_alone(
    session_factory: Factory, spans: InMemorySpanExporter
) -> None:
    shop = TracedShop(session_factory)
    await shop.add()
    shop.sender.answers[URL] = [
        SendFailure("timeout", "secret-host is slow", 5),
        Answer(500, None, b"secret", 1),
    ]
    async with session_factory.begin() as session:
        shop.queue.bind(session).enqueue("shop.fail")
    await shop.publish({})
    await shop.work()
    failed = {span.name: span for span in spans.get_finished_spans() if not span.status.is_ok}
    types = {name: (span.attributes or {})["error.type"] for name, span in failed.items()}
    assert types == {"run shop.fail": "LookupError", f"deliver {TOPIC}": "timeout"}
    assert "secret" not in "".join(span.to_json() for span in failed.values())


async def test_a_batch_from_several_traces_is_linked_to_them(
    session_factory: Factory, spans: InMemorySpanExporter
) -> None:
    shop = TracedShop(session_factory)
    async with session_factory.begin() as session:
        for number in (1, 2):
            with carried(f"00-{number:032x}-{number:016x}-01"):
                await shop.queue.enqueue_many(session, [JobRequest("shop.count")])
    spans.clear()
    await Executor(shop.queue, shop.handlers).run(await shop.queue.claim(10))
    ran, published = (span_of(spans, name) for name in ("run shop.count", "publish shop.counted"))
    assert ran.parent is None
    assert {link.context.trace_id for link in ran.links} == {1, 2}
    assert (ran.attributes or {})["messaging.batch.message_count"] == 2
    assert published.context.trace_id == ran.context.trace_id


async def test_a_request_that_the_framework_has_a_span_for_gets_no_second_one(
    session_factory: Factory, spans: InMemorySpanExporter
) -> None:
    shop = TracedShop(session_factory, has_traced_framework=True)
    answered = await shop.ask()
    found = {span.name: span for span in spans.get_finished_spans()}
    [request] = [span for span in found.values() if span.kind is trace.SpanKind.SERVER]
    assert _line(found, "enqueue shop.pay")[0] is request
    assert answered == _traceparent(request)


async def test_without_a_provider_the_trace_goes_along_and_no_receiver_hears_of_it(
    session_factory: Factory,
) -> None:
    shop = TracedShop(session_factory)
    await shop.add()
    answered = await shop.ask({"traceparent": THEIRS})
    await shop.work()
    async with session_factory() as session:
        kept = list(await session.scalars(select(OutboxMessageRow.trace_context)))
    assert kept == [answered] * 3
    assert "traceparent" not in shop.sender.requests[0].headers


_WITHOUT = """
import sys
sys.modules["opentelemetry"] = None  # an import of it fails from here on
import asyncio
import svc_infra.runtime  # and not FastAPI, which imports it by itself since 0.160
from svc_infra.jobs import process_one
from svc_infra.jobs.easy import easy_jobs
from svc_infra.tracing import carried
queue, _ = easy_jobs()
seen = []
async def handler(job):
    queue.enqueue("after") if job.name == "first" else seen.append(job.trace_context)
async def main():
    with carried("00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"):
        queue.enqueue("first")
    while await process_one(queue, handler): pass
asyncio.run(main())
assert seen == ["00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"], seen
assert [name for name in sys.modules if name.startswith("opentelemetry.")] == []
"""


def test_opentelemetry_may_be_absent_and_is_never_imported() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def span_of(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    [span] = [span for span in spans.get_finished_spans() if span.name == name]
    return span


def _line(found: dict[str, ReadableSpan], name: str) -> list[ReadableSpan]:
    """The span and those that it comes from, the first one first."""
    by_id = {span.context.span_id: span for span in found.values()}
    line, span = [], found.get(name)
    while span is not None:
        line.append(span)
        span = by_id.get(span.parent.span_id) if span.parent else None
    return line[::-1]


def _traceparent(span: ReadableSpan) -> str:
    context = span.context
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
