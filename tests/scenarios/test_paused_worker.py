"""A worker that sleeps past its leases and wakes up: another did what it held, and it changes nothing.

On PostgreSQL only: whoever sleeps in a transaction on SQLite holds the one write lock of the file.
"""

from __future__ import annotations

import signal

import pytest

from tests.scenarios.conftest import MakeWorld
from tests.scenarios.crash_worker import WorkerProcess

HELD_JOBS = "SELECT count(*) FROM jobs WHERE state = 'running'"
REDONE_JOBS = "SELECT count(*) FROM jobs WHERE state = 'completed' AND attempt = 2 AND rescues = 1"
HELD_DELIVERIES = "SELECT count(*) FROM webhook_deliveries WHERE state = 'sending'"
REDONE_DELIVERIES = (
    "SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered' AND attempt = 2 AND rescues = 1"
)
ATTEMPTS = "SELECT count(*) FROM webhook_delivery_attempts WHERE outcome <> 'lease_expired'"


pytestmark = pytest.mark.postgres_only


async def test_jobs_finished_by_another_meanwhile_are_not_done_again(
    database_url: str, make_world: MakeWorld
) -> None:
    world = await make_world(database_url)
    await world.enqueue()
    orders = world.orders(
        failpoint="after_claim_commit", signal=signal.SIGSTOP, parts=("worker",), is_short_leased=True
    )
    with WorkerProcess(orders) as sleeper, WorkerProcess(world.orders()) as other:
        sleeper.go()
        sleeper.wait_for_sleep()
        held = await world.count(HELD_JOBS)
        other.go()
        await world.settle()
        assert await world.count(REDONE_JOBS) == held > 0
        sleeper.signal(signal.SIGCONT)
        report = sleeper.stop()
        assert (report.completed, report.lost) == (0, held)
    assert await world.count(REDONE_JOBS) == held
    await world.check()


@pytest.mark.parametrize("failpoint", ["before_send", "after_send"])
async def test_a_delivery_made_by_another_meanwhile_is_sent_again_at_most_as_the_same(
    failpoint: str, database_url: str, make_world: MakeWorld
) -> None:
    # Few enough to be claimed at once: no transaction is open when the sleeper falls asleep.
    world = await make_world(database_url, tenants=1, days=4)
    with WorkerProcess(world.orders(parts=("worker", "scheduler", "relay"))) as maker:
        maker.go()
        await world.settle(deliveries=world.messages)
        maker.stop()
    orders = world.orders(
        failpoint=failpoint, signal=signal.SIGSTOP, parts=("deliverer",), is_short_leased=True
    )
    with WorkerProcess(orders) as sleeper, WorkerProcess(world.orders()) as other:
        sleeper.go()
        sleeper.wait_for_sleep()
        held = await world.count(HELD_DELIVERIES)
        other.go()
        await world.settle()
        assert await world.count(REDONE_DELIVERIES) == held > 0
        sleeper.signal(signal.SIGCONT)
        report = sleeper.stop()
        assert report.delivered == 0 < report.lost_deliveries <= held
    assert await world.count(REDONE_DELIVERIES) == held
    assert await world.count(ATTEMPTS) == world.messages, "an attempt of the sleeper's was recorded"
    await world.check(may_repeat_deliveries=True)
