"""The lookout wakes the loops that have something to do, whether or not anybody gave notice."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.clock import FixedClock
from svc_infra.jobs import SqlJobQueue
from svc_infra.jobs.lookout import Lookout
from svc_infra.jobs.statements import any_due as jobs_due
from svc_infra.webhooks.due_deliveries import any_due as deliveries_due
from svc_infra.webhooks.relay import Relay, any_pending
from tests.contract.seen_statements import statements
from tests.contract.webhook_shop import NOON, Shop

Factory = async_sessionmaker[AsyncSession]


async def test_it_wakes_those_that_have_something_due_and_no_others_by_one_statement(
    session_factory: Factory, engine: AsyncEngine
) -> None:
    shop, clock, woken = Shop(session_factory), FixedClock(NOON), []
    lookout = Lookout(shop.factory, clock, poll_seconds=1)
    lookout.watch(jobs_due(), lambda: woken.append("worker"))
    lookout.watch(any_pending(), lambda: woken.append("relay"))
    lookout.watch(deliveries_due(), lambda: woken.append("deliverer"))
    with statements(engine) as seen:
        await lookout.look()
    assert (woken, len([sql for sql in seen if sql != "BEGIN IMMEDIATE"])) == ([], 1)

    queue = SqlJobQueue(shop.factory, clock=clock)
    await queue.enqueue_alone("n", run_at=NOON + timedelta(minutes=1))
    await shop.add()
    await shop.publish({"n": 1})
    await lookout.look()
    assert woken == ["relay"], "the job is due in a minute"

    woken.clear()
    await Relay(shop.factory, clock).drain()
    clock.advance(timedelta(minutes=1))
    await lookout.look()
    assert woken == ["worker", "deliverer"]
