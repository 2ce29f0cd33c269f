"""An application whose jobs say when they run, for tests that stop the worker meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.application import Application
from svc_infra.cli import run
from svc_infra.jobs import Job, SqlJobQueue

# The tests signal again as soon as the worker says that it stops, and mean it.
run.SAME_SIGNAL_SECONDS = 0.0

app = Application()


@app.handlers.plain("scenario.ends")
async def ends(job: Job) -> None:
    """End as soon as something is written to the named pipe of the payload."""
    print(job.name, flush=True)
    await asyncio.to_thread(Path(job.payload["pipe"]).read_bytes)


@app.handlers.plain("scenario.hangs")
async def hangs(job: Job) -> None:
    """Never end."""
    print(job.name, flush=True)
    await asyncio.Event().wait()


@app.handlers.job("scenario.writes_and_hangs")
async def writes_and_hangs(job: Job, session: AsyncSession) -> None:
    """Write a job that must not stay, and never end."""
    SqlJobQueue(lambda: session).bind(session).enqueue("scenario.must_not_stay")
    await session.flush()
    print(job.name, flush=True)
    await asyncio.Event().wait()
