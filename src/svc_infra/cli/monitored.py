"""Answering the operator's tools beside whatever a process does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.config import MonitoringSettings
from svc_infra.db.readiness import why_not_ready
from svc_infra.monitoring.health import Health
from svc_infra.monitoring.server import MonitoringServer


@asynccontextmanager
async def monitored(
    monitoring: MonitoringSettings,
    engine: AsyncEngine,
    stop: asyncio.Event,
    *,
    keeps_leases: Callable[[], bool] = lambda: True,
    index: int = 0,
) -> AsyncIterator[None]:
    """Answer on ``monitoring.port`` plus ``index``, if the settings ask for it, until ``stop`` is set."""
    if not monitoring.port:
        yield
        return
    health = Health(lambda: why_not_ready(engine), keeps_leases=keeps_leases)
    server = MonitoringServer(health, host=monitoring.host, port=monitoring.port + index)
    ticking = asyncio.create_task(health.run(stop))
    with server:
        yield
    await ticking
