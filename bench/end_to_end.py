"""Webhooks from published to verified: deliveries a second, sender and receiver on the same machine.

    python bench/end_to_end.py [--messages 20000] [--json] [--quick]

Messages are published into the durable outbox, a relay and a deliverer in this process send them to one
endpoint, and a receiver in another process verifies each with the ``standardwebhooks`` library. The time is
from before the first publish until the last result is recorded; what counts is the receiver's receipts.
"""

from __future__ import annotations

import asyncio
import time

from _common import KINDS, Measure, arguments, check_equal, databases, note, report
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.config import Settings
from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine
from svc_infra.logs import configure_logging
from svc_infra.runtime import Runtime
from svc_infra.simulation.receiver import ReceiverProcess
from svc_infra.testing.webhooks import loopback_sender
from svc_infra.webhooks.deliverer import Sender
from svc_infra.webhooks.delivery import Answer, OutgoingRequest, SendResult
from svc_infra.webhooks.endpoints import add_endpoint
from svc_infra.webhooks.models import DeliveryAttemptRow
from svc_infra.webhooks.service import Publication
from svc_infra.webhooks.signature import as_standard, new_secret

_PUBLISHED_AT_ONCE = 500
_GIVE_UP_SECONDS = 300
_TARGETS = {"sqlite": 800, "postgresql": 1_000}


def main() -> None:
    parser = arguments("webhook deliveries a second, from published to verified")
    parser.add_argument("--messages", type=int, default=20_000)
    options = parser.parse_args()
    configure_logging("warning")
    messages = min(options.messages, 4_000) if options.quick else options.messages
    measures = []
    with databases() as fresh:
        for kind in KINDS:
            note(f"end to end, {kind}, {messages:,} messages")
            rates = sorted(asyncio.run(_run(fresh(kind), messages)) for _ in range(options.runs or 1))
            measures.append(
                Measure(f"end_to_end_{kind}", "deliveries/s", rates[len(rates) // 2], target=_TARGETS[kind])
            )
    report(measures, as_json=options.json)


class _CountingSender:
    """A sender that tells when so many requests have got an answer."""

    def __init__(self, sender: Sender, requests: int) -> None:
        self.are_answered = asyncio.Event()
        self._sender = sender
        self._left = requests

    async def send(self, request: OutgoingRequest) -> SendResult:
        result = await self._sender.send(request)
        if isinstance(result, Answer):
            self._left -= 1
            if self._left == 0:
                self.are_answered.set()
        return result


async def _run(url: str, messages: int) -> float:
    engine, sender, secret = make_engine(url), loopback_sender(), new_secret()
    counting = _CountingSender(sender, messages)
    with ReceiverProcess({"/hook": as_standard(secret)}) as receiver:
        try:
            await migrate(engine)
            async with AsyncSession(engine) as session, session.begin():
                await session.run_sync(
                    lambda sync: add_endpoint(sync, url=receiver.url("/hook"), topics=["*"], secret=secret)
                )
            runtime = Runtime(Settings(), engine, counting)
            seconds = await _deliver(runtime, counting, messages)
            stats = receiver.stats()
            found = (stats.verified, stats.distinct_ids, stats.failed, stats.duplicates)
            check_equal("verified, distinct, failed, repeated", found, (messages, messages, 0, 0))
            async with AsyncSession(engine) as session:
                attempts = await session.scalar(select(func.count()).select_from(DeliveryAttemptRow))
            check_equal("attempts recorded", attempts, messages)
        finally:
            await sender.aclose()
            await engine.dispose()
    return stats.verified / seconds


async def _deliver(runtime: Runtime, sender: _CountingSender, messages: int) -> float:
    """Publish while relay and deliverer run; return the seconds until all are delivered."""
    stop = asyncio.Event()
    started = time.perf_counter()
    async with asyncio.TaskGroup() as parts, asyncio.timeout(_GIVE_UP_SECONDS):
        parts.create_task(runtime.relay.run(stop))
        parts.create_task(runtime.deliverer.run(stop))
        for first in range(0, messages, _PUBLISHED_AT_ONCE):
            await _publish(runtime, range(first, min(first + _PUBLISHED_AT_ONCE, messages)))
            runtime.relay.wake()
        await sender.are_answered.wait()
        stop.set()  # the deliverer records what is left and ends
    return time.perf_counter() - started


async def _publish(runtime: Runtime, numbers: range) -> None:
    publications = [
        Publication(
            "billing.invoice.created",
            {
                "tenant_id": f"tenant_{number}",
                "invoice_id": f"invoice_{number}",
                "period_start": "2025-01-01T00:00:00Z",
                "period_end": "2025-02-01T00:00:00Z",
                "currency": "usd",
            },
            tenant_id=f"tenant_{number}",
        )
        for number in numbers
    ]
    async with runtime.session_factory.begin() as session:
        await session.run_sync(lambda sync: runtime.webhooks.publish_many(sync, publications))


if __name__ == "__main__":
    main()
