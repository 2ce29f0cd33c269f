"""kill -9 at every named place of a worker's life: nothing is lost, and nothing happens twice."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.scenarios.conftest import MakeWorld
from tests.scenarios.crash_worker import KILLED, WorkerProcess

RUNNING = "SELECT count(*) FROM jobs WHERE state = 'running'"
COMPLETED = "SELECT count(*) FROM jobs WHERE state = 'completed'"
MESSAGES = "SELECT count(*) FROM outbox_messages"
# Not the daily totals: the worker follows usage beside its jobs, in transactions of their own.
EFFECTS = f"SELECT ({MESSAGES}) + (SELECT count(*) FROM invoices)"
DELIVERIES = "SELECT count(*) FROM webhook_deliveries"
ATTEMPTS = "SELECT count(*) FROM webhook_delivery_attempts"
SENDING = "SELECT count(*) FROM webhook_deliveries WHERE state = 'sending'"
DELIVERED = "SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered'"
RESCUED = "SELECT count(*) FROM jobs WHERE rescues > 0"
RESCUED_DELIVERIES = "SELECT count(*) FROM webhook_deliveries WHERE rescues > 0"
"""What a look into the database shows."""


@dataclass(frozen=True)
class Death:
    """A place to die at, and what the database must show then: how many rows (-1: some) of which kind."""

    failpoint: str
    hit: int
    left: dict[str, int]
    has_sent: bool = False


IN_TRANSACTION = {RUNNING: -1, COMPLETED: 0, EFFECTS: 0}
DEATHS = [
    # On PostgreSQL a claim is one statement, which has committed by then; on SQLite it has not.
    Death("after_claim", 1, {COMPLETED: 0, EFFECTS: 0}),
    Death("after_claim_commit", 1, {RUNNING: -1, COMPLETED: 0}),
    Death("after_finish_statement", 1, IN_TRANSACTION),
    Death("handler_before_writes", 2, IN_TRANSACTION),
    Death("handler_after_writes", 1, IN_TRANSACTION),
    Death("after_outbox_row", 1, IN_TRANSACTION),
    Death("before_commit", 1, IN_TRANSACTION),
    Death("after_commit", 1, {RUNNING: -1, COMPLETED: -1, MESSAGES: -1}),
    Death("before_relay_commit", 1, {MESSAGES: -1, DELIVERIES: 0}),
    Death("after_delivery_claim", 1, {SENDING: -1, DELIVERED: 0}),
    Death("before_send", 3, {SENDING: -1, DELIVERED: 0}, has_sent=True),
    Death("after_send", 1, {SENDING: -1, DELIVERED: 0}, has_sent=True),
    Death("before_delivery_recorded", 1, {SENDING: -1, DELIVERED: 0}, has_sent=True),
    Death("before_record_commit", 1, {SENDING: -1, ATTEMPTS: 0}, has_sent=True),
    Death("after_record_commit", 1, {ATTEMPTS: -1}, has_sent=True),
]


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: f"{death.failpoint}-{death.hit}")
async def test_a_worker_killed_at_any_step_loses_and_repeats_nothing(
    death: Death, database_url: str, make_world: MakeWorld
) -> None:
    world = await make_world(database_url)
    await world.enqueue()
    orders = world.orders(
        failpoint=death.failpoint, hit=death.hit, runs_scheduler=False, is_short_leased=True
    )
    with WorkerProcess(orders) as doomed:
        doomed.go()
        assert doomed.exit_code() == KILLED
    for statement, expected in death.left.items():
        found = await world.count(statement)
        assert found == expected or (expected < 0 < found), statement
    left = await world.count(RUNNING), await world.count(SENDING)
    before = await world.count(RESCUED), await world.count(RESCUED_DELIVERIES)
    assert death.has_sent or world.received().received == 0
    with WorkerProcess(world.orders()) as healthy:
        healthy.go()
        await world.settle()
        assert healthy.stop().lost == 0
    after = await world.count(RESCUED), await world.count(RESCUED_DELIVERIES)
    for rescued_before, leased, rescued in zip(before, left, after, strict=True):
        # On a slow machine the short leases of the doomed may have run out while it lived.
        assert max(rescued_before, leased) <= rescued <= rescued_before + leased
    await world.check(may_repeat_deliveries=death.has_sent)


@pytest.mark.parametrize("hit", [1, 2])
async def test_a_scheduler_killed_in_a_tick_fires_everything_once(
    hit: int, database_url: str, make_world: MakeWorld
) -> None:
    world = await make_world(database_url)
    with WorkerProcess(world.orders(failpoint="in_tick", hit=hit, is_short_leased=True)) as doomed:
        doomed.go()
        assert doomed.exit_code() == KILLED
    fires, fired = await world.count("SELECT count(*) FROM cron_fires"), "name LIKE 'billing.run_%'"
    assert await world.count(f"SELECT count(*) FROM jobs WHERE {fired}") == fires < world.fires
    assert world.received().received == 0
    with WorkerProcess(world.orders()) as healthy:
        healthy.go()
        await world.settle()
    await world.check()


async def test_the_worker_that_recovers_may_be_killed_too(database_url: str, make_world: MakeWorld) -> None:
    world = await make_world(database_url)
    for failpoint in ("in_tick", "before_commit", "after_claim_commit", "after_outbox_row", "after_send"):
        with WorkerProcess(world.orders(failpoint=failpoint, is_short_leased=True)) as doomed:
            doomed.go()
            assert doomed.exit_code() == KILLED, failpoint
    with WorkerProcess(world.orders()) as healthy:
        healthy.go()
        await world.settle()
    await world.check(may_repeat_deliveries=True)
