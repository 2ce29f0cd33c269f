"""Meters and dimensions from the tables, against the pure functions that say what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import TypeVar

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.billing.aggregation import consume_marks_of, list_daily
from svc_infra.billing.dimensions import DEFAULT, DimensionFilter, filter_of
from svc_infra.billing.metering import Metering, QuantityRounding
from svc_infra.billing.meters import Meter, MeteredEvent, measure
from svc_infra.billing.periods import Period
from svc_infra.billing.units import Operation, UnitConversion
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.billing.usage_meters import list_meters, meterings_of, register_meter
from svc_infra.billing.usage_models import UsageDirtyDay
from svc_infra.billing.usage_quantities import UsageQuantity, UsageQuery, measure_usage
from svc_infra.exceptions import InvalidMeter

R = TypeVar("R")
Factory = async_sessionmaker[AsyncSession]
START = datetime(2025, 1, 1, tzinfo=UTC)
WEEK = Period(START, START + timedelta(days=7))
SECOND_WEEK = Period(WEEK.end, WEEK.end + timedelta(days=7))
GPT = DimensionFilter.of({"model": ["gpt", "gpt-mini"]})
GPT_EU = DimensionFilter.of({"model": "gpt", "region": "eu"})
FLAG = DimensionFilter.of({"region": "true"})
FILTERS = (DEFAULT, GPT, GPT_EU, FLAG)


async def in_session(factory: Factory, act: Callable[[Session], R]) -> R:
    async with factory() as session, session.begin():
        return await session.run_sync(act)


def metering(meter: Meter) -> Metering:
    unique_key = "user" if meter is Meter.UNIQUE_COUNT else None
    return Metering(meter.value, meter, unique_key, ("model", "region"))


async def record(factory: Factory, events: list[NewUsage]) -> None:
    await in_session(factory, lambda session: record_many(session, events, now=START))


def random_events(rng: Random, metric: str, *, may_be_negative: bool) -> list[NewUsage]:
    """Three tenants' events of 14 days, some at one instant and on midnights, amounts with 12 decimals."""
    events = []
    for number in range(120):
        at = START + timedelta(hours=rng.choice([0, 6, 12, 13.5]), days=rng.randrange(14))
        amount = Decimal(rng.choice(["1", "0.000000000001", "7.5", "12345678901234567890.1", "3", "0"]))
        if may_be_negative and rng.random() < 0.3:
            amount = -amount
        metadata = {
            "model": rng.choice(["gpt", "gpt-mini", 'o"ther\u00fc', None]),
            "region": rng.choice(["eu", True, 1.5]),
            "user": rng.choice(["ann", "bob", 7, None]),
        }
        metadata = {key: value for key, value in metadata.items() if value is not None}
        events.append(NewUsage(f"t{number % 3}", metric, amount, at, f"k{number}", metadata or None))
    return events


def expected(
    meter: Meter, events: list[NewUsage], period: Period, chosen: Callable[[dict[str, str | None]], bool]
) -> Decimal:
    """What the pure meter makes of the events whose texts are ``chosen``."""
    metered = []
    for event in events:
        texts = {key: text_of(value) for key, value in (event.metadata or {}).items()}
        if chosen({"model": None, "region": None, **texts}):
            metered.append(MeteredEvent(event.at, event.amount, texts.get("user")))
    return measure(meter, metered, period)


def text_of(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("meter", list(Meter))
async def test_what_is_stored_by_day_measures_what_the_meter_says(
    session_factory: Factory, meter: Meter
) -> None:
    events = random_events(Random(meter.value), meter.value, may_be_negative=meter is Meter.WEIGHTED_SUM)
    await in_session(session_factory, lambda s: register_meter(s, metering(meter), now=START))
    await record(session_factory, events[:70])
    await record(session_factory, events[70:])
    tenants = ["t0", "t1", "t2", "nobody"]
    queries = [UsageQuery(tenant, meter.value, SECOND_WEEK) for tenant in tenants]
    queries += [
        UsageQuery(tenant, meter.value, SECOND_WEEK, FILTERS, wanted)
        for tenant in tenants
        for wanted in FILTERS
    ]
    queries += [
        UsageQuery(tenant, meter.value, SECOND_WEEK, FILTERS, DEFAULT, ("region",)) for tenant in tenants
    ]

    def measured(session: Session) -> list[list[UsageQuantity]]:
        consume_marks_of(session, tenants, SECOND_WEEK, now=START)
        return measure_usage(session, queries)

    answers = await in_session(session_factory, measured)
    for query, answer in zip(queries, answers, strict=True):
        of_tenant = [event for event in events if event.tenant_id == query.tenant_id]
        for group in {part.group for part in answer}:
            wanted = expected(
                meter,
                of_tenant,
                SECOND_WEEK,
                lambda texts, query=query, group=group: (
                    (not query.filters or filter_of(texts, query.filters) == query.wanted)
                    and tuple(texts[key] for key in query.group_by) == group
                ),
            )
            [found] = [part for part in answer if part.group == group]
            assert (query, group, found.measured, found.quantity) == (query, group, wanted, wanted)
    # Nothing of the first week is asked for, and each answer of the second is there.
    assert [len(answer) for answer in answers[:20]] == [1] * 20
    assert [len(answer) for answer in answers[20:]] == [2, 2, 2, 0]  # true has a filter of its own


@pytest.mark.parametrize("meter", list(Meter))
async def test_the_day_total_is_what_the_meter_makes_of_the_day(
    session_factory: Factory, meter: Meter
) -> None:
    events = random_events(Random(1), meter.value, may_be_negative=False)
    await in_session(session_factory, lambda s: register_meter(s, metering(meter), now=START))
    await record(session_factory, events)
    await in_session(session_factory, lambda s: consume_marks_of(s, ["t1"], WEEK, now=START))
    days = await in_session(session_factory, lambda s: list_daily(s, "t1", meter.value, until=WEEK.end))
    as_days = Meter.SUM if meter is Meter.WEIGHTED_SUM else meter  # there the net change of the day
    of_tenant = [event for event in events if event.tenant_id == "t1"]
    assert len(days) == 7
    for day in days:
        bounds = Period(day.period_start, day.period_start + timedelta(days=1))
        assert day.total == expected(as_days, of_tenant, bounds, lambda texts: True)


async def test_every_event_falls_under_exactly_one_filter(session_factory: Factory) -> None:
    events = random_events(Random(3), "sum", may_be_negative=False)
    await in_session(session_factory, lambda s: register_meter(s, metering(Meter.SUM), now=START))
    await record(session_factory, events)
    whole = Period(WEEK.start, SECOND_WEEK.end)
    queries = [UsageQuery("t0", "sum", whole, FILTERS, wanted) for wanted in FILTERS]

    def measured(session: Session) -> list[Decimal]:
        consume_marks_of(session, ["t0"], whole, now=START)
        return [part.measured for [part] in measure_usage(session, queries)]

    parts = await in_session(session_factory, measured)
    assert all(parts)
    assert sum(parts) == sum(event.amount for event in events if event.tenant_id == "t0")


async def test_conversion_and_rounding_apply_to_the_period_and_not_to_its_days(
    session_factory: Factory,
) -> None:
    gigabytes = Metering(
        "bytes",
        conversion=UnitConversion(Operation.DIVIDE, Decimal(1000), None),
        rounding=QuantityRounding(places=0),
    )
    await in_session(session_factory, lambda s: register_meter(s, gigabytes, now=START))
    days = [START + timedelta(days=day) for day in range(3)]
    await record(session_factory, [NewUsage("t", "bytes", Decimal(400), at, str(at)) for at in days])

    def measured(session: Session) -> list[list[UsageQuantity]]:
        consume_marks_of(session, ["t"], WEEK, now=START)
        return measure_usage(session, [UsageQuery("t", "bytes", WEEK)])

    [[found]] = await in_session(session_factory, measured)
    assert (found.measured, found.quantity) == (1200, 1)
    assert (found.units or {})["rounding"] == {"mode": "half_away_from_zero", "places": 0}


async def test_a_meter_is_fixed_once_its_metric_has_usage(session_factory: Factory) -> None:
    await record(session_factory, [NewUsage("t", "m", Decimal(1), START, "k")])
    with pytest.raises(InvalidMeter, match="fixed"):
        await in_session(session_factory, lambda s: register_meter(s, Metering("m", Meter.COUNT), now=START))
    other = Metering("n", Meter.COUNT)
    assert await in_session(session_factory, lambda s: register_meter(s, other, now=START))
    assert not await in_session(session_factory, lambda s: register_meter(s, other, now=START))
    assert await in_session(session_factory, list_meters) == [other]
    found = await in_session(session_factory, lambda s: meterings_of(s, ["m", "n"]))
    assert found == {"m": Metering("m"), "n": other}


async def test_dimensions_that_are_added_later_sort_out_what_was_recorded_before(
    session_factory: Factory,
) -> None:
    await record(session_factory, [NewUsage("t", "m", Decimal(2), START, "k", {"model": "gpt"})])
    await in_session(session_factory, lambda s: consume_marks_of(s, ["t"], WEEK, now=START))
    query = UsageQuery("t", "m", WEEK, (DEFAULT, GPT), GPT)
    with pytest.raises(InvalidMeter, match="no dimension 'model'"):
        await in_session(session_factory, lambda s: measure_usage(s, [query]))

    def register_and_measure(session: Session) -> tuple[int, list[list[UsageQuantity]]]:
        register_meter(session, Metering("m", dimensions=("model",)), now=START)
        marks = session.scalar(select(func.count()).select_from(UsageDirtyDay))
        consume_marks_of(session, ["t"], WEEK, now=START)
        return marks or 0, measure_usage(session, [query])

    marks, [[answer]] = await in_session(session_factory, register_and_measure)
    assert (marks, answer.measured) == (1, 2)


async def test_the_number_of_statements_does_not_grow_with_the_tenants(
    session_factory: Factory,
) -> None:
    await in_session(session_factory, lambda s: register_meter(s, metering(Meter.MAXIMUM), now=START))

    def statements(tenants: int) -> Callable[[Session], int]:
        def count(session: Session) -> int:
            seen: list[str] = []
            bind = session.connection()
            sqlalchemy_event.listen(bind, "before_cursor_execute", lambda *args: seen.append(args[2]))
            measure_usage(
                session,
                [
                    UsageQuery(f"t{n}", "maximum", WEEK, FILTERS, wanted)
                    for n in range(tenants)
                    for wanted in FILTERS
                ],
            )
            return len(seen)

        return count

    one = await in_session(session_factory, statements(1))
    assert await in_session(session_factory, statements(500)) == one <= 3
