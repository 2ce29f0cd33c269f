"""Two rows of ``bench/jobs.py`` about what piles up: waiting jobs, and what a long transaction may see."""

from __future__ import annotations

import asyncio
import statistics
import time

import asyncpg
from _common import note
from _jobs_ours import NAME
from _jobs_peer import postgres_url
from _jobs_systems import System, Workers, call, execute

from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs.sql import SqlJobQueue

# The ids are in the order of time, as ours are.
_FILL = f"""
    INSERT INTO jobs
        (id, name, queue, payload, priority, max_attempts, run_at, created_at, state, attempt, rescues)
    SELECT lpad(to_hex(n), 8, '0') || '-0000-7000-8000-' || left(md5(n::text), 12),
           '{NAME}', 'default', '{{"n": 1}}', 0, 20,
           now() - interval '1 hour' + n * interval '1 millisecond', now(), 'available', 0, 0
    FROM generate_series(1, %d) AS n"""
_CLAIMED = 100
_ROUND = 20_000


def claim_microseconds(url: str, *, waiting: int) -> float:
    """Fill the queue, and return what claiming costs for each job, in claims of a hundred."""
    execute(url, _FILL % waiting, "VACUUM ANALYZE jobs", "CHECKPOINT")
    return asyncio.run(_claim_all(url, claims=9))


async def _claim_all(url: str, *, claims: int) -> float:
    engine = make_engine(url)
    queue = SqlJobQueue(make_session_factory(engine))
    times = []
    for _ in range(claims):
        started = time.perf_counter()
        claimed = await queue.claim(_CLAIMED, names=[NAME])
        times.append(time.perf_counter() - started)
        assert len(claimed) == _CLAIMED
    await engine.dispose()
    # The first claim of a connection prepares its statement.
    return statistics.median(times[1:]) / _CLAIMED * 1e6


def rates_while_held(
    system: System, url: str, *, quiet_rounds: int, held_seconds: float
) -> tuple[float, float]:
    """Jobs a second of one worker, in rounds of enqueuing and draining: quiet, and at the end of a long hold.

    The long transaction has read something and then does nothing, so that no version of a row that was
    written since can be taken away.
    """
    workers = Workers(system, url, 1)
    workers.begin()
    done = 0

    def one_round() -> float:
        nonlocal done
        call(system, "bulk", url, "--jobs", str(_ROUND))
        # What was worked off while it was enqueued is not counted.
        before, started = workers.arrived(), time.perf_counter()
        done += _ROUND
        while workers.arrived() < done:
            time.sleep(0.001)
        return (done - before) / (time.perf_counter() - started)

    one_round()
    quiet = statistics.median(one_round() for _ in range(quiet_rounds))
    loop = asyncio.new_event_loop()
    holder = loop.run_until_complete(asyncpg.connect(postgres_url(url)))
    loop.run_until_complete(
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM jobs")
    )
    began, held = time.monotonic(), []
    while time.monotonic() - began < held_seconds or len(held) < 3:
        held.append(one_round())
        note(f"  held {time.monotonic() - began:,.0f} s: {held[-1]:,.0f} jobs/s (quiet {quiet:,.0f})")
    loop.run_until_complete(holder.close())
    loop.close()
    workers.stop()
    return quiet, statistics.median(held[-3:])
