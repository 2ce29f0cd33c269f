"""``TestClock``: tenants billed in simulated time, by the worker's own wiring, in a throw-away database.

::

    async with TestClock(datetime(2025, 1, 1, tzinfo=UTC), catalog=CATALOG) as clock:
        await clock.subscribe("acme", "pro")
        await clock.record("acme", "calls", 1200)
        await clock.advance_to(datetime(2025, 2, 2, tzinfo=UTC))
        [invoice] = await clock.invoices("acme")
        assert invoice.total_amount == 4900
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from decimal import Decimal
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from svc_infra.application import Application
from svc_infra.billing.catalog import Catalog, parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.invoices import list_invoices
from svc_infra.billing.models import Invoice
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.billing.usage_event import quantity
from svc_infra.clock import FixedClock
from svc_infra.config import Settings
from svc_infra.db.schema import create_schema
from svc_infra.db.session import make_engine
from svc_infra.ids import new_id
from svc_infra.runtime import Runtime
from svc_infra.testing.simulated_time import SimulatedTime
from svc_infra.testing.webhooks import loopback_sender

_SUBSCRIBE_BATCH = 2_000


class TestClock:
    """Billing whose time stands still until it is advanced; everything due on the way is then done.

    Without a ``database_url`` (of an empty database that you throw away) it makes a temporary SQLite file.
    ``on_fire`` is told each instant at which a schedule fired.
    """

    __test__ = False  # pytest takes every class of a name like this for tests

    def __init__(
        self,
        start_at: datetime,
        *,
        catalog: str | Catalog | None = None,
        settings: Settings | None = None,
        application: Application | None = None,
        database_url: str | None = None,
        on_fire: Callable[[datetime], None] | None = None,
    ) -> None:
        self._clock = FixedClock(start_at)
        self._start_at = start_at
        self._catalog = parse_catalog(catalog) if isinstance(catalog, str) else catalog
        self._settings = settings or Settings()
        self._application = application
        self._database_url = database_url
        self._on_fire = on_fire
        self._opened = AsyncExitStack()

    @property
    def now(self) -> datetime:
        """The simulated instant."""
        return self._clock.now()

    async def __aenter__(self) -> TestClock:
        """Make the database and wire a worker to it."""
        url = self._database_url
        if url is None:
            folder = self._opened.enter_context(TemporaryDirectory(prefix="svc-clock-"))
            url = f"sqlite:///{folder}/clock.sqlite"
        engine = make_engine(url)
        self._opened.push_async_callback(engine.dispose)
        if self._database_url is None:
            # What is thrown away need not survive a power failure.
            event.listen(engine.sync_engine, "connect", _trust_the_machine)
        await create_schema(engine)
        sender = loopback_sender()
        self._opened.push_async_callback(sender.aclose)
        self.runtime = Runtime(
            self._settings,
            engine,
            sender,
            clock=self._clock,
            application=self._application,
            schedules_start_at=self._start_at,
        )
        self._opened.push_async_callback(self.runtime.aclose)
        self._time = SimulatedTime(self.runtime, self._clock, on_fire=self._on_fire)
        if self._catalog is not None:
            await self.do(apply_catalog, self._catalog, now=self._start_at)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Throw everything away."""
        await self._opened.aclose()

    async def advance_to(self, until: datetime) -> None:
        """Move to ``until``, doing on the way whatever the schedules, retries and jobs there ask for."""
        await self._time.advance_to(until)

    async def subscribe(self, tenant_id: str, plan_key: str, *, effective_at: datetime | None = None) -> None:
        """Subscribe a tenant, from now on unless given; the instant is a midnight of the tenant's zone."""
        await self.subscribe_many([NewSubscription(tenant_id, plan_key, effective_at or self.now)])

    async def subscribe_many(self, wanted: Sequence[NewSubscription]) -> None:
        """Subscribe many tenants."""
        for start in range(0, len(wanted), _SUBSCRIBE_BATCH):
            await self.do(subscribe_many, wanted[start : start + _SUBSCRIBE_BATCH], now=self.now)

    async def record(
        self,
        tenant_id: str,
        metric: str,
        amount: int | str | Decimal,
        *,
        at: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Record a quantity of a metric, now unless given."""
        key = idempotency_key or new_id()
        usage = NewUsage(tenant_id, metric, quantity(amount), at or self.now, key)
        await self.do(record_many, [usage], now=self.now)

    async def invoices(self, tenant_id: str | None = None) -> list[Invoice]:
        """The invoices made so far, by tenant and in the order they were made."""

        def read(session: Session) -> list[Invoice]:
            found: list[Invoice] = []
            after: tuple[str, str] | None = None
            while page := list_invoices(session, tenant_id=tenant_id, after=after, limit=1_000):
                found += page
                after = (page[-1].tenant_id, page[-1].id)
            return found

        result: list[Invoice] = await self.do(read)
        return result

    async def do(self, act: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call ``act(session, …)`` in a transaction of its own, as an application would."""
        async with self.runtime.session_factory.begin() as session:
            return await session.run_sync(act, *args, **options)


def _trust_the_machine(dbapi_connection: Any, _record: Any) -> None:
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA synchronous = OFF")
    cursor.execute("PRAGMA journal_mode = MEMORY")
    cursor.close()


def by_month(invoices: Iterable[Invoice]) -> dict[tuple[str, str], tuple[int, int]]:
    """How many invoices there are, and what they add up to in minor units, by (YYYY-MM, currency)."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for invoice in invoices:
        # The middle of a period lies in its month in every zone.
        middle = invoice.period_start + (invoice.period_end - invoice.period_start) / 2
        key = (f"{middle:%Y-%m}", invoice.currency)
        count, total = found.get(key, (0, 0))
        found[key] = (count + 1, total + invoice.total_amount)
    return dict(sorted(found.items()))
