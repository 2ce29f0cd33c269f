"""Publishing through the service, with the stores that the specification's example uses."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from svc_infra.clock import FixedClock
from svc_infra.db.outbox import InMemoryOutboxStore, SqlOutboxStore
from svc_infra.exceptions import InvalidPayload, InvalidSettings, InvalidTopic, NotInTransaction
from svc_infra.testing.webhooks import loopback_sender
from svc_infra.webhooks.add import add_webhooks
from svc_infra.webhooks.endpoints import SqlWebhookEndpoints
from svc_infra.webhooks.service import InMemoryWebhookSubscriptions, Publication, WebhookService
from svc_infra.webhooks.signature import as_standard
from tests.contract.scripted_receiver import ScriptedReceiver

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sender that a service makes for itself send to the receiver of these tests."""
    monkeypatch.setattr("svc_infra.webhooks.service.HttpSender", loopback_sender)


def in_memory(**settings: Any) -> tuple[WebhookService, InMemoryOutboxStore]:
    outbox = InMemoryOutboxStore()
    return WebhookService(outbox=outbox, subs=InMemoryWebhookSubscriptions(), **settings), outbox


async def test_the_specification_s_stores_really_deliver() -> None:
    async with ScriptedReceiver(as_standard("sekrit")) as receiver:
        outbox = InMemoryOutboxStore()
        subs = InMemoryWebhookSubscriptions()
        subs.add("billing.usage_aggregated", url=receiver.url("/hook"), secret="sekrit")
        webhooks = WebhookService(outbox=outbox, subs=subs)
        message_id = webhooks.publish("billing.usage_aggregated", {"total": Decimal("42.50")}, tenant_id="t1")
        assert await webhooks.deliver_due() == 1
    (received,) = receiver.received
    assert received.webhook_id == message_id
    assert json.loads(received.body)["data"] == {"total": "42.5"}


async def test_connections_are_kept_while_the_service_is_open() -> None:
    async with ScriptedReceiver(as_standard("sekrit")) as receiver:
        subs = InMemoryWebhookSubscriptions()
        subs.add("*", url=receiver.url(), secret="sekrit")
        async with WebhookService(outbox=InMemoryOutboxStore(), subs=subs) as webhooks:
            for _ in range(3):
                webhooks.publish("a.b", {})
                await webhooks.deliver_due()
            assert (len(receiver.received), receiver.connection_count) == (3, 1)


def test_the_body_is_made_at_publish_with_the_clock_s_time_or_the_given_one() -> None:
    service, outbox = in_memory(clock=FixedClock(NOON))
    payload = {"n": 1}
    service.publish("a.b", payload)
    payload["n"] = 2
    service.publish("a.b", payload, occurred_at=NOON.replace(year=2024))
    assert [json.loads(one.body) for one in outbox.messages] == [
        {"type": "a.b", "timestamp": "2025-01-01T12:00:00Z", "data": {"n": 1}},
        {"type": "a.b", "timestamp": "2024-01-01T12:00:00Z", "data": {"n": 2}},
    ]


def test_publish_many_publishes_all_or_none() -> None:
    service, outbox = in_memory()
    with Session(create_engine("sqlite://")) as session:
        with pytest.raises(InvalidPayload, match=r"payload\.n"):
            service.publish_many(session, [Publication("a.b", {}), Publication("a.b", {"n": 0.5})])
        session.commit()
        assert outbox.messages == []
        ids = service.publish_many(session, [Publication("a.b", {}, "t1"), Publication("a.c", {})])
        session.commit()
    assert [(one.id, one.topic, one.tenant_id) for one in outbox.messages] == [
        (ids[0], "a.b", "t1"),
        (ids[1], "a.c", None),
    ]


def test_a_topic_that_is_none_is_refused_at_publish() -> None:
    service, outbox = in_memory()
    with pytest.raises(InvalidTopic):
        service.publish("no topic", {})
    assert outbox.messages == []


def test_stores_of_two_kinds_do_not_go_together() -> None:
    endpoints = SqlWebhookEndpoints(cast(Any, None))
    with pytest.raises(InvalidSettings, match="do not go together"):
        WebhookService(outbox=InMemoryOutboxStore(), subs=endpoints)
    with pytest.raises(InvalidSettings, match="do not go together"):
        WebhookService(outbox=SqlOutboxStore(), subs=InMemoryWebhookSubscriptions())
    durable = WebhookService(outbox=SqlOutboxStore(), subs=endpoints)
    with pytest.raises(NotInTransaction):
        durable.publish("a.b", {})


async def test_an_app_delivers_in_the_background_of_its_lifespan() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(_app: Any) -> Any:
        events.append("up")
        yield {"own": "state"}
        events.append("down")

    app = SimpleNamespace(state=SimpleNamespace(), router=SimpleNamespace(lifespan_context=lifespan))
    async with ScriptedReceiver(as_standard("sekrit")) as receiver:
        subs = InMemoryWebhookSubscriptions()
        subs.add("a.b", url=receiver.url(), secret="sekrit")
        webhooks = add_webhooks(app, subs=subs, poll_seconds=0.01)
        assert app.state.webhooks is webhooks
        async with app.router.lifespan_context(app) as state:
            assert (state, events) == ({"own": "state"}, ["up"])
            webhooks.publish("a.b", {})
            await receiver.wait_for("/", 1)
        assert events == ["up", "down"]


def test_add_webhooks_imports_without_fastapi() -> None:
    blocked = (
        "import sys; sys.modules['fastapi'] = sys.modules['starlette'] = None; import svc_infra.webhooks.add"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", blocked], check=True)


@pytest.mark.parametrize("key", ["", "a" * 256, "a\0b", "a\ud800"])
@pytest.mark.parametrize("name", ["key", "idempotency_key"])
def test_a_key_that_a_database_would_refuse_is_refused_at_publish(name: str, key: str) -> None:
    service = WebhookService(outbox=InMemoryOutboxStore(), subs=InMemoryWebhookSubscriptions())
    with pytest.raises(InvalidPayload, match="key of a message"):
        service.publish("a.b", {}, **{name: key})
