"""SIGTERM at every named place of a worker's life: it ends in order, and no lease has to run out."""

from __future__ import annotations

import signal

import pytest

from tests.scenarios.conftest import MakeWorld
from tests.scenarios.crash_worker import WorkerProcess

PLACES = [
    "in_tick",
    "after_claim",
    "after_claim_commit",
    "after_finish_statement",
    "before_commit",
    "after_commit",
    "before_send",
    "after_send",
]


@pytest.mark.postgres_only
@pytest.mark.parametrize("place", PLACES)
async def test_a_worker_told_to_stop_at_any_step_leaves_no_lease_behind(
    place: str, database_url: str, make_world: MakeWorld
) -> None:
    world = await make_world(database_url)
    with WorkerProcess(world.orders(failpoint=place, signal=signal.SIGTERM)) as worker:
        worker.go()
        assert worker.exit_code() == 0
    for leased in ("jobs WHERE state = 'running'", "webhook_deliveries WHERE state = 'sending'"):
        assert await world.count(f"SELECT count(*) FROM {leased}") == 0, leased
    with WorkerProcess(world.orders()) as other:
        other.go()
        await world.settle()
        assert other.stop().lost == 0
    for table in ("jobs", "webhook_deliveries"):
        assert await world.count(f"SELECT count(*) FROM {table} WHERE rescues > 0 OR attempt > 1") == 0
    await world.check()
