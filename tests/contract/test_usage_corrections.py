"""Voiding, amending and refusing usage, and asking what became of an event."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import TypeVar

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.billing import BillingService
from svc_infra.billing.aggregation import DayKey, list_daily, recompute
from svc_infra.billing.dimensions import DEFAULT, DimensionFilter
from svc_infra.billing.erasure import count_erasable, erase_tenant
from svc_infra.billing.metering import Metering
from svc_infra.billing.meters import Meter
from svc_infra.billing.models import Price, UsageCorrection, UsageEvent
from svc_infra.billing.periods import day_bounds, month_bounds
from svc_infra.billing.rating import PriceModel, PriceTerms
from svc_infra.billing.usage import NewUsage, UsageLimits, record_many
from svc_infra.billing.usage_corrections import amend_usage, void_usage
from svc_infra.billing.usage_follower import UsageFollower
from svc_infra.billing.usage_meters import register_meter
from svc_infra.billing.usage_models import TenantErasure
from svc_infra.billing.usage_rejections import forget_rejections, list_rejections
from svc_infra.billing.usage_state import UsageState, usage_state
from svc_infra.exceptions import IdempotencyConflict, InvalidUsage, NotFound

R = TypeVar("R")
Factory = async_sessionmaker[AsyncSession]
NOON = datetime(2025, 1, 10, 12, tzinfo=UTC)
WHO = {"reason": "metered twice", "actor": "ann", "now": NOON}


async def in_session(factory: Factory, act: Callable[[Session], R]) -> R:
    async with factory() as session, session.begin():
        return await session.run_sync(act)


async def record(factory: Factory, key: str = "k", amount: int = 5, at: datetime = NOON) -> str:
    new = NewUsage("t1", "tokens", Decimal(amount), at, key, {"model": "gpt"})
    [recorded] = await in_session(factory, lambda s: record_many(s, [new], now=NOON))
    return recorded.id


async def total(factory: Factory, at: datetime = NOON) -> Decimal:
    await UsageFollower(factory).follow()
    day = day_bounds(at, UTC)
    listed = await in_session(factory, lambda s: list_daily(s, "t1", "tokens"))
    return next((each.total for each in listed if each.period_start == day.start), Decimal(0))


async def state(factory: Factory, event_id: str) -> UsageState:
    return await in_session(factory, lambda s: usage_state(s, "t1", event_id))


async def test_a_voided_event_counts_no_longer_and_stays_as_it_was(session_factory: Factory) -> None:
    event_id = await record(session_factory)
    await record(session_factory, "other", 2)
    assert await total(session_factory) == 7
    first = await in_session(session_factory, lambda s: void_usage(s, "t1", event_id, **WHO).created_at)
    again = await in_session(
        session_factory,
        lambda s: void_usage(s, "t1", event_id, reason="x", actor="y", now=NOON + timedelta(1)),
    )
    assert (again.created_at, again.reason, again.actor) == (first, "metered twice", "ann")
    assert await total(session_factory) == 2
    found = await state(session_factory, event_id)
    assert (found.state, found.event.amount, found.event.metadata) == ("voided", 5, {"model": "gpt"})
    # Its key stays taken: the sender that repeats it gets the same event and changes nothing.
    assert await record(session_factory) == event_id
    assert await total(session_factory) == 2


async def test_an_amended_event_is_replaced_by_another(session_factory: Factory) -> None:
    event_id = await record(session_factory)
    day_before = NOON - timedelta(days=1)

    def amend(session: Session) -> str:
        return amend_usage(session, "t1", event_id, amount="4.5", at=day_before, **WHO)

    replacement = await in_session(session_factory, amend)
    assert await in_session(session_factory, amend) == replacement
    assert (await total(session_factory), await total(session_factory, day_before)) == (0, Decimal("4.5"))
    assert (await state(session_factory, event_id)).state == "amended"
    found = await state(session_factory, replacement)
    assert (found.state, found.event.metadata) == ("counted", {"model": "gpt"})
    with pytest.raises(IdempotencyConflict, match=replacement):
        await in_session(session_factory, lambda s: amend_usage(s, "t1", event_id, amount=1, **WHO))
    with pytest.raises(InvalidUsage, match="amended already"):
        await in_session(session_factory, lambda s: void_usage(s, "t1", event_id, **WHO))
    await in_session(session_factory, lambda s: void_usage(s, "t1", replacement, **WHO))
    assert await total(session_factory, day_before) == 0


async def test_a_correction_that_cannot_be_is_refused(session_factory: Factory) -> None:
    event_id = await record(session_factory)
    for wrong, message in (
        (lambda s: void_usage(s, "t1", event_id, reason=" ", actor="a", now=NOON), "reason"),
        (lambda s: void_usage(s, "t1", event_id, reason="r", actor="", now=NOON), "actor"),
        (lambda s: amend_usage(s, "t1", event_id, amount="5.0", **WHO), "changes nothing"),
        (lambda s: amend_usage(s, "t1", event_id, amount=-1, **WHO), "negative"),
    ):
        with pytest.raises(InvalidUsage, match=message):
            await in_session(session_factory, wrong)
    for tenant in ("t2", "t1"):
        with pytest.raises(NotFound):
            await in_session(
                session_factory,
                lambda s, t=tenant: void_usage(s, t, event_id if t == "t2" else "none", **WHO),
            )
    assert await total(session_factory) == 5


@pytest.mark.postgres_only
async def test_of_a_void_and_an_amendment_at_once_one_stands(session_factory: Factory) -> None:
    """Without the key of the corrections both would stand: the event gone and its replacement counted."""
    event_id = await record(session_factory)

    async def correct(number: int) -> str:
        def act(session: Session) -> str:
            if number % 2:
                return amend_usage(session, "t1", event_id, amount=3, **WHO)
            return void_usage(session, "t1", event_id, **WHO).kind

        try:
            return await in_session(session_factory, act)
        except InvalidUsage:
            return "refused"

    answers = await asyncio.gather(*(correct(number) for number in range(6)))
    assert sorted(answer == "refused" for answer in answers) == [False] * 3 + [True] * 3
    stands = await in_session(session_factory, lambda s: s.scalars(select(UsageCorrection)).one().kind)
    assert await total(session_factory) == (0 if stands == "void" else 3)


@pytest.mark.postgres_only
async def test_a_correction_that_commits_during_a_recompute_is_not_missed(session_factory: Factory) -> None:
    event_id = await record(session_factory)
    async with session_factory() as correcting:
        await correcting.run_sync(void_usage, "t1", event_id, **WHO)
        assert await total(session_factory) == 5
        await correcting.commit()
    assert await total(session_factory) == 0


async def test_what_lies_outside_the_limits_is_kept_with_its_reason(session_factory: Factory) -> None:
    limits = UsageLimits(past=timedelta(days=35), future=timedelta(minutes=5))
    at = (
        NOON - timedelta(days=36),
        NOON - timedelta(days=35),
        NOON + timedelta(minutes=5),
        NOON + timedelta(hours=1),
    )
    events = [NewUsage("t1", "tokens", Decimal(1), each, f"k{n}") for n, each in enumerate(at)]
    events.append(NewUsage("t1", "tokens", Decimal(-1), NOON, "negative"))
    recorded = await in_session(session_factory, lambda s: record_many(s, events, now=NOON, limits=limits))
    outcomes = ["rejected", "inserted", "inserted", "rejected", "rejected"]
    assert [usage.outcome for usage in recorded] == outcomes
    kept = await in_session(session_factory, lambda s: list_rejections(s, tenant_id="t1"))
    assert {row.id: row.reason for row in kept} == {u.id: u.reason for u in recorded if u.reason}
    assert sorted((row.idempotency_key, row.amount) for row in kept) == [
        ("k0", "1"),
        ("k3", "1"),
        ("negative", "-1"),
    ]
    assert await in_session(session_factory, lambda s: list_rejections(s, tenant_id="t2")) == []
    await in_session(session_factory, lambda s: forget_rejections(s, NOON + timedelta(seconds=1)))
    assert await in_session(session_factory, list_rejections) == []


async def test_only_a_weighted_sum_takes_a_negative_amount(session_factory: Factory) -> None:
    level = Metering("seats", Meter.WEIGHTED_SUM)
    await in_session(session_factory, lambda s: register_meter(s, level, now=NOON))

    def record_both(session: Session) -> None:
        service = BillingService(session, "t1")
        service.record_usage("seats", -2, NOON, "a")
        with pytest.raises(InvalidUsage, match="amending or voiding"):
            service.record_usage("tokens", -2, NOON, "b")

    await in_session(session_factory, record_both)
    assert len(await in_session(session_factory, list_rejections)) == 1


async def test_the_line_that_billed_an_event_is_named(session_factory: Factory) -> None:
    january = month_bounds(2025, 1, UTC)

    def bill(session: Session) -> str:
        session.add(Price(key="tokens", currency="usd", unit_amount=Decimal(2), metric="tokens"))
        session.flush()
        return BillingService(session, "t1").generate_monthly_invoice(january.start, january.end, "usd")

    event_id = await record(session_factory)
    assert (await state(session_factory, event_id)).state == "waiting"
    await total(session_factory)
    assert (await state(session_factory, event_id)).state == "counted"
    invoice_id = await in_session(session_factory, bill)
    found = await state(session_factory, event_id)
    [line] = found.lines
    assert (found.state, line.invoice_id, line.amount, line.quantity) == ("billed", invoice_id, 10, 5)
    assert (line.invoice, line.period) == ("INV-1", january)


async def test_the_follower_aggregates_what_is_marked_and_announces_nothing(
    session_factory: Factory,
) -> None:
    for day in range(3):
        await record(session_factory, str(day), at=NOON + timedelta(days=day))
    assert await UsageFollower(session_factory).follow() is False
    days = await in_session(
        session_factory,
        lambda s: recompute(s, [DayKey("t1", "tokens", day_bounds(NOON, UTC))], now=NOON, will_publish=True),
    )
    assert [(day.total, day.has_changed, day.is_published) for day in days] == [(5, False, False)]


async def test_quantities_are_conserved_under_every_interleaving(session_factory: Factory) -> None:
    """16 writers record, repeat, amend and void while two recompute; what was not taken back counts."""
    counted: dict[str, Decimal] = defaultdict(Decimal)
    writers_left = 16

    async def write(number: int) -> None:
        nonlocal writers_left
        rng = Random(number)
        mine: dict[str, int] = {}
        for index in range(6):
            at = NOON + timedelta(days=rng.randrange(3))
            amount = rng.randrange(1, 100)
            event_id = await record(session_factory, f"{number}-{index}", amount, at)
            assert await record(session_factory, f"{number}-{index}", amount, at) == event_id
            mine[event_id] = amount
            act = rng.random()
            chosen = rng.choice(list(mine))
            if act < 0.3:
                await in_session(session_factory, lambda s, c=chosen: void_usage(s, "t1", c, **WHO))
                del mine[chosen]
            elif act < 0.6:
                more = mine.pop(chosen) + 1
                new = await in_session(
                    session_factory, lambda s, c=chosen, m=more: amend_usage(s, "t1", c, amount=m, **WHO)
                )
                mine[new] = more
        counted["all"] += sum(mine.values())
        writers_left -= 1

    async def aggregate() -> None:
        while writers_left:
            await UsageFollower(session_factory).follow()

    async with asyncio.TaskGroup() as tasks:
        for number in range(16):
            tasks.create_task(write(number))
        tasks.create_task(aggregate())
        tasks.create_task(aggregate())
    await UsageFollower(session_factory).follow()
    listed = await in_session(session_factory, lambda s: list_daily(s, "t1", "tokens"))
    assert sum(each.total for each in listed) == counted["all"]
    # Nothing that was recorded is gone.
    recorded = await in_session(session_factory, lambda s: len(s.scalars(select(UsageEvent.id)).all()))
    assert recorded >= 16 * 6


async def test_an_erased_tenant_leaves_its_invoices_and_takes_no_more_usage(session_factory: Factory) -> None:
    january = month_bounds(2025, 1, UTC)

    def bill(session: Session) -> str:
        if session.get(Price, "p") is None:
            session.add(Price(id="p", key="tokens", currency="usd", unit_amount=Decimal(2), metric="tokens"))
            session.flush()
        return BillingService(session, "t1").generate_monthly_invoice(january.start, january.end, "usd")

    event_id = await record(session_factory)
    other = NewUsage("t2", "tokens", Decimal(1), NOON, "k")
    await in_session(session_factory, lambda s: record_many(s, [other], now=NOON))
    invoice_id = await in_session(session_factory, bill)
    counted = await in_session(session_factory, lambda s: count_erasable(s, "t1"))
    erased = await in_session(
        session_factory, lambda s: erase_tenant(s, "t1", reason="asked", actor="ann", now=NOON)
    )
    assert erased == counted
    assert erased.rows["usage_events"] == 1
    left = await in_session(session_factory, lambda s: s.scalars(select(UsageEvent.tenant_id)).all())
    assert left == ["t2"]
    with pytest.raises(InvalidUsage, match="closed"):
        await record(session_factory)
    with pytest.raises(NotFound):
        await state(session_factory, event_id)
    assert await in_session(session_factory, bill) == invoice_id
    kept = await in_session(session_factory, lambda s: s.get_one(TenantErasure, "t1"))
    assert (kept.actor, kept.reason, kept.rows) == ("ann", "asked", erased.rows)


async def test_each_event_is_billed_on_the_line_of_its_filter(session_factory: Factory) -> None:
    january = month_bounds(2025, 1, UTC)
    gpt = DimensionFilter.of({"model": "gpt"})

    def bill(session: Session) -> str:
        register_meter(session, Metering("tokens", dimensions=("model",)), now=NOON)
        for key, unit_amount, of in (("gpt", 3, gpt), ("others", 2, DEFAULT)):
            terms = PriceTerms(
                key, "usd", PriceModel.PER_UNIT, Decimal(unit_amount), metric="tokens", filter=of
            )
            session.add(
                Price(
                    key=key,
                    currency="usd",
                    unit_amount=terms.unit_amount,
                    metric="tokens",
                    terms=terms.to_snapshot(),
                )
            )
        session.flush()
        return BillingService(session, "t1").generate_monthly_invoice(january.start, january.end, "usd")

    first = await record(session_factory)
    new = NewUsage("t1", "tokens", Decimal(10), NOON, "other", {"model": "else"})
    [other] = await in_session(session_factory, lambda s: record_many(s, [new], now=NOON))
    await in_session(session_factory, bill)
    lines = [(await state(session_factory, event_id)).lines for event_id in (first, other.id)]
    assert [[(line.quantity, line.amount) for line in each] for each in lines] == [[(5, 15)], [(10, 20)]]
