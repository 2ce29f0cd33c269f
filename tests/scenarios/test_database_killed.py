"""kill -9 of PostgreSQL under load: the worker waits for it without hammering, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from svc_infra.db.schema import create_schema
from svc_infra.db.session import make_engine
from svc_infra.testing import PostgresServer
from tests.scenarios.conftest import MakeWorld
from tests.scenarios.crash_worker import WorkerProcess
from tests.scenarios.world import until

FAILURES_NOTICED = 3
MOST_FAILURES = 15
"""Of each loop: with waits that double from a quarter of a second, an outage of many seconds has fewer."""


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of the test's own, to be killed."""
    with PostgresServer() as server:
        yield server


def failures(log: Path) -> Counter[str]:
    """How often each of the worker's loops has failed so far."""
    lines = [
        json.loads(line) for line in log.read_text(encoding="utf-8").splitlines(True) if line[-1] == "\n"
    ]
    return Counter(line["loop"] for line in lines if line["event"] == "loop.failed")


@pytest.mark.parametrize("share", [0.0, 0.3], ids=["while-jobs-run", "while-messages-are-delivered"])
async def test_a_killed_database_loses_nothing_and_is_not_hammered(
    share: float, server: PostgresServer, make_world: MakeWorld
) -> None:
    url = server.url()
    engine = make_engine(url)
    await create_schema(engine)
    await engine.dispose()
    world = await make_world(url, tenants=40, days=20)
    with WorkerProcess(world.orders()) as worker:
        worker.go()

        async def is_under_load() -> bool:
            if share:
                return world.received().verified > share * world.messages
            return await world.count("SELECT count(*) FROM jobs WHERE state = 'running'") > 0

        await until(is_under_load, what=lambda: "the worker is not under load")
        server.kill()

        async def has_noticed() -> bool:
            return failures(world.log)["jobs.claim"] >= FAILURES_NOTICED

        await until(has_noticed, what=lambda: f"failures seen: {failures(world.log)}")
        await asyncio.to_thread(server.restart)
        await world.settle()
        worker.stop()
    await world.check(may_repeat_deliveries=True)
    assert max(failures(world.log).values()) <= MOST_FAILURES
