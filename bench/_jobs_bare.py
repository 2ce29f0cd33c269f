"""The ceiling for ``bench/jobs.py``: bare asyncpg loops with fences, over our own table and its indexes.

``batch``: one statement completes the last hundred and claims the next. ``job``: per job BEGIN, the fenced
completion, the ledger row, COMMIT, on eight connections, with claims of a hundred shared out among them.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
from _jobs_peer import Arrivals, Peer, main, postgres_url

_BATCH = 100
_AT_ONCE = {"batch": 2, "job": 8}
_CLAIM = """
    UPDATE jobs SET state = 'running', attempt = attempt + 1, lease_id = $1,
           lease_until = clock_timestamp() + interval '30 seconds'
    WHERE id = ANY(ARRAY(
        SELECT id FROM jobs WHERE state = 'available' AND run_at <= $2 ORDER BY priority, run_at, id
        LIMIT $3 FOR UPDATE SKIP LOCKED))
    RETURNING id, name, payload"""
_COMPLETE = """
    UPDATE jobs SET state = 'completed', finished_at = $2, lease_id = NULL, lease_until = NULL
    WHERE id = ANY($3::text[]) AND lease_id = $1"""
_FUSED = f"""
    WITH completed AS (
        UPDATE jobs SET state = 'completed', finished_at = $2, lease_id = NULL, lease_until = NULL
        WHERE id = ANY($4::text[]) AND lease_id = $5 RETURNING id)
    {_CLAIM}"""
_LEDGER = "INSERT INTO ledger (job_id, amount) VALUES ($1, $2)"


class Bare(Peer):
    async def work(self, arrivals: Arrivals, stop: asyncio.Event) -> None:
        handler = self.options.handler
        pool = await asyncpg.create_pool(postgres_url(self.url), min_size=10, max_size=10)
        claimed: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        loops = [
            self._fused(pool, arrivals) if handler == "batch" else self._singly(pool, claimed, arrivals)
            for _ in range(_AT_ONCE[handler])
        ]
        working = asyncio.gather(*loops)
        await stop.wait()
        working.cancel()
        await asyncio.wait({working})
        pool.terminate()

    async def _fused(self, pool: Any, arrivals: Arrivals) -> None:
        async with pool.acquire() as connection:
            statement = await connection.prepare(_FUSED)
            held: list[str] = []
            lease = ""
            while True:
                last, lease = lease, str(uuid.uuid4())
                rows = await statement.fetch(lease, datetime.now(UTC), _BATCH, held, last)
                for row in rows:
                    arrivals.add(json.loads(row["payload"]))
                held = [row["id"] for row in rows]
                if not held:
                    return

    async def _singly(self, pool: Any, claimed: asyncio.Queue[tuple[str, Any]], arrivals: Arrivals) -> None:
        async with pool.acquire() as connection:
            claim = await connection.prepare(_CLAIM)
            complete = await connection.prepare(_COMPLETE)
            write = await connection.prepare(_LEDGER)
            while True:
                if claimed.empty():
                    lease = str(uuid.uuid4())
                    for row in await claim.fetch(lease, datetime.now(UTC), _BATCH):
                        claimed.put_nowait((lease, row))
                    if claimed.empty():
                        return
                lease, row = claimed.get_nowait()
                async with connection.transaction():
                    done = await complete.fetch(lease, datetime.now(UTC), [row["id"]])
                    assert not done
                    payload = json.loads(row["payload"])
                    arrivals.add(payload)
                    await write.fetch(row["id"], payload["n"])


if __name__ == "__main__":
    main(Bare)
