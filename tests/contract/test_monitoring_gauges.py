"""The gauges that a scrape reads from the database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.clock import FixedClock
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs import JobRequest, SqlJobQueue
from svc_infra.jobs.cron import CronSchedule
from svc_infra.jobs.pausing import pause_queue
from svc_infra.jobs.schedule_store import SqlScheduleStore
from svc_infra.jobs.scheduler import Schedule
from svc_infra.monitoring.gauges import GAUGE_HELP, DatabaseGauges

Sessions = async_sessionmaker[AsyncSession]
NOW = datetime(2025, 1, 1, 12, tzinfo=UTC)
HOURLY = Schedule("hourly", CronSchedule("0 * * * *", "UTC"), "n")


async def scraped(gauges: DatabaseGauges) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(gauges)
    text = await asyncio.to_thread(generate_latest, registry)
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def test_they_say_what_waits_and_since_when(session_factory: Sessions) -> None:
    clock = FixedClock(NOW)
    queue = SqlJobQueue(session_factory, clock=clock)
    store = SqlScheduleStore(session_factory)
    await store.start({"hourly": NOW - timedelta(hours=2)}, now=NOW)
    async with session_factory.begin() as session:
        due = [JobRequest("n", run_at=NOW - timedelta(seconds=90)), JobRequest("n")]
        await queue.enqueue_many(session, [*due, JobRequest("n", run_at=NOW + timedelta(days=1))])
        await session.run_sync(lambda sync: pause_queue(sync, "idle", actor="a", now=NOW))
    gauges = DatabaseGauges(session_factory, clock, schedules=lambda: [HOURLY])
    found = await scraped(gauges)
    assert found['billing_queue_jobs{queue="default",state="due"}'] == 2
    assert found['billing_queue_jobs{queue="default",state="scheduled"}'] == 1
    assert found['billing_queue_oldest_due_seconds{queue="default"}'] == 90
    assert found['billing_queue_paused{queue="idle"}'] == 1
    assert found['billing_schedule_lag_seconds{schedule="hourly"}'] == 3_600
    assert found['billing_webhooks_waiting{reason="relay"}'] == 0
    assert found['billing_webhook_endpoints{state="disabled"}'] == 0
    assert found["billing_database_up"] == 1
    assert {name.partition("{")[0] for name in found} == GAUGE_HELP.keys()


async def test_figures_are_kept_for_a_few_seconds(session_factory: Sessions, engine: AsyncEngine) -> None:
    clock, seconds = FixedClock(NOW), 0.0
    queue = SqlJobQueue(session_factory, clock=clock)
    gauges = DatabaseGauges(session_factory, clock, monotonic=lambda: seconds)
    key = 'billing_queue_jobs{queue="default",state="due"}'
    assert key not in await scraped(gauges)
    async with session_factory.begin() as session:
        await queue.enqueue_many(session, [JobRequest("n")])
    assert key not in await scraped(gauges)
    seconds = 5.0
    assert (await scraped(gauges))[key] == 1


async def test_without_a_database_a_scrape_still_answers() -> None:
    away = make_engine("postgresql://user:canary@127.0.0.1:1/x")
    found = await scraped(DatabaseGauges(make_session_factory(away), FixedClock(NOW)))
    assert {name.partition("{")[0] for name in found} == {"billing_database_up", "billing_build_info"}
    assert found["billing_database_up"] == 0
    await away.dispose()
