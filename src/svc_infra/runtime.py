"""The composition root: settings in; queue, worker, scheduler, relay and sender out, wired together.

``worker.py run`` and the simulation use this one wiring with different clocks (docs/adr/0010).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.api.upkeep import ApiUpkeep
from svc_infra.application import Application
from svc_infra.billing import jobs as billing_jobs
from svc_infra.billing import runs
from svc_infra.billing.invoice_bounds import RunBound
from svc_infra.billing.provider import register_provider_sync
from svc_infra.billing.stripe_provider import StripeProvider
from svc_infra.billing.topics import billing_topics
from svc_infra.billing.usage_archive import UsageArchiver
from svc_infra.billing.usage_follower import UsageFollower
from svc_infra.clock import Clock, SystemClock
from svc_infra.config import Settings, WebhookSettings, WorkerSettings
from svc_infra.db.outbox import SqlOutboxStore
from svc_infra.db.session import make_session_factory
from svc_infra.exceptions import InvalidSettings
from svc_infra.jobs.handlers import Handlers
from svc_infra.jobs.job import JobState
from svc_infra.jobs.lookout import RARELY_SECONDS, Lookout
from svc_infra.jobs.maintenance import Maintenance
from svc_infra.jobs.schedule_store import SqlScheduleStore
from svc_infra.jobs.scheduler import Schedule, Scheduler
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.jobs.statements import any_due as jobs_due
from svc_infra.jobs.stored_schedules import added_schedules, make_schedule
from svc_infra.jobs.worker import Worker
from svc_infra.webhooks.catalogue import TopicCatalogue
from svc_infra.webhooks.deliverer import Deliverer
from svc_infra.webhooks.delivery import RetrySchedule
from svc_infra.webhooks.dialer import Dialer
from svc_infra.webhooks.due_deliveries import any_due as deliveries_due
from svc_infra.webhooks.egress import EgressProxy, ProxyDialer
from svc_infra.webhooks.endpoint_rules import endpoint_rules, key_ring
from svc_infra.webhooks.endpoints import SqlWebhookEndpoints
from svc_infra.webhooks.guard import PublicAddresses, UrlPolicy
from svc_infra.webhooks.operational import operational_topics
from svc_infra.webhooks.pool import ConnectionPool
from svc_infra.webhooks.relay import Relay, any_pending
from svc_infra.webhooks.retention import Retention
from svc_infra.webhooks.sealing import KeyRing
from svc_infra.webhooks.sending import Sender
from svc_infra.webhooks.service import WebhookService
from svc_infra.webhooks.transport import HttpSender
from svc_infra.webhooks.upkeep import WebhookUpkeep


class Runtime:
    """Everything that a worker process runs, on one database and one clock.

    The engine and the sender belong to the caller, who closes them; ``aclose`` closes what is its own.

    Raises:
        InvalidSettings: a setting cannot be used, or both the settings and the application name a provider.
    """

    def __init__(
        self,
        settings: Settings,
        engine: AsyncEngine,
        sender: Sender,
        *,
        clock: Clock | None = None,
        application: Application | None = None,
        schedules_start_at: datetime | None = None,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.clock: Clock = clock or SystemClock()
        self.session_factory = make_session_factory(engine)
        self.queue = SqlJobQueue(self.session_factory, clock=self.clock)
        application = application or Application()
        retry_schedule = RetrySchedule(settings.webhooks.retry_seconds)
        keys = key_ring(settings.webhooks)
        self.topics = catalogue(application)
        self.webhooks = WebhookService(
            outbox=SqlOutboxStore(),
            subs=SqlWebhookEndpoints(self.session_factory, rules=endpoint_rules(settings.webhooks)),
            clock=self.clock,
            sender=sender,
            schedule=retry_schedule,
            topics=self.topics,
            keys=keys,
        )
        self.deliverer = self._deliverer(sender, retry_schedule, keys)
        self.relay = Relay(
            self.session_factory,
            self.clock,
            poll_seconds=max(settings.webhooks.poll_seconds, RARELY_SECONDS),
            deliverer=self.deliverer,
            is_listening=not settings.database.behind_transaction_pooler,
        )
        self.webhook_upkeep = self._webhook_upkeep()
        self.api_upkeep = ApiUpkeep(self.session_factory, self.clock)
        self.usage_follower = UsageFollower(
            self.session_factory, self.clock, poll_seconds=settings.billing.aggregate_seconds
        )
        self.usage_archiver = UsageArchiver(
            self.session_factory, self.clock, after_days=settings.billing.archived_after_days
        )
        self._stripe = self._stripe_provider(application)
        self.handlers = self._handlers(application)
        self.worker = self._worker()
        self._lookouts = self._make_lookouts()
        self.scheduler = Scheduler(
            SqlScheduleStore(self.session_factory),
            [*default_schedules(settings), *application.schedules],
            clock=self.clock,
            start_at=schedules_start_at,
            added=self._added_schedules,
        )

    async def _added_schedules(self) -> list[Schedule]:
        async with self.session_factory() as session:
            return await session.run_sync(added_schedules)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set, then end each part gracefully."""
        async with asyncio.TaskGroup() as parts:
            for lookout in self._lookouts:
                parts.create_task(lookout.run(stop))
            parts.create_task(self.worker.run(stop))
            if self.settings.scheduler.is_enabled:
                parts.create_task(self.scheduler.run(stop, poll_seconds=self.settings.scheduler.poll_seconds))
            parts.create_task(self.relay.run(stop))
            parts.create_task(self.deliverer.run(stop))
            parts.create_task(self.webhook_upkeep.run(stop))
            parts.create_task(self.api_upkeep.run(stop))
            parts.create_task(self.usage_archiver.run(stop))
            parts.create_task(self.usage_follower.run(stop))

    async def drain(self) -> None:
        """Work until nothing is due: jobs make messages, messages make deliveries, and neither makes jobs.

        Raises:
            Exception: the database stayed away.
        """
        await self.worker.drain()
        # A delivery that ends for good may publish a message about itself.
        while await self.relay.drain() + await self.deliverer.drain():
            pass

    async def aclose(self) -> None:
        """Close the connections to the payment provider of the settings."""
        if self._stripe is not None:
            await self._stripe.aclose()

    def _stripe_provider(self, application: Application) -> StripeProvider | None:
        if self.settings.billing.provider == "none":
            return None
        if application.provider_sync is not None:
            raise InvalidSettings(
                f"billing.provider is {self.settings.billing.provider!r} and the application has a "
                "provider_sync: keep one of them"
            )
        stripe = self.settings.stripe
        return StripeProvider(
            self.session_factory,
            stripe.api_key.get_secret_value().strip(),
            base_url=stripe.base_url or None,
            days_until_due=stripe.days_until_due,
            timeout_seconds=stripe.timeout_seconds,
            clock=self.clock,
        )

    def _handlers(self, application: Application) -> Handlers:
        handlers = Handlers(self.session_factory, clock=self.clock)
        provider_sync = self._stripe or application.provider_sync
        billing = self.settings.billing
        billing_jobs.register(
            handlers,
            self.webhooks,
            clock=self.clock,
            has_provider=provider_sync is not None,
            bound=RunBound(billing.max_invoices_per_day, billing.max_lines_per_day),
        )
        if provider_sync is not None:
            register_provider_sync(handlers, self.session_factory, provider_sync)
        runs.register(handlers, clock=self.clock, default_currency=self.settings.billing.currency)
        handlers.include(application.handlers)
        return handlers

    def _deliverer(self, sender: Sender, schedule: RetrySchedule, keys: KeyRing | None) -> Deliverer:
        webhooks = self.settings.webhooks
        return Deliverer(
            self.session_factory,
            sender,
            self.clock,
            schedule=schedule,
            lease_seconds=webhooks.lease_seconds,
            send_seconds=webhooks.timeout_seconds,
            in_flight=webhooks.in_flight,
            per_endpoint=webhooks.in_flight_per_endpoint,
            poll_seconds=max(webhooks.poll_seconds, RARELY_SECONDS),
            keys=keys,
        )

    def _webhook_upkeep(self) -> WebhookUpkeep:
        webhooks = self.settings.webhooks
        return WebhookUpkeep(
            self.session_factory,
            self.clock,
            retention=Retention(
                delivered=timedelta(days=webhooks.delivered_retention_days),
                dead=timedelta(days=webhooks.dead_retention_days),
            ),
            poll_seconds=webhooks.poll_seconds,
            on_queued=self.deliverer.wake,
        )

    def _make_lookouts(self) -> Sequence[Lookout]:
        """One for jobs and webhooks, or two where the settings have them polled at different times."""
        watched = (
            (self.settings.worker.poll_seconds, jobs_due(), self.worker.wake),
            (self.settings.webhooks.poll_seconds, any_pending(), self.relay.wake),
            (self.settings.webhooks.poll_seconds, deliveries_due(), self.deliverer.wake),
        )
        lookouts: dict[float, Lookout] = {}
        for poll_seconds, query, wake in watched:
            if poll_seconds not in lookouts:
                lookouts[poll_seconds] = Lookout(self.session_factory, self.clock, poll_seconds=poll_seconds)
            lookouts[poll_seconds].watch(query, wake)
        return list(lookouts.values())

    def _worker(self) -> Worker:
        worker = self.settings.worker
        is_sqlite = self.engine.dialect.name == "sqlite"
        return Worker(
            self.queue,
            self.handlers,
            clock=self.clock,
            # SQLite has one writer: more transactions at once would only wait for it.
            concurrency=1 if is_sqlite else worker.concurrency,
            lease_seconds=worker.lease_seconds,
            poll_seconds=max(worker.poll_seconds, RARELY_SECONDS),
            grace_seconds=worker.grace_seconds,
            is_listening=not self.settings.database.behind_transaction_pooler,
            maintenance=Maintenance(self.queue, clock=self.clock, retention=_retention(worker)),
        )


def default_schedules(settings: Settings) -> Sequence[Schedule]:
    """The schedules of billing, as the settings time them, and those that the settings add."""
    scheduler = settings.scheduler
    of_billing = runs.default_schedules(
        daily_cron=scheduler.daily_cron, monthly_cron=scheduler.monthly_cron, timezone=scheduler.timezone
    )
    return [*of_billing, *(make_schedule(schedule) for schedule in scheduler.schedules)]


def _retention(worker: WorkerSettings) -> dict[JobState, timedelta]:
    return {
        JobState.COMPLETED: timedelta(days=worker.completed_retention_days),
        JobState.CANCELLED: timedelta(days=worker.cancelled_retention_days),
        JobState.DISCARDED: timedelta(days=worker.discarded_retention_days),
    }


def catalogue(application: Application) -> TopicCatalogue:
    """Return every topic that may be published: billing's, the application's, and webhooks' own.

    Raises:
        InvalidTopic: the application registers one of the others anew.
    """
    topics = TopicCatalogue()
    for some in (billing_topics(), operational_topics(), application.topics):
        topics.include(some)
    return topics


def guarded_sender(webhooks: WebhookSettings) -> HttpSender:
    """Make the sender that the settings describe: it reaches public addresses and what they allow.

    Raises:
        InvalidSettings: a network or the egress proxy cannot be read.
    """
    policy = PublicAddresses(webhooks.allow_networks)
    proxy = webhooks.egress_proxy.get_secret_value()
    dialer = ProxyDialer(EgressProxy.parse(proxy), policy=policy) if proxy else Dialer(policy)
    return HttpSender(
        pool=ConnectionPool(dialer),
        urls=UrlPolicy(allow_http=webhooks.allow_http, ports=webhooks.allow_ports),
        deadline_seconds=webhooks.timeout_seconds,
    )
