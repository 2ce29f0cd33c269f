"""The specification's code blocks, run word for word, and what they did."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session
from standardwebhooks import Webhook

from svc_infra.api.fastapi.dependencies import Principal, get_principal
from svc_infra.billing import BillingService, Invoice, InvoiceLine, Plan, UsageAggregate, UsageEvent
from svc_infra.billing.models import PlanEntitlement, Subscription
from svc_infra.db.base import new_id
from svc_infra.jobs import process_one
from svc_infra.webhooks.delivery import Answer, OutgoingRequest
from svc_infra.webhooks.signature import as_standard

SPECIFICATION = Path(__file__).resolve().parents[2] / "docs" / "specification.md"
SHA_256 = "300aca6ca87317030b68e30004d0d1b53ff60f4cc6832159dabe78a3ef7dbfaf"

QUICK_START, PROVIDER_SYNC, ROUTER, QUOTA, JOBS = range(5)
OPENINGS = {
    QUICK_START: "from datetime import datetime, timezone",
    PROVIDER_SYNC: "from typing import Callable",
    ROUTER: "from fastapi import FastAPI",
    QUOTA: "from fastapi import Depends",
    JOBS: "from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine",
}

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
FEBRUARY = datetime(2025, 2, 1, tzinfo=UTC)
MARCH = datetime(2025, 3, 1, tzinfo=UTC)


def blocks() -> list[str]:
    text = SPECIFICATION.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(block: int, names: dict[str, Any]) -> dict[str, Any]:
    """Run a block of the document as it stands; ``names`` is what it finds and leaves."""
    code = compile(blocks()[block], f"specification.md, block {block + 1}", "exec", dont_inherit=True)
    exec(code, names)
    return names


def test_the_document_is_the_specification_and_every_block_of_it_is_run_here() -> None:
    assert hashlib.sha256(SPECIFICATION.read_bytes()).hexdigest() == SHA_256
    assert dict(enumerate(block.splitlines()[0] for block in blocks())) == OPENINGS
    fences = re.findall(r"^ *```.*$", SPECIFICATION.read_text(encoding="utf-8"), re.MULTILINE)
    assert fences == ["```python", "```"] * len(OPENINGS)


@pytest.fixture
def session() -> Iterator[Session]:
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        yield session
    engine.dispose()


def test_the_quick_start_records_aggregates_and_invoices(session: Session) -> None:
    names = run(QUICK_START, {"session": session})
    session.commit()

    [usage] = session.scalars(select(UsageEvent))
    assert (usage.id, usage.tenant_id, usage.metric) == (names["evt_id"], "t_123", "tokens")
    assert (usage.amount, usage.idempotency_key) == (Decimal(42), "req-42")
    assert usage.metadata_json == '{"model":"gpt"}'
    again = names["bs"].record_usage("tokens", "42.0", usage.at_ts, "req-42", {"model": "gpt"})
    assert again == usage.id
    assert session.scalar(select(func.count()).select_from(UsageEvent)) == 1

    [day] = session.scalars(select(UsageAggregate))
    assert (day.tenant_id, day.metric, day.period_start, day.granularity, day.total) == (
        "t_123",
        "tokens",
        JANUARY,
        "day",
        Decimal(0),
    )

    [invoice] = session.scalars(select(Invoice))
    assert (invoice.id, invoice.tenant_id) == (names["inv_id"], "t_123")
    assert (invoice.period_start, invoice.period_end, invoice.currency) == (JANUARY, FEBRUARY, "usd")
    assert invoice.total_amount == 0
    assert session.scalar(select(func.count()).select_from(InvoiceLine)) == 0


def test_the_provider_sync_hook_runs_once_per_invoice_and_after_its_commit(session: Session) -> None:
    names = run(QUICK_START, {"session": session})
    session.commit()
    names = run(PROVIDER_SYNC, names)
    # The hook of the document does nothing, so it is given another body: it is still the one that was passed.
    names["calls"] = []
    exec("async def recording(inv, lines): calls.append((inv, lines))", names)
    names["sync_to_provider"].__code__ = names["recording"].__code__

    bs: BillingService = names["bs"]
    assert bs.generate_monthly_invoice(JANUARY, FEBRUARY, "usd") == names["inv_id"]
    invoice_id = bs.generate_monthly_invoice(FEBRUARY, MARCH, "usd")
    assert names["calls"] == []
    session.commit()
    [(invoice, lines)] = names["calls"]
    assert isinstance(invoice, Invoice)
    assert (invoice.id, invoice.total_amount, lines) == (invoice_id, 0, [])
    session.commit()
    assert len(names["calls"]) == 1


@pytest.fixture
async def app(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The application of the two FastAPI blocks, on the database that the settings name."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    app: FastAPI = run(QUOTA, run(ROUTER, {}))["app"]
    async with app.router.lifespan_context(app):
        yield app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.test")


async def in_the_database(app: FastAPI, act: Any) -> Any:
    async with app.state.svc_infra.database.session_factory.begin() as session:
        return await session.run_sync(act)


async def test_the_router_refuses_who_is_nobody(app: FastAPI) -> None:
    async with client_of(app) as client:
        answers = [
            await client.post("/_billing/usage", json={"metric": "m", "amount": 1, "idempotency_key": "k"}),
            await client.get("/_billing/usage?metric=tokens"),
            await client.get("/generate-report"),
        ]
    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert {answer.headers["Content-Type"] for answer in answers} == {"application/problem+json"}


async def test_the_router_records_usage_once_and_lists_its_totals(app: FastAPI) -> None:
    app.dependency_overrides[get_principal] = lambda: Principal("t_123")
    usage = {
        "metric": "tokens",
        "amount": "42.5",
        "at": "2025-01-01T12:00:00Z",
        "idempotency_key": "req-42",
        "metadata": {"model": "gpt"},
    }
    async with client_of(app) as client:
        first = await client.post("/_billing/usage", json=usage, headers={"Idempotency-Key": "a"})
        replayed = await client.post("/_billing/usage", json=usage, headers={"Idempotency-Key": "a"})
        again = await client.post("/_billing/usage", json=usage)
        other = await client.post("/_billing/usage", json=usage | {"amount": 1})
        assert (first.status_code, list(first.json())) == (202, ["id"])
        assert (replayed.status_code, replayed.content) == (202, first.content)
        assert replayed.headers["Idempotency-Replayed"] == "true"
        assert (again.status_code, again.json()) == (202, first.json())
        assert (other.status_code, other.headers["Content-Type"]) == (409, "application/problem+json")

        await in_the_database(app, lambda s: BillingService(s, "t_123").aggregate_daily("tokens", JANUARY))
        listed = await client.get("/_billing/usage?metric=tokens")
    total = {
        "period_start": "2025-01-01T00:00:00Z",
        "granularity": "day",
        "metric": "tokens",
        "total": "42.5",
    }
    assert (listed.status_code, listed.json()) == (200, {"items": [total], "next_cursor": None})


def subscribe_to_one_report_a_day(session: Session) -> None:
    plan = Plan(id=new_id(), key="small", name="Small", created_at=JANUARY)
    session.add(plan)
    session.flush()
    session.add(
        PlanEntitlement(
            id=new_id(), plan_id=plan.id, key="reports", limit_per_window=1, window="day", created_at=JANUARY
        )
    )
    session.add(
        Subscription(
            id=new_id(), tenant_id="t_123", plan_id=plan.id, effective_at=JANUARY, created_at=JANUARY
        )
    )


async def test_the_quota_lets_requests_through_until_the_limit(app: FastAPI) -> None:
    app.dependency_overrides[get_principal] = lambda: Principal("t_123")
    async with client_of(app) as client:
        without_a_plan = await client.get("/generate-report")
        await in_the_database(app, subscribe_to_one_report_a_day)
        below = await client.get("/generate-report")
        used = {"metric": "reports", "amount": 1, "idempotency_key": "report-1"}
        assert (await client.post("/_billing/usage", json=used)).status_code == 202
        at_the_limit = await client.get("/generate-report")
    assert without_a_plan.status_code == 429
    assert (below.status_code, below.json()) == (200, {"ok": True})
    assert (at_the_limit.status_code, at_the_limit.json()["title"]) == (429, "The quota is used up")


@dataclass
class Wire:
    """Stands in for the sender: nothing leaves this process."""

    sent: list[OutgoingRequest] = field(default_factory=list)

    async def send(self, request: OutgoingRequest) -> Answer:
        self.sent.append(request)
        return Answer(204, None, b"", 1)

    async def aclose(self) -> None: ...


async def test_the_jobs_are_processed_and_their_webhooks_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    monkeypatch.setattr("svc_infra.webhooks.service.HttpSender", lambda: wire)
    before = datetime.now(UTC)
    names = run(JOBS, {})

    processed = 0
    while await process_one(names["queue"], names["handler"]):
        processed += 1
    assert processed == 2
    assert not await process_one(names["queue"], names["handler"])

    async with names["SessionLocal"]() as session:
        [day] = await session.scalars(select(UsageAggregate))
        [invoice] = await session.scalars(select(Invoice))
    assert (day.tenant_id, day.metric, day.total) == ("t1", "tokens", 0)
    assert (invoice.tenant_id, invoice.period_start, invoice.period_end) == ("t1", JANUARY, FEBRUARY)
    data = {message.topic: json.loads(message.body)["data"] for message in names["outbox"].messages}
    assert data == {
        "billing.usage_aggregated": {
            "tenant_id": "t1",
            "metric": "tokens",
            "day_start": day.period_start.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "total": "0",
        },
        "billing.invoice.created": {
            "tenant_id": "t1",
            "invoice_id": invoice.id,
            "period_start": "2025-01-01T00:00:00Z",
            "period_end": "2025-02-01T00:00:00Z",
            "currency": "usd",
        },
    }
    assert len(names["outbox"].messages) == 2
    assert before.date() <= day.period_start.date() <= datetime.now(UTC).date()

    assert await names["webhooks"].deliver_due() == 1
    assert await names["webhooks"].deliver_due() == 0
    [request] = wire.sent
    assert request.url == "https://example.test/hook"
    received = Webhook(as_standard("sekrit")).verify(request.body, request.headers)
    assert received["type"] == "billing.usage_aggregated"
    assert received["data"] == data["billing.usage_aggregated"]
    await names["engine"].dispose()
