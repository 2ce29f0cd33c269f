"""``BillingService``: billing for one tenant, in the transaction of the caller's session."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from time import perf_counter
from typing import Any

from sqlalchemy.orm import Session

from svc_infra.billing import aggregation
from svc_infra.billing.first_use import ready
from svc_infra.billing.invoicing import InvoiceRequest, generate_invoices
from svc_infra.billing.metrics import AGGREGATE_MILLISECONDS, INVOICES_GENERATED
from svc_infra.billing.periods import day_bounds
from svc_infra.billing.provider import ProviderSync
from svc_infra.billing.provider_hook import sync_after_commit
from svc_infra.billing.tenants import zones_of
from svc_infra.billing.usage import NewUsage, UsageLimits, quantity, record_many
from svc_infra.billing.usage_limits import NO_LIMITS
from svc_infra.clock import Clock, SystemClock
from svc_infra.db.after_commit import call_after_commit
from svc_infra.exceptions import IdempotencyConflict, InvalidUsage, NotFound


class BillingService:
    """Usage, daily totals and invoices of one tenant.

    It writes into the session's transaction, flushes and never commits: what it returns exists once the
    caller has committed. The tables of an in-memory SQLite database are made on first use; any other
    database without them raises SchemaMissing.

    ``provider_sync(invoice, lines)`` may be a function or a coroutine function. It is called for each new
    invoice after the commit and never inside the transaction; when it fails, the failure is logged and the
    invoice stays.
    """

    def __init__(
        self,
        session: Session,
        tenant_id: str,
        provider_sync: ProviderSync | None = None,
        clock: Clock | None = None,
        limits: UsageLimits = NO_LIMITS,
    ) -> None:
        self.session = session
        self.tenant_id = tenant_id
        self._provider_sync = provider_sync
        self._clock: Clock = clock or SystemClock()
        self._limits = limits

    def record_usage(
        self,
        metric: str,
        amount: int | str | Decimal,
        at: datetime,
        idempotency_key: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Record a quantity of a metric, once per idempotency key, and return the event's id.

        The same key with the same payload (an equal number, instant and metadata) returns the first id.

        Raises:
            InvalidUsage: an argument cannot be recorded; a float is inexact and refused. Of an event that is
                refused for its amount or its instant a record with the reason is kept, if the caller commits.
            IdempotencyConflict: the key was used with another payload. Nothing was written, and the session
                is as usable as before.
        """
        event = NewUsage(self.tenant_id, metric, quantity(amount), at, idempotency_key, metadata)
        ready(self.session)
        [recorded] = record_many(self.session, [event], now=self._clock.now(), limits=self._limits)
        if recorded.outcome == "rejected":
            raise InvalidUsage(recorded.reason)
        if recorded.outcome == "conflict":
            raise IdempotencyConflict(
                f"the idempotency key {idempotency_key!r} of metric {metric!r} was used before with another "
                "payload; repeat it unchanged or use a key of its own"
            )
        return recorded.id

    def aggregate_daily(self, metric: str, day_start: datetime) -> Decimal:
        """Recompute the total quantity of the tenant's local day that ``day_start`` falls on; return it.

        Raises:
            InvalidPeriod: ``day_start`` has no offset.
        """
        started = perf_counter()
        ready(self.session)
        zone = zones_of(self.session, [self.tenant_id])[self.tenant_id]
        key = aggregation.DayKey(self.tenant_id, metric, day_bounds(day_start, zone))
        [day] = aggregation.recompute(self.session, [key], now=self._clock.now())
        AGGREGATE_MILLISECONDS.observe((perf_counter() - started) * 1000)
        return day.total

    def generate_monthly_invoice(self, period_start: datetime, period_end: datetime, currency: str) -> str:
        """Make the invoice of the half-open period, or find the one that was made before; return its id.

        Both bounds are midnights of the tenant's zone. Usage needs no aggregation beforehand.

        Raises:
            InvalidPeriod, InvalidCurrency, PeriodOverlap, AmbiguousPrice, AmountTooLarge: the request is
                refused and nothing was written.
        """
        ready(self.session)
        request = InvoiceRequest(self.tenant_id, period_start, period_end, currency)
        [result] = generate_invoices(self.session, [request], now=self._clock.now())
        if result.error is not None:
            raise result.error
        if result.invoice_id is None:
            raise NotFound(f"tenant {self.tenant_id!r} has no invoice of this period")
        if result.is_new:
            call_after_commit(self.session, INVOICES_GENERATED.inc)
            if self._provider_sync is not None and result.is_issued:
                sync_after_commit(self.session, self.tenant_id, result.invoice_id, self._provider_sync)
        return result.invoice_id

    def list_daily_aggregates(
        self,
        metric: str,
        *,
        after: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
    ) -> list[aggregation.DailyAggregate]:
        """Return the stored daily totals of a metric in the order of their days, at most ``limit``.

        Days that begin later than ``after`` and earlier than ``until``.
        """
        ready(self.session)
        return aggregation.list_daily(
            self.session, self.tenant_id, metric, after=after, until=until, limit=limit
        )
