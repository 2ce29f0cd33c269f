"""Quotas: the plan's limit in the tenant's own day or month, exact, and closed where nothing is known."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from svc_infra.api.fastapi.dependencies import (
    Principal,
    get_billing_settings,
    get_clock,
    get_principal,
    get_session_factory,
)
from svc_infra.api.fastapi.middleware.errors.handlers import register_error_handlers
from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.entitlements import Quota, Window, quota_of
from svc_infra.billing.models import Tenant
from svc_infra.billing.quota_models import QuotaReservation
from svc_infra.billing.quotas import EXCEEDED_HEADER, require_quota
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.clock import FixedClock
from svc_infra.config import BillingSettings
from svc_infra.exceptions import InvalidSettings, QuotaExceeded

Sessions = async_sessionmaker[AsyncSession]

JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
NOW = datetime(2025, 1, 15, 12, tzinfo=UTC)
CATALOG = "".join(
    f'[[plans]]\nkey = "{plan}"\ndefault = {str(plan == "small").lower()}\n'
    f'[[plans.entitlements]]\nkey = "reports"\nlimit = {limit}\nwindow = "day"\n'
    for plan, limit in (("small", 2), ("extra", 5))
)


@pytest.fixture(autouse=True)
async def _catalog(session_factory: Sessions) -> None:
    async with session_factory() as session, session.begin():
        await session.run_sync(apply_catalog, parse_catalog(CATALOG), now=JANUARY)


async def on(
    session_factory: Sessions, *plans: str, since: datetime = JANUARY, ended_at: datetime | None = None
) -> None:
    async with session_factory() as session, session.begin():
        wanted = [NewSubscription("t1", plan, since, ended_at) for plan in plans]
        await session.run_sync(subscribe_many, wanted, now=JANUARY)


async def use(session_factory: Sessions, *usage: tuple[str, datetime]) -> None:
    async with session_factory() as session, session.begin():
        events = [NewUsage("t1", "reports", Decimal(amount), at, str(at)) for amount, at in usage]
        await session.run_sync(record_many, events, now=NOW)


async def quota(session_factory: Sessions, window: Window = "day") -> Quota | None:
    async with session_factory() as session:
        return await session.run_sync(quota_of, "t1", "reports", window, now=NOW)


async def get(
    session_factory: Sessions,
    *,
    soft: bool = False,
    query: str = "",
    settings: BillingSettings | None = None,
    answers_errors: bool = False,
    **options: Any,
) -> httpx.Response:
    app = FastAPI()
    if answers_errors:
        register_error_handlers(app)
    app.dependency_overrides[get_billing_settings] = lambda: settings or BillingSettings()
    app.dependency_overrides[get_principal] = lambda: Principal("t1")
    app.dependency_overrides[get_session_factory] = lambda: session_factory
    app.dependency_overrides[get_clock] = lambda: FixedClock(NOW)

    @app.get("/", dependencies=[Depends(require_quota("reports", window="day", soft=soft, **options))])
    async def report(fails: bool = False, records: str = "") -> dict[str, bool]:
        if fails:
            raise HTTPException(400)
        if records:
            await use(session_factory, (records, NOW))
        return {"ok": True}

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get("/", params=query)


async def test_every_answer_says_what_is_left_and_when_it_is_renewed(session_factory: Sessions) -> None:
    await on(session_factory, "small")
    await use(session_factory, ("0.5", NOW))
    answers = [await get(session_factory, answers_errors=True) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert [answer.headers["RateLimit-Policy"] for answer in answers] == ['"reports";q=2;w=86400'] * 2
    assert [answer.headers["RateLimit"] for answer in answers] == ['"reports";r=0;t=43200'] * 2
    assert answers[1].headers["Retry-After"] == "43200"
    assert answers[1].json()["type"] == "urn:svc-infra:problem:quota-exceeded"


async def test_used_is_the_exact_sum_of_the_tenants_local_day(session_factory: Sessions) -> None:
    async with session_factory() as session, session.begin():
        session.add(Tenant(tenant_id="t1", timezone="Asia/Tokyo", created_at=JANUARY))
    async with session_factory() as session, session.begin():
        start = datetime(2025, 1, 1, 15, tzinfo=UTC)
        await session.run_sync(subscribe_many, [NewSubscription("t1", "small", start)], now=NOW)
    tokyo_midnight = datetime(2025, 1, 14, 15, tzinfo=UTC)
    await use(
        session_factory,
        ("0.1", tokyo_midnight),
        ("0.2", NOW),
        ("9", datetime(2025, 1, 14, 14, 59, tzinfo=UTC)),
    )
    found = await quota(session_factory)
    assert found is not None
    assert (found.used, found.limit, found.period.start) == (Decimal("0.3"), 2, tokyo_midnight)


async def test_limits_of_several_active_plans_add_up(session_factory: Sessions) -> None:
    await on(session_factory, "small", "extra")
    found = await quota(session_factory)
    assert found is not None
    assert found.limit == 7


async def test_a_plan_that_begins_later_changes_no_limit_of_today(session_factory: Sessions) -> None:
    await on(session_factory, "small")
    await on(session_factory, "extra", since=JANUARY.replace(day=16))
    found = await quota(session_factory)
    assert found is not None
    assert found.limit == 2


async def test_a_request_takes_one_and_is_refused_where_that_exceeds_the_limit(
    session_factory: Sessions,
) -> None:
    await on(session_factory, "small")
    assert (await get(session_factory)).status_code == 200
    await use(session_factory, ("0.000000000001", NOW))
    with pytest.raises(
        QuotaExceeded, match=r"1\.0+1 of 2 reports used in this day; it is renewed at 2025"
    ) as e:
        await get(session_factory)
    assert e.value.retry_after_seconds == 12 * 3600


async def test_a_soft_quota_lets_through_and_says_so(session_factory: Sessions) -> None:
    await on(session_factory, "small")
    await use(session_factory, ("1", JANUARY.replace(day=15)))
    assert EXCEEDED_HEADER not in (await get(session_factory, soft=True)).headers
    answer = await get(session_factory, soft=True)
    assert (answer.status_code, answer.headers[EXCEEDED_HEADER]) == (200, "3 of 2 reports used in this day")


async def test_of_requests_at_once_no_more_pass_than_the_limit_allows(session_factory: Sessions) -> None:
    await on(session_factory, "small", "extra")
    answers = await asyncio.gather(*(get(session_factory) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, httpx.Response) for answer in answers) == 7


async def test_an_endpoint_that_fails_gives_back_what_it_took(session_factory: Sessions) -> None:
    await on(session_factory, "small")
    for _ in range(3):
        assert (await get(session_factory, query="fails=1")).status_code == 400
    found = await quota(session_factory)
    assert found is not None
    assert found.used == 0


async def test_usage_that_the_endpoint_records_itself_counts_once(session_factory: Sessions) -> None:
    await on(session_factory, "small")
    assert (await get(session_factory, records_usage=True, query="records=1")).status_code == 200
    found = await quota(session_factory)
    assert found is not None
    assert found.used == 1


@pytest.mark.postgres_only
async def test_a_request_costs_one_statement_in_one_transaction(
    engine: AsyncEngine, session_factory: Sessions
) -> None:
    await on(session_factory, "small")
    await get(session_factory)
    statements, commits = [], []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    event.listen(engine.sync_engine, "commit", commits.append)
    assert (await get(session_factory)).status_code == 200
    assert (len(statements), len(commits)) == (1, 1), statements
    async with session_factory() as session:
        assert await session.scalar(select(func.count()).select_from(QuotaReservation)) == 0


async def test_without_an_entitlement_a_policy_may_let_through_uncounted(session_factory: Sessions) -> None:
    allow = BillingSettings(quotas_without_entitlement="allow")
    assert (await get(session_factory, settings=allow)).status_code == 200


@pytest.mark.parametrize("soft", [False, True])
async def test_without_an_active_entitlement_it_is_closed(session_factory: Sessions, soft: bool) -> None:
    await on(session_factory, "small", ended_at=JANUARY.replace(day=2))
    assert await quota(session_factory) is None
    with pytest.raises(QuotaExceeded, match="no plan of this tenant includes"):
        await get(session_factory, soft=soft)


async def test_an_entitlement_holds_for_its_own_window_only(session_factory: Sessions) -> None:
    await on(session_factory, "small")
    assert await quota(session_factory, "month") is None


def test_an_unknown_window_is_refused_when_it_is_declared() -> None:
    with pytest.raises(InvalidSettings, match="'hour'"):
        require_quota("reports", window="hour")  # type: ignore[arg-type]  # what is tested
