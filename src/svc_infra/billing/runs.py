"""The two scheduled jobs that fan out: one job per tenant, metric and day, or per tenant, month and currency.

Each run takes what *has ended* for a tenant at the fire and is not done yet, so repeating one is harmless. A
day of a zone behind UTC ends after midnight UTC and is taken by the next daily run; for the months of such
zones the default schedule has a second run at noon of the first, when the month has ended everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, func, null, or_, select, union
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra.billing.aggregation import DayKey, dirty_days
from svc_infra.billing.columns import CALENDAR_CYCLE
from svc_infra.billing.entitlements import prune_reservations
from svc_infra.billing.invoice_runs import Currencies, DueInvoice, enqueue_due, without_invoice
from svc_infra.billing.jobs import AGGREGATE_DAILY
from svc_infra.billing.models import Subscription, Tenant, UsageAggregate, UsageDirtyDay
from svc_infra.billing.money import normalize_currency
from svc_infra.billing.periods import Period, previous_month, zone
from svc_infra.billing.schemas import AggregateDaily
from svc_infra.clock import Clock, SystemClock, require_utc
from svc_infra.exceptions import InvalidPayload
from svc_infra.jobs.cron import CatchUp, CronSchedule
from svc_infra.jobs.handlers import Handlers
from svc_infra.jobs.job import Job, JobRequest
from svc_infra.jobs.outcome import Discard, Outcome
from svc_infra.jobs.scheduler import Schedule
from svc_infra.jobs.sql import insert_jobs

RUN_DAILY_AGGREGATION = "billing.run_daily_aggregation"
RUN_MONTHLY_INVOICING = "billing.run_monthly_invoicing"

_PAGE = 1_000
_RESERVATIONS_KEPT = timedelta(days=7)


def default_schedules(
    *, daily_cron: str = "5 0 * * *", monthly_cron: str = "15 0,12 1 * *", timezone: str = "UTC"
) -> list[Schedule]:
    """The schedules ``billing.daily`` and ``billing.monthly``; every missed fire is caught up."""
    return [
        Schedule(name, CronSchedule(cron, timezone), job_name, catch_up=CatchUp.ALL)
        for name, cron, job_name in (
            ("billing.daily", daily_cron, RUN_DAILY_AGGREGATION),
            ("billing.monthly", monthly_cron, RUN_MONTHLY_INVOICING),
        )
    ]


def register(handlers: Handlers, *, clock: Clock | None = None, default_currency: str = "usd") -> None:
    """Add the handlers of both runs.

    ``default_currency`` is that of the invoice, without lines, of a subscribed tenant to whom no price
    applies.

    Raises:
        InvalidCurrency: the default currency is unknown.
    """
    time = clock or SystemClock()
    currency = normalize_currency(default_currency)

    async def daily(job: Job, session: AsyncSession) -> Outcome | None:
        try:
            fire_at = _fire_at(job)
        except InvalidPayload as error:
            return Discard(str(error))
        await session.run_sync(_run_daily, fire_at, job.queue, time.now(), currency)
        return None

    async def monthly(job: Job, session: AsyncSession) -> Outcome | None:
        try:
            fire_at = _fire_at(job)
        except InvalidPayload as error:
            return Discard(str(error))
        await session.run_sync(_run_monthly, fire_at, job.queue, time.now(), currency)
        return None

    handlers.add(RUN_DAILY_AGGREGATION, daily)
    handlers.add(RUN_MONTHLY_INVOICING, monthly)


def _run_daily(session: Session, fire_at: datetime, queue: str, now: datetime, default_currency: str) -> None:
    """Enqueue the aggregation of each day that ended before the fire and whose total is not announced.

    And what else of invoicing is due on a day (``invoice_runs``).
    """
    days = dirty_days(session, ended_before=fire_at, limit=_PAGE)
    while days:
        insert_jobs(session, [_aggregate(key, queue) for key in days], now=now)
        days = dirty_days(session, ended_before=fire_at, limit=_PAGE, after=days[-1])
    enqueue_due(session, fire_at, queue, now, default_currency=default_currency)
    prune_reservations(session, before=fire_at - _RESERVATIONS_KEPT)


def _run_monthly(
    session: Session, fire_at: datetime, queue: str, now: datetime, default_currency: str
) -> None:
    """Enqueue the invoices of the month that ended before the fire, by each tenant's own calendar."""
    currencies = Currencies(session, default_currency)
    for name in sorted({"UTC", *session.scalars(select(Tenant.timezone).distinct())}):
        month = previous_month(fire_at, zone(name))
        for page in _concerned(session, name, month, currencies.has_planless_prices):
            due = [
                DueInvoice(tenant_id, currency, month)
                for tenant_id, plan_ids in page.items()
                for currency in currencies.of(plan_ids)
            ]
            missing = without_invoice(session, due)
            insert_jobs(session, [item.request(queue) for item in missing], now=now)


def _concerned(
    session: Session, timezone: str, month: Period, counts_usage: bool
) -> Iterator[dict[str, set[str]]]:
    """Pages of tenants of a zone that are to be invoiced for a month, with the plans they are on in it.

    Concerned is who has an active subscription, and if ``counts_usage`` who has usage.
    """
    after = ""
    while rows := session.execute(_concerned_after(after, timezone, month, counts_usage)).all():
        page: dict[str, set[str]] = {}
        for tenant_id, plan_id in rows:
            page.setdefault(tenant_id, set()).update([plan_id] if plan_id else [])
        if len(rows) == _PAGE and len(page) > 1:
            page.popitem()  # the last tenant may have more plans on the next page
        after = max(page)
        yield page


def _concerned_after(after: str, timezone: str, month: Period, counts_usage: bool) -> Select[Any]:
    has_not_ended = or_(Subscription.ended_at.is_(None), Subscription.ended_at > month.start)
    sources: list[Any] = [
        select(Subscription.tenant_id, Subscription.plan_id).where(
            Subscription.cycle == CALENDAR_CYCLE,
            Subscription.effective_at < month.end,
            has_not_ended,
            Subscription.tenant_id > after,
        )
    ]
    if counts_usage:
        for table, day_start in (
            (UsageAggregate, UsageAggregate.period_start),
            (UsageDirtyDay, UsageDirtyDay.day_start),
        ):
            used = select(table.tenant_id, null().label("plan_id"))
            sources.append(
                used.where(day_start >= month.start, day_start < month.end, table.tenant_id > after)
            )
    found = union(*sources).subquery()
    return (
        select(found.c.tenant_id, found.c.plan_id)
        .outerjoin(Tenant, Tenant.tenant_id == found.c.tenant_id)
        .where(func.coalesce(Tenant.timezone, "UTC") == timezone)
        .order_by(found.c.tenant_id, found.c.plan_id)
        .limit(_PAGE)
    )


def _aggregate(key: DayKey, queue: str) -> JobRequest:
    payload = AggregateDaily(tenant_id=key.tenant_id, metric=key.metric, day_start=key.day.start)
    return JobRequest(AGGREGATE_DAILY, payload.to_payload(), queue=queue, tenant_id=key.tenant_id)


def _fire_at(job: Job) -> datetime:
    """The fire that the job belongs to; InvalidPayload if its payload names none."""
    try:
        return require_utc(datetime.fromisoformat(job.payload["fire_at"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidPayload(
            f"job {job.name!r} needs a fire_at in its payload, an instant in ISO 8601 with an offset"
        ) from error
