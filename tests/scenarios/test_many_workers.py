"""Two whole workers on one PostgreSQL: jobs, schedulers, relays and senders side by side bill as one does."""

from __future__ import annotations

import pytest

from tests.scenarios.conftest import MakeWorld
from tests.scenarios.crash_worker import WorkerProcess


@pytest.mark.postgres_only
async def test_two_workers_and_two_schedulers_bill_as_one_does(
    database_url: str, make_world: MakeWorld
) -> None:
    world = await make_world(database_url, tenants=40, days=15)
    # One batch in hand at a time, so that each leaves work to the other.
    orders = world.orders(concurrency=1)
    with WorkerProcess(orders) as one, WorkerProcess(orders) as other:
        one.go()
        other.go()
        await world.settle()
        reports = [one.stop(), other.stop()]
    await world.check()
    assert sum(report.completed for report in reports) == await world.count("SELECT count(*) FROM jobs")
    assert sum(report.delivered for report in reports) == world.messages
    assert {(report.lost, report.lost_deliveries) for report in reports} == {(0, 0)}
    assert all(report.delivered for report in reports), "only one of them did anything"
