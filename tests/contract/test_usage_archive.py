"""Archived usage is out of the way and counts as before: keys, totals, invoices, corrections and proofs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from svc_infra.billing.erasure import erase_tenant
from svc_infra.billing.explanation import explain_invoice
from svc_infra.billing.metering import Metering
from svc_infra.billing.meters import Meter
from svc_infra.billing.models import ArchivedUsage, UsageAggregate, UsageEvent
from svc_infra.billing.usage import NewUsage, RecordedUsage, record_many
from svc_infra.billing.usage_archive import Archived, UsageArchiver, archive_usage
from svc_infra.billing.usage_corrections import void_usage
from svc_infra.billing.usage_listing import list_events
from svc_infra.billing.usage_meters import register_meter
from svc_infra.billing.usage_state import usage_state
from svc_infra.clock import FixedClock
from svc_infra.exceptions import InvalidUsage
from svc_infra.simulation.audit import audit
from tests.contract.billing_shop import MONTHS, Sessions, Shop
from tests.contract.test_aggregation import _until_someone_waits

_PRICE = '[[prices]]\nkey = "{0}"\nplan = "use"\ncurrency = "usd"\nmetric = "{0}"\n'
CATALOG = (
    '[[plans]]\nkey = "use"\ndefault = true\n'
    + _PRICE.format("calls")
    + 'unit_amount = "10"\n'
    + _PRICE.format("peak")
    + 'unit_amount = "100"\n'
    + _PRICE.format("paid")
    + 'model = "percentage"\npercent = "1"\nper_event = { fixed_amount = "30" }\n'
)
METRICS = ("calls", "peak", "paid")
NOON = datetime(2025, 1, 9, 12, tzinfo=UTC)


def event(key: str, amount: str = "5", at: datetime = NOON, metric: str = "calls") -> NewUsage:
    return NewUsage("t", metric, Decimal(amount), at, key)


async def record(shop: Shop, *events: NewUsage) -> list[RecordedUsage]:
    recorded: list[RecordedUsage] = await shop.call(record_many, events, now=shop.now)
    return recorded


async def archive(shop: Shop, before: datetime = MONTHS[1], **more: Any) -> Archived:
    archived: Archived = await shop.call(archive_usage, before=before, now=shop.now, **more)
    return archived


async def rows(shop: Shop) -> tuple[int, int]:
    """How many events are live and how many archived."""

    def count(session: Session) -> tuple[int, ...]:
        return tuple(
            session.scalar(select(func.count()).select_from(table)) or 0
            for table in (UsageEvent, ArchivedUsage)
        )

    live, archived = await shop.call(count)
    return live, archived


@pytest.fixture
async def shop(session_factory: Sessions) -> Shop:
    """January is invoiced with two events of each metric, on two days; February has begun."""
    shop = Shop(session_factory)
    await shop.call(register_meter, Metering("peak", Meter.MAXIMUM), now=shop.now)
    await shop.apply(CATALOG)
    await shop.subscribe("use")
    january = [event(f"{at}", "5", NOON + timedelta(days=at), metric) for metric in METRICS for at in (0, 1)]
    await record(shop, *january, event("february", at=MONTHS[1]))
    shop.now = MONTHS[1]
    await shop.invoice(1)
    return shop


async def test_only_days_that_were_invoiced_and_settled_are_archived(shop: Shop) -> None:
    assert await archive(shop, before=NOON) == (0, 0, None), "too young"
    await record(shop, event("late"))
    assert await archive(shop) == (4, 4, None), "the late event of calls waits to be settled"
    assert await archive(shop) == (0, 0, None)
    assert await rows(shop) == (4, 4)


async def test_a_batch_is_bounded_and_the_worker_archives_to_the_end(shop: Shop) -> None:
    clock = FixedClock(MONTHS[1] + timedelta(days=62))
    archiver = UsageArchiver(shop.session_factory, clock, after_days=62)
    first = await archive(shop, limit=4)
    assert (first.events, await rows(shop)) == (4, (3, 4))
    while await archiver.archive():
        pass
    assert await rows(shop) == (1, 6)


async def test_a_replay_of_an_archived_event_is_a_duplicate_and_another_payload_a_conflict(
    shop: Shop,
) -> None:
    [before] = await record(shop, event("0"))
    await archive(shop)
    again, other, new = await record(shop, event("0"), event("1", "6"), event("new", at=MONTHS[1]))
    assert (again, other.outcome, new.outcome) == (before, "conflict", "inserted")
    assert await rows(shop) == (2, 6)
    await shop.settings(late_policy="reject")
    assert [each.outcome for each in await record(shop, event("0"))] == ["duplicate"], "it is no late usage"


async def test_archived_usage_is_traced_explained_listed_and_audited(shop: Shop) -> None:
    [recorded] = await record(shop, event("0"))
    await archive(shop)
    found = await shop.call(usage_state, "t", recorded.id)
    assert (found.state, found.archived_at) == ("billed", shop.now)
    explained = await shop.call(explain_invoice, "t", found.lines[0].invoice_id)
    assert [(line.events, line.archived_events) for line in explained.lines] == [(2, 2)] * 3
    listed = await shop.call(list_events, "t", "calls", limit=2)
    assert [each.idempotency_key for each in listed] == ["0", "1"]
    rest = await shop.call(list_events, "t", "calls", after=(listed[-1].at_ts, listed[-1].id))
    assert [each.idempotency_key for each in rest] == ["february"]
    report = await audit(shop.session_factory)
    assert (report.differences, report.events, report.archived, report.unknown) == ([], 7, 6, 0)


async def test_what_comes_late_for_an_archived_day_is_rated_with_what_was_archived(shop: Shop) -> None:
    [recorded] = await record(shop, event("0"))
    await archive(shop)
    await record(
        shop, event("late", "2"), event("late", "9", metric="peak"), event("late", "1", metric="paid")
    )
    await shop.call(void_usage, "t", recorded.id, reason="wrong", actor="ann", now=shop.now)
    shop.now = MONTHS[2]
    lines = await shop.lines(await shop.invoice(2))
    assert lines == [
        ("usage", "calls", 5, 50),
        ("adjustment", "calls, late usage", -3, -30),
        ("adjustment", "paid, late usage", 1, 31),
        ("adjustment", "peak, late usage", 4, 400),
    ]
    assert (await audit(shop.session_factory)).is_clean
    assert (await archive(shop, before=MONTHS[2])).events == 4
    assert await rows(shop) == (0, 10)


async def test_an_erased_tenant_has_nothing_in_the_archive(shop: Shop) -> None:
    await archive(shop)
    erased = await shop.call(erase_tenant, "t", reason="asked", actor="ann", now=shop.now)
    assert (erased.rows["usage_events"], erased.rows["usage_archive"]) == (1, 6)
    assert await rows(shop) == (0, 0)


@pytest.mark.postgres_only
async def test_a_replay_beside_archiving_waits_and_is_a_duplicate(shop: Shop) -> None:
    """Without the lock it would find the key neither in the table it leaves nor in the one it comes to."""
    async with shop.session_factory() as archiving:
        await archiving.run_sync(archive_usage, before=MONTHS[1], now=shop.now)
        replay = asyncio.create_task(record(shop, event("0")))
        await _until_someone_waits(shop.session_factory, replay)
        assert not replay.done()
        await archiving.commit()
    [recorded] = await replay
    assert (recorded.outcome, await rows(shop)) == ("duplicate", (1, 6))


@pytest.mark.postgres_only
async def test_a_day_that_is_being_recomputed_is_archived_later(shop: Shop) -> None:
    async with shop.session_factory() as recomputing:
        day = select(UsageAggregate).where(UsageAggregate.metric == "calls", UsageAggregate.total == 5)
        locked = (await recomputing.scalars(day.limit(1).with_for_update())).all()
        assert len(locked) == 1
        assert (await archive(shop)).events == 5
    assert (await archive(shop)).events == 1


@pytest.mark.postgres_only
async def test_usage_recorded_beside_an_erasure_is_erased_or_refused(shop: Shop) -> None:
    """What is under way is waited for and erased; what comes meanwhile waits, and finds the tenant closed."""
    await archive(shop)
    async with shop.session_factory() as recording:
        await recording.run_sync(record_many, [event("before")], now=shop.now)
        erasing = asyncio.create_task(shop.call(erase_tenant, "t", reason="asked", actor="ann", now=shop.now))
        await _until_someone_waits(shop.session_factory, erasing)
        assert not erasing.done()
        meanwhile = asyncio.create_task(record(shop, event("0"), event("meanwhile")))
        await recording.commit()
    await erasing
    with pytest.raises(InvalidUsage, match="closed"):
        await meanwhile
    assert await rows(shop) == (0, 0)
