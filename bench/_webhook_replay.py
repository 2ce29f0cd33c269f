"""A long replay: the worker is killed in the middle of it, and another one goes on."""

from __future__ import annotations

import asyncio
import time

from _common import Measure, check_equal, note
from _sink import Sink
from _webhook_shop import GIVE_UP_SECONDS, Shop
from _worker import WorkerProcess

from svc_infra.clock import SystemClock
from svc_infra.webhooks.replay import start_replay

_RATE_PER_SECOND = 10_000.0
_MOST_IN_FLIGHT = 400

_MESSAGES = """
INSERT INTO outbox_messages (id, topic, tenant_id, body, occurred_at, state)
SELECT 'msg_' || lpad(n::text, 32, '0'), 'billing.invoice.created', 'tenant_' || n,
       convert_to('{"type":"billing.invoice.created","timestamp":"2025-01-01T00:00:00Z","data":{"n":'
                  || n || '}}', 'UTF8'),
       now() - interval '1 day', 'relayed'
FROM generate_series(1, CAST(:count AS integer)) AS n
"""
_DELIVERIES = """
INSERT INTO webhook_deliveries (id, message_id, endpoint_id, tenant_id, state, run_at, attempt, rescues,
                                created_at, finished_at, last_outcome)
SELECT substr(id, 5), id, :endpoint_id, tenant_id, 'delivered', occurred_at, 0, 0,
       occurred_at, occurred_at, 'success'
FROM outbox_messages
"""


async def measure_replay(sink: Sink, url: str, count: int) -> list[Measure]:
    """Replay so many delivered messages, with a kill -9 at 40 %; every one must arrive again."""
    shop = Shop(url)
    (endpoint_id,) = await shop.open([sink.url("/hook")])
    await shop.execute(_MESSAGES, count=count)
    await shop.execute(_DELIVERIES, endpoint_id=endpoint_id)
    await shop.execute("ANALYZE")
    sink.reset()
    async with shop.session_factory.begin() as session:
        await session.run_sync(
            start_replay, endpoint_id, now=SystemClock().now(), rate_per_second=_RATE_PER_SECOND
        )
    started = time.monotonic()
    with WorkerProcess(url, port=sink.port) as doomed:
        await _reach(sink, count * 4 // 10)
        doomed.kill()
    at_death = sink.receipts()
    with WorkerProcess(url, port=sink.port) as worker:
        await _reach(sink, at_death + count // 10)
        early_mb = worker.peak_mb()
        while (open_rows := await shop.execute(_OPEN)) != 0:
            if time.monotonic() - started > 2 * GIVE_UP_SECONDS:
                check_equal("deliveries and replays that are not ended", open_rows, 0)
            await asyncio.sleep(0.2)
        peak_mb, seconds = worker.peak_mb(), time.monotonic() - started
    distinct, twice = len(sink.arrivals()), sink.receipts() - count
    await shop.close()
    check_equal("distinct messages received", distinct, count)
    if twice > _MOST_IN_FLIGHT:
        check_equal("messages sent twice", twice, f"at most {_MOST_IN_FLIGHT}, those in flight at the kill")
    note(f"replay: {count / seconds:,.0f}/s, {peak_mb:.0f} MB, killed at {at_death:,}, {twice} sent twice")
    return [
        Measure(
            f"replay_of_{count}_growth",
            "MB",
            peak_mb - early_mb,
            better="lower",
            target=30,
            reason=f"peak {peak_mb:.0f} MB; killed at {at_death:,}; {twice} sent twice",
        ),
        Measure(f"replay_of_{count}", "deliveries/s", count / seconds),
    ]


_OPEN = """
SELECT (SELECT count(*) FROM webhook_deliveries WHERE state IN ('pending', 'sending'))
     + (SELECT count(*) FROM webhook_replays WHERE state = 'running')
"""


async def _reach(sink: Sink, receipts: int) -> None:
    give_up_at = time.monotonic() + GIVE_UP_SECONDS
    while (seen := sink.receipts()) < receipts:
        if time.monotonic() > give_up_at:
            check_equal("receipts", seen, receipts)
        await asyncio.sleep(0.05)
