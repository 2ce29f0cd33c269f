"""Our own queue for ``bench/jobs.py``: batch, single and plain handlers, with and without a ledger row."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any

from _jobs_peer import Arrivals, Peer, main
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.dml import Insert

from svc_infra.cli.context import collect_garbage_rarely
from svc_infra.db.migration import migrate
from svc_infra.db.rowset import Rowset
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs.handlers import Handlers
from svc_infra.jobs.job import Job, JobRequest
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.jobs.worker import Worker
from svc_infra.logs import configure_logging

NAME = "bench.job"
ledger = Table(
    "ledger", MetaData(), Column("job_id", String(40), primary_key=True), Column("amount", Integer)
)
_LINES = Rowset("lines", job_id=String(40), amount=Integer)
_ONE_LINE = insert(ledger)


@cache
def _insert_lines(dialect: str) -> Insert:
    lines = _LINES.table(dialect)
    return insert(ledger).from_select(["job_id", "amount"], select(lines.c.job_id, lines.c.amount))


class Ours(Peer):
    def __init__(self, url: str, options: argparse.Namespace) -> None:
        super().__init__(url, options)
        configure_logging("warning")
        collect_garbage_rarely()  # as worker.py run does
        self.engine = make_engine(url)
        self.sessions = make_session_factory(self.engine)
        self.queue = SqlJobQueue(self.sessions)

    async def install(self) -> None:
        await migrate(self.engine)
        async with self.engine.begin() as connection:
            await connection.run_sync(ledger.create)
        await self.engine.dispose()

    async def open(self) -> None:
        async with self.sessions() as session:
            await session.connection()

    async def close(self) -> None:
        await self.engine.dispose()

    async def bulk(self, payloads: list[dict[str, Any]]) -> None:
        requests = [JobRequest(NAME, payload) for payload in payloads]
        async with self.sessions.begin() as session:
            await self.queue.enqueue_many(session, requests)

    async def one(self, payload: dict[str, Any]) -> None:
        await self.queue.enqueue_alone(NAME, payload)

    async def work(self, arrivals: Arrivals, stop: asyncio.Event) -> None:
        handlers = Handlers(self.sessions)
        has_ledger = self.options.has_ledger

        async def batch(jobs: Sequence[Job], session: AsyncSession) -> None:
            if has_ledger:
                dialect = session.sync_session.get_bind().dialect.name
                lines = [(job.id, job.payload["n"]) for job in jobs]
                await session.execute(_insert_lines(dialect), _LINES.parameters(dialect, lines))
                arrivals.add_many(len(jobs))
            else:
                for job in jobs:
                    arrivals.add(job.payload)

        async def single(job: Job, session: AsyncSession) -> None:
            arrivals.add(job.payload)
            if has_ledger:
                await session.execute(_ONE_LINE, {"job_id": job.id, "amount": job.payload["n"]})

        async def plain(job: Job) -> None:
            arrivals.add(job.payload)

        match self.options.handler:
            case "batch":
                handlers.add_batch(NAME, batch)
            case "job":
                handlers.add(NAME, single)
            case _:
                handlers.add_plain(NAME, plain)
        concurrency = 8 if self.options.handler == "job" and self.engine.dialect.name != "sqlite" else None
        await Worker(self.queue, handlers, concurrency=concurrency).run(stop)
        await self.engine.dispose()


if __name__ == "__main__":
    main(Ours)
