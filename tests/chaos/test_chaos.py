"""The short form of ``make chaos``: every kind of act at least once, within seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import Chaos, Plan
from tests.chaos.servers import can_replicate

# Whether a worker that was paused has something to write when it wakes is a matter of luck: three tries.
SEEDS = (7, 8, 9)


@pytest.mark.timeout(360)
async def test_workers_and_databases_that_come_and_go_lose_and_repeat_nothing(tmp_path: Path) -> None:
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        folder.mkdir()
        report = await Chaos(Plan(seconds=8, lease_seconds=1.0, pause_seconds=0.3, seed=seed), folder).run()
        assert report.faults() == [], report.lines()
        if report.stale_offered:
            break
    assert report.stale_offered > 0, "nobody tried to write without a lease, so nothing was shown"
    assert report.accepted > 100
    assert report.rescued > 0
    acts = set(report.acts)
    assert {"kill -9 of a worker", "pause of two leases", "stop of a worker", "fast restart"} <= acts
    assert {"immediate restart", "storm of pg_terminate_backend"} <= acts
    if not can_replicate():
        pytest.skip("no promotion was shown: the server binaries have no pg_basebackup")
    assert report.acts["promotion"] == 1
