"""What waits is counted by why it waits, and a failing or disabled endpoint does not make it look young."""

from __future__ import annotations

from datetime import timedelta

import pytest

from svc_infra.webhooks.backlog import Backlog, Waiting, WaitsFor, count_endpoints, measure_backlog
from svc_infra.webhooks.delivery import Answer, SendFailure
from svc_infra.webhooks.delivery_claim import claim
from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.endpoint_removal import remove_endpoint
from svc_infra.webhooks.endpoint_switch import disable_endpoint
from tests.contract.webhook_shop import NOON, URL, Factory, Shop

FIVE_MINUTES = timedelta(minutes=5)


@pytest.fixture
async def shop(session_factory: Factory) -> Shop:
    return Shop(session_factory)


async def test_each_reason_to_wait_is_counted_with_its_oldest(shop: Shop) -> None:
    assert await shop.do(measure_backlog, now=NOON) == Backlog()
    urls = [f"https://{name}.example/" for name in ("paused", "retries", "ordered", "disabled")]
    paused, retries, ordered, _ = urls
    options = EndpointOptions(ordering="key")
    ids = [await shop.add(url, options=options if url == ordered else None) for url in urls]
    await shop.do(disable_endpoint, ids[3], reason="off", now=NOON)
    shop.sender.answers[paused] = [Answer(429, "3600", b"", 1)]
    shop.sender.answers[retries] = [SendFailure("timeout", "too late", 1)]
    shop.sender.answers[ordered] = [Answer(500, None, b"", 1)]
    await shop.publish({"n": 1}, key="a")
    await shop.service.deliver_due()
    shop.clock.advance(FIVE_MINUTES)
    await shop.publish({"n": 2}, key="a")
    now = shop.clock.now()
    found = (await shop.do(measure_backlog, now=now)).waiting
    assert found[WaitsFor.RELAY] == Waiting(1, now)
    await shop.service._from_database()[0].drain()
    found = (await shop.do(measure_backlog, now=now)).waiting
    due_again = NOON + timedelta(seconds=60)
    assert dict(found) == {
        WaitsFor.RELAY: Waiting(),
        WaitsFor.SENDER: Waiting(3, due_again),  # two that are to be tried again, and a new one
        WaitsFor.ANSWER: Waiting(),
        WaitsFor.RETRY: Waiting(),
        WaitsFor.PAUSE: Waiting(2, NOON),
        WaitsFor.ORDER: Waiting(1, now),
        WaitsFor.ENABLING: Waiting(2, NOON),
    }
    before = (await shop.do(measure_backlog, now=NOON)).waiting
    assert before[WaitsFor.RETRY].count == 3
    arguments = {"now": now, "lease_seconds": 60, "limit": 50, "allowance": 8, "allowances": {}}
    await shop.do(claim, **arguments)
    found = (await shop.do(measure_backlog, now=now)).waiting
    assert (found[WaitsFor.ANSWER], found[WaitsFor.PAUSE]) == (Waiting(3, due_again), Waiting(2, NOON))
    assert found[WaitsFor.PAUSE].age_seconds(now) == 300


@pytest.mark.sqlite_only
async def test_the_oldest_that_is_due_includes_what_is_held_and_not_what_waits_for_its_retry() -> None:
    def backlog(**waiting: int) -> Backlog:
        ages = {reason: Waiting(1, NOON - timedelta(seconds=age)) for reason, age in waiting.items()}
        return Backlog({WaitsFor(reason): one for reason, one in ages.items()})

    assert Backlog().oldest_due_at is None
    assert backlog(retry=900).oldest_due_at is None
    for reason in ("relay", "sender", "answer", "pause", "order", "enabling"):
        assert backlog(**{reason: 60, "retry": 900}).oldest_due_at == NOON - timedelta(seconds=60)


async def test_endpoints_are_counted_by_their_state(shop: Shop) -> None:
    assert await shop.do(count_endpoints, now=NOON) == {"enabled": 0, "paused": 0, "disabled": 0}
    _, paused, disabled, removed = [await shop.add(f"https://{name}.example/") for name in "abcd"]
    shop.sender.answers["https://b.example/"] = [Answer(503, "60", b"", 1)]
    await shop.publish({"n": 1})
    await shop.service.deliver_due()
    await shop.do(disable_endpoint, disabled, reason="off", now=NOON)
    await shop.do(remove_endpoint, removed, now=NOON)
    assert await shop.do(count_endpoints, now=NOON) == {"enabled": 1, "paused": 1, "disabled": 1}
    assert (await shop.row(paused)).paused_until is not None


async def test_a_deliverer_counts_recorded_attempts_by_their_outcome(shop: Shop) -> None:
    await shop.add()
    shop.sender.answers[URL] = [Answer(500, None, b"", 7), SendFailure("timeout", "too late", 11)]
    await shop.publish({"n": 1}, {"n": 2}, {"n": 3})
    relay, deliverer = shop.service._from_database()
    await relay.drain()
    await deliverer.run_once()
    assert deliverer.stats.outcomes == {"server_error": 1, "timeout": 1, "success": 1}
    assert deliverer.stats.duration_ms == 19
