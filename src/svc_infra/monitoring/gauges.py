"""What waits, as metrics: read from the database when somebody scrapes, at most every few seconds.

Every worker answers with the same figures, because they are the database's: take the ``max`` of them.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import datetime
from typing import Any

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra import __version__
from svc_infra.clock import Clock
from svc_infra.db.readiness import DATABASE_ERRORS
from svc_infra.db.session import begin_reading
from svc_infra.jobs.overview import overview
from svc_infra.jobs.pausing import list_schedules
from svc_infra.jobs.scheduler import Schedule
from svc_infra.webhooks.backlog import count_endpoints, measure_backlog

log = structlog.get_logger(__name__)

_KEPT_SECONDS = 5.0
_ANSWER_SECONDS = 4.0

GAUGE_HELP: dict[str, tuple[tuple[str, ...], str]] = {
    "billing_queue_jobs": (
        ("queue", "state"),
        "Unfinished jobs of a queue: due, scheduled for later, or running.",
    ),
    "billing_queue_oldest_due_seconds": (
        ("queue",),
        "For how long the oldest due job of a queue has waited.",
    ),
    "billing_queue_paused": (("queue",), "1 while a queue is paused."),
    "billing_schedule_lag_seconds": (("schedule",), "For how long the next fire of a schedule has been due."),
    "billing_webhooks_waiting": (("reason",), "Messages and deliveries that wait, by what for."),
    "billing_webhooks_oldest_seconds": (("reason",), "For how long the oldest of them has waited."),
    "billing_webhook_endpoints": (("state",), "Endpoints: enabled, paused while they fail, or disabled."),
    "billing_database_up": ((), "1 if the database answered this scrape."),
    "billing_build_info": (("version", "python"), "1, labelled with the versions of this process."),
}
"""Every gauge here: its labels and its meaning."""

_Sample = tuple[str, dict[str, str], float]


class DatabaseGauges(Collector):
    """Collects the gauges in the event loop that owns the engine, asked from the thread that scrapes.

    ``schedules`` returns those whose lag is wanted. A database that does not answer leaves only
    ``billing_database_up`` (0) and ``billing_build_info``.
    """

    def __init__(
        self,
        session_factory: async_sessionmaker[AsyncSession],
        clock: Clock,
        *,
        schedules: Callable[[], Sequence[Schedule]] = tuple,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session_factory = session_factory
        self._clock = clock
        self._schedules = schedules
        self._monotonic = monotonic
        self._loop = asyncio.get_running_loop()
        self._kept: tuple[float, list[_Sample]] | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges; called in the thread of a scrape."""
        samples = self._recent()
        families: dict[str, GaugeMetricFamily] = {}
        for name, labels, value in [*(samples or ()), *_of_process(is_up=samples is not None)]:
            names, meaning = GAUGE_HELP[name]
            if name not in families:
                families[name] = GaugeMetricFamily(name, meaning, labels=names)
            families[name].add_metric([labels[each] for each in names], value)
        yield from families.values()

    async def measure(self) -> list[_Sample]:
        """Read the figures of the database; called in the event loop."""
        now = self._clock.now()
        async with self._session_factory() as session:
            await begin_reading(session)
            return await session.run_sync(self._read, now)

    def _read(self, session: Session, now: datetime) -> list[_Sample]:
        return [*_jobs(session, now), *self._lags(session, now), *_webhooks(session, now)]

    def _lags(self, session: Session, now: datetime) -> Iterator[_Sample]:
        stored = {schedule.name: schedule for schedule in list_schedules(session)}
        for schedule in self._schedules():
            known = stored.get(schedule.name)
            if known is None or known.paused_at is not None:
                continue
            due = next(schedule.cron.fires_between(known.fired_until, now), None)
            lag = 0.0 if due is None else (now - due).total_seconds()
            yield "billing_schedule_lag_seconds", {"schedule": schedule.name}, lag

    def _recent(self) -> list[_Sample] | None:
        now = self._monotonic()
        if self._kept is not None and now - self._kept[0] < _KEPT_SECONDS:
            return self._kept[1]
        samples = self._in_loop(self.measure())
        self._kept = None if samples is None else (now, samples)
        return samples

    def _in_loop(self, work: Coroutine[Any, Any, list[_Sample]]) -> list[_Sample] | None:
        asked = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return asked.result(timeout=_ANSWER_SECONDS)
        except FutureTimeout:
            asked.cancel()
        except DATABASE_ERRORS as error:
            log.warning("monitoring.database_away", error=type(error).__name__)
        return None


def _jobs(session: Session, now: datetime) -> Iterator[_Sample]:
    for queue in overview(session, now=now).queues:
        for state, count in (
            ("due", queue.due),
            ("scheduled", queue.scheduled),
            ("running", queue.running),
        ):
            yield "billing_queue_jobs", {"queue": queue.name, "state": state}, count
        oldest = queue.oldest_due_at
        waited = 0.0 if oldest is None else max((now - oldest).total_seconds(), 0.0)
        yield "billing_queue_oldest_due_seconds", {"queue": queue.name}, waited
        yield "billing_queue_paused", {"queue": queue.name}, float(queue.paused_at is not None)


def _webhooks(session: Session, now: datetime) -> Iterator[_Sample]:
    for reason, waiting in measure_backlog(session, now=now).waiting.items():
        labels = {"reason": reason.value}
        yield "billing_webhooks_waiting", labels, waiting.count
        yield "billing_webhooks_oldest_seconds", labels, waiting.age_seconds(now)
    for state, count in count_endpoints(session, now=now).items():
        yield "billing_webhook_endpoints", {"state": state}, count


def _of_process(*, is_up: bool) -> Iterator[_Sample]:
    yield "billing_database_up", {}, float(is_up)
    versions = {"version": __version__, "python": platform.python_version()}
    yield "billing_build_info", versions, 1.0
