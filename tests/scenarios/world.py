"""A small customer base with a month of usage, and what must be true of it in the end, whatever died."""

from __future__ import annotations

import asyncio
import csv
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from time import monotonic
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.jobs import enqueue_aggregate_daily, enqueue_generate_monthly_invoice
from svc_infra.billing.models import Invoice, UsageAggregate
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.billing.usage_file import read_usage
from svc_infra.billing.usage_import import UsageImport
from svc_infra.clock import FixedClock
from svc_infra.config import Settings
from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.jobs.models import CronFireRow, JobRow
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.runtime import default_schedules
from svc_infra.simulation.oracle import Oracle
from svc_infra.simulation.receiver import ReceiverProcess, ReceiverStats
from svc_infra.simulation.reconciliation import reconcile
from svc_infra.webhooks.endpoints import add_endpoint
from svc_infra.webhooks.models import DeliveryRow
from tests.scenarios.crash_worker import DEADLINE_SECONDS, Orders

CATALOG = Path(__file__).resolve().parents[2] / "config" / "catalog.toml"
METRIC = "cds"
MONTH_START = datetime(2025, 1, 1, tzinfo=UTC)
MONTH_END = datetime(2025, 2, 1, tzinfo=UTC)
SCHEDULES_START_AT = MONTH_END - timedelta(hours=1)
NOW = MONTH_END + timedelta(days=1, minutes=20)
"""The business time at which every world begins: two days have fired, and so has the month."""

_OPEN = text(
    "SELECT (SELECT count(*) FROM cron_fires) AS fires,"
    " (SELECT count(*) FROM jobs WHERE state IN ('available', 'running')) AS jobs,"
    " (SELECT count(*) FROM outbox_messages WHERE state = 'pending') AS messages,"
    " (SELECT count(*) FROM webhook_deliveries WHERE state IN ('pending', 'sending')) AS deliveries"
)


@dataclass(frozen=True)
class Endpoint:
    """The receiver, and the path and secret under which it takes webhooks."""

    receiver: ReceiverProcess
    path: str
    secret: str


class World:
    """The customer base of one test, on a database of its own. Make one with ``World.make``."""

    def __init__(self, database_url: str, folder: Path, endpoint: Endpoint) -> None:
        self.database_url = database_url
        self.usage = folder / "usage.csv"
        self.log = folder / "worker.log"
        self.totals: dict[tuple[str, str], Decimal] = {}
        self._endpoint = endpoint
        self._shift = NOW - datetime.now(UTC)
        # Without a pool: between two looks the server may have been killed.
        self.engine = make_engine(database_url, behind_transaction_pooler=True)
        self.session_factory = make_session_factory(self.engine)
        self._before = endpoint.receiver.stats()

    @classmethod
    async def make(
        cls, database_url: str, folder: Path, endpoint: Endpoint, *, tenants: int, days: int
    ) -> World:
        """Apply the catalog, import two events a day for each tenant, subscribe all, add the endpoint."""
        world = cls(database_url, folder, endpoint)
        world._write_usage(tenants, days)
        catalog = parse_catalog(CATALOG.read_text(encoding="utf-8"), str(CATALOG))
        plan = catalog.default_plan
        assert plan is not None
        subscriptions = [NewSubscription(tenant_id, plan.key, MONTH_START) for tenant_id in world._tenants()]
        async with world.session_factory.begin() as session:
            await session.run_sync(lambda sync: apply_catalog(sync, catalog, now=NOW))
            await session.run_sync(subscribe_many, subscriptions, now=NOW)
            url = endpoint.receiver.url(endpoint.path)
            await session.run_sync(
                lambda sync: add_endpoint(sync, url=url, topics=["*"], secret=endpoint.secret)
            )
        with world.usage.open("rb") as stream:
            lines = read_usage(stream, "usage.csv")
            await UsageImport(world.session_factory, lines, name="usage.csv").run()
        return world

    @property
    def messages(self) -> int:
        """How many messages there must be in the end: one an aggregate, one an invoice."""
        return len(self.totals) + len(self._tenants())

    @property
    def fires(self) -> int:
        """How many fires of cron are due."""
        count = 0
        for schedule in default_schedules(Settings()):
            fire_at = schedule.cron.next_fire(SCHEDULES_START_AT)
            while fire_at <= NOW:
                count += 1
                fire_at = schedule.cron.next_fire(fire_at)
        assert count >= 3
        return count

    def orders(self, **changes: Any) -> Orders:
        """The orders of a worker for this world."""
        return Orders(self.database_url, self._shift, SCHEDULES_START_AT, self.log, **changes)

    async def enqueue(self) -> None:
        """Enqueue what cron would: all aggregations, all invoices."""
        queue = SqlJobQueue(self.session_factory, clock=FixedClock(NOW))
        async with self.session_factory.begin() as session:
            bound = queue.bind(session)
            for tenant_id, day in self.totals:
                day_start = datetime.fromisoformat(day)
                enqueue_aggregate_daily(bound, tenant_id=tenant_id, metric=METRIC, day_start=day_start)
            for tenant_id in self._tenants():
                enqueue_generate_monthly_invoice(
                    bound, tenant_id=tenant_id, period_start=MONTH_START, period_end=MONTH_END, currency="usd"
                )

    async def settle(self, *, deliveries: int = 0) -> None:
        """Wait until everything has fired and nothing is open but so many deliveries."""
        seen: tuple[int, ...] = ()

        async def is_settled() -> bool:
            nonlocal seen
            seen = tuple(await self._one(_OPEN))
            return seen == (self.fires, 0, 0, deliveries)

        await until(is_settled, what=lambda: f"fires and open jobs, messages, deliveries are {seen}")

    async def count(self, statement: str) -> int:
        """The number that a statement counts."""
        return int((await self._one(text(statement)))[0])

    def received(self) -> ReceiverStats:
        """What the receiver got from this world."""
        now, before = self._endpoint.receiver.stats(), self._before
        names = ("connections", "received", "verified", "failed", "distinct_ids", "duplicates")
        since = {name: getattr(now, name) - getattr(before, name) for name in names}
        return ReceiverStats(**since, changed_bodies=now.changed_bodies - before.changed_bodies)

    async def check(self, *, may_repeat_deliveries: bool = False) -> None:
        """Assert what must hold in the end."""
        async with AsyncSession(self.engine) as session:
            await self._check_jobs(session)
            await self._check_invoices(session)
            await self._check_messages(session)
        received = self.received()
        assert (received.distinct_ids, received.failed, received.changed_bodies) == (self.messages, 0, 0)
        assert may_repeat_deliveries or received.duplicates == 0

    async def close(self) -> None:
        await self.engine.dispose()

    async def _check_jobs(self, session: AsyncSession) -> None:
        states = await session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
        assert {state for state, _ in states} == {"completed"}
        fires = (await session.execute(select(CronFireRow.schedule, CronFireRow.fire_at))).all()
        assert len(fires) == len(set(fires)) == self.fires
        runs = select(JobRow.name, JobRow.payload).where(JobRow.name.like("billing.run_%"))
        fired = [(name, payload["fire_at"]) for name, payload in await session.execute(runs)]
        assert len(fired) == len(set(fired)) == self.fires

    async def _check_invoices(self, session: AsyncSession) -> None:
        oracle = Oracle(self.usage, CATALOG)
        proof = await session.run_sync(reconcile, oracle, lambda _share: None)
        assert (proof.differences, proof.compared) == ((), len(self._tenants()))
        stored = await session.execute(
            select(UsageAggregate.tenant_id, UsageAggregate.period_start, UsageAggregate.total)
        )
        assert {(tenant_id, start.isoformat()): total for tenant_id, start, total in stored} == self.totals

    async def _check_messages(self, session: AsyncSession) -> None:
        bodies = [json.loads(body) for body in await session.scalars(select(OutboxMessageRow.body))]
        data = {topic: [each["data"] for each in bodies if each["type"] == topic] for topic in _TOPICS}
        assert sum(map(len, data.values())) == len(bodies) == self.messages
        announced = Counter(
            (each["tenant_id"], datetime.fromisoformat(each["day_start"]).isoformat(), Decimal(each["total"]))
            for each in data["billing.usage_aggregated"]
        )
        assert announced == Counter((*key, total) for key, total in self.totals.items())
        created = Counter(each["invoice_id"] for each in data["billing.invoice.created"])
        assert created == Counter(await session.scalars(select(Invoice.id)))
        ids = set(await session.scalars(select(OutboxMessageRow.id)))
        deliveries = (await session.execute(select(DeliveryRow.message_id, DeliveryRow.state))).all()
        assert sorted(deliveries) == sorted((message_id, "delivered") for message_id in ids)

    async def _one(self, statement: Any) -> Any:
        async with self.session_factory() as session:
            return (await session.execute(statement)).one()

    def _tenants(self) -> list[str]:
        return sorted({tenant_id for tenant_id, _ in self.totals})

    def _write_usage(self, tenants: int, days: int) -> None:
        with self.usage.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["tenant_id", "metric", "amount", "at", "idempotency_key"])
            for number in range(tenants * days * 2):
                tenant, rest = divmod(number, days * 2)
                at = MONTH_START + timedelta(days=rest // 2, hours=rest % 2, minutes=tenant % 60)
                amount = Decimal(number % 7) + Decimal("0.125") * (number % 3 + 1)
                writer.writerow([f"t{tenant:03}", METRIC, amount, at.isoformat(), f"key-{number}"])
                day = (f"t{tenant:03}", (MONTH_START + timedelta(days=rest // 2)).isoformat())
                self.totals[day] = self.totals.get(day, Decimal(0)) + amount


_TOPICS = ("billing.usage_aggregated", "billing.invoice.created")


async def until(is_true: Callable[[], Awaitable[bool]], *, what: Callable[[], str]) -> None:
    """Wait until something holds, looking again and again; fail when the deadline has passed."""
    give_up_at = monotonic() + DEADLINE_SECONDS
    while not await is_true():
        assert monotonic() < give_up_at, f"after {DEADLINE_SECONDS:g} s: {what()}"
        await asyncio.sleep(0.02)
