"""Answering the operator's tools beside whatever a process does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from prometheus_client import REGISTRY
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.clock import SystemClock
from svc_infra.config import MonitoringSettings
from svc_infra.db.readiness import why_not_ready
from svc_infra.db.session import make_session_factory
from svc_infra.jobs.scheduler import Schedule
from svc_infra.monitoring.gauges import DatabaseGauges
from svc_infra.monitoring.health import Health
from svc_infra.monitoring.server import MonitoringServer


@asynccontextmanager
async def monitored(
    monitoring: MonitoringSettings,
    engine: AsyncEngine,
    stop: asyncio.Event,
    *,
    keeps_leases: Callable[[], bool] = lambda: True,
    schedules: Callable[[], Sequence[Schedule]] = tuple,
    index: int = 0,
) -> AsyncIterator[None]:
    """Answer on ``monitoring.port`` plus ``index``, if the settings ask for it, until ``stop`` is set."""
    if not monitoring.port:
        yield
        return
    health = Health(lambda: why_not_ready(engine), keeps_leases=keeps_leases)
    gauges = DatabaseGauges(make_session_factory(engine), SystemClock(), schedules=schedules)
    REGISTRY.register(gauges)
    server = MonitoringServer(health, host=monitoring.host, port=monitoring.port + index)
    ticking = asyncio.create_task(health.run(stop))
    with server:
        yield
    await ticking
