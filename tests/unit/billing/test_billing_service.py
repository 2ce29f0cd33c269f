"""BillingService on an in-memory database: usage, aggregation, invoice basics, idempotency."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from svc_infra.billing import BillingService, Invoice, InvoiceLine, UsageAggregate, UsageEvent
from svc_infra.billing.models import UsageDirtyDay
from svc_infra.billing.provider_hook import provider_syncs
from svc_infra.billing.tenants import change_settings, settings_of
from svc_infra.clock import FixedClock
from svc_infra.db.schema import create_tables
from svc_infra.exceptions import (
    IdempotencyConflict,
    InvalidPeriod,
    InvalidSettings,
    InvalidUsage,
    SchemaMissing,
    SvcInfraError,
)

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
JANUARY = datetime(2025, 1, 1, tzinfo=UTC)
FEBRUARY = datetime(2025, 2, 1, tzinfo=UTC)


@pytest.fixture
def session() -> Iterator[Session]:
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        yield session
    engine.dispose()


@pytest.fixture
def billing(session: Session) -> BillingService:
    return BillingService(session=session, tenant_id="t1", clock=FixedClock(NOON))


def rows(session: Session, model: type) -> int:
    return session.execute(select(func.count()).select_from(model)).scalar_one()


# --- usage


def test_usage_is_recorded_with_every_field(billing: BillingService, session: Session) -> None:
    tokyo = timezone(timedelta(hours=9))
    event_id = billing.record_usage(
        "tokens", "42.5", datetime(2025, 1, 1, 21, tzinfo=tokyo), "req-42", {"model": "gpt", "n": 1.0}
    )
    event = session.scalars(select(UsageEvent)).one()
    assert (event.id, event.tenant_id, event.metric, event.idempotency_key) == (
        event_id,
        "t1",
        "tokens",
        "req-42",
    )
    assert (event.amount, event.at_ts, event.created_at) == (Decimal("42.5"), NOON, NOON)
    assert event.metadata_json == '{"model":"gpt","n":1}'


@pytest.mark.parametrize("again", [42, "42.000", Decimal("4.2E1")])
def test_the_same_key_and_payload_is_one_event(
    billing: BillingService, session: Session, again: int | str | Decimal
) -> None:
    first = billing.record_usage("tokens", 42, NOON, "k", {"a": 1, "b": [True, None]})
    oslo = NOON.astimezone(timezone(timedelta(hours=1)))
    assert billing.record_usage("tokens", again, oslo, "k", {"b": [True, None], "a": 1.0}) == first
    assert rows(session, UsageEvent) == 1


def test_a_key_belongs_to_a_tenant_and_a_metric(billing: BillingService, session: Session) -> None:
    other = BillingService(session, "t2")
    ids = {
        billing.record_usage("tokens", 1, NOON, "k"),
        billing.record_usage("calls", 2, NOON, "k"),
        other.record_usage("tokens", 3, NOON, "k"),
    }
    assert len(ids) == rows(session, UsageEvent) == 3


@pytest.mark.parametrize(
    ("amount", "at", "metadata"),
    [
        (43, NOON, {"model": "gpt"}),
        (42, NOON + timedelta(microseconds=1), {"model": "gpt"}),
        (42, NOON, {"model": "other"}),
        (42, NOON, None),
    ],
)
def test_another_payload_for_a_used_key_is_refused_and_the_session_goes_on(
    billing: BillingService, session: Session, amount: int, at: datetime, metadata: dict[str, str] | None
) -> None:
    billing.record_usage("tokens", 42, NOON, "k", {"model": "gpt"})
    with pytest.raises(IdempotencyConflict, match="'k'"):
        billing.record_usage("tokens", amount, at, "k", metadata)
    billing.record_usage("tokens", 1, NOON, "after")
    session.commit()
    assert billing.aggregate_daily("tokens", NOON) == 43


def test_a_rollback_takes_usage_and_its_mark_away_even_in_an_engine_of_the_caller(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'own.sqlite'}")
    with engine.begin() as connection:
        create_tables(connection)
    with Session(engine) as session:
        BillingService(session, "t1").record_usage("tokens", 1, NOON, "k")
        session.rollback()
        assert (rows(session, UsageEvent), rows(session, UsageDirtyDay)) == (0, 0)
    engine.dispose()


@pytest.mark.parametrize(
    "amount",
    [1.5, True, -1, "-0.1", "NaN", "Infinity", "1_000", " 1", "", "1" * 27, "0." + "1" * 13, "1E+999999"],
)
def test_an_amount_that_is_no_exact_quantity_is_refused(billing: BillingService, amount: object) -> None:
    with pytest.raises(InvalidUsage, match="amount"):
        billing.record_usage("tokens", amount, NOON, "k")  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("amount", ["0", "-0", "9" * 26 + "." + "9" * 12, "1." + "0" * 20, "1e25"])
def test_an_amount_at_the_limits_comes_back_exactly(
    billing: BillingService, session: Session, amount: str
) -> None:
    billing.record_usage("tokens", amount, NOON, "k")
    assert session.scalars(select(UsageEvent.amount)).one() == Decimal(amount)
    assert billing.aggregate_daily("tokens", NOON) == Decimal(amount)


@pytest.mark.parametrize(
    ("metric", "key", "at", "metadata", "named"),
    [
        ("", "k", NOON, None, "metric"),
        ("m" * 201, "k", NOON, None, "metric"),
        ("m", "", NOON, None, "idempotency_key"),
        ("m", "k" * 256, NOON, None, "idempotency_key"),
        ("m", "nul\x00", NOON, None, "idempotency_key"),
        ("m\ud800", "k", NOON, None, "metric"),
        ("m", "k", NOON.replace(tzinfo=None), None, "at"),
        ("m", "k", datetime(1, 1, 1, tzinfo=UTC), None, "at"),
        ("m", "k", NOON, {"a": float("nan")}, "metadata.a"),
        ("m", "k", NOON, {"a": ["\x00"]}, "metadata.a"),
        ("m", "k", NOON, ["a"], "metadata"),
        ("m", "k", NOON, {"a": "x" * 300_000}, "metadata"),
    ],
)
def test_a_field_that_cannot_be_stored_is_named(
    billing: BillingService,
    session: Session,
    metric: str,
    key: str,
    at: datetime,
    metadata: object,
    named: str,
) -> None:
    with pytest.raises(InvalidUsage, match=named):
        billing.record_usage(metric, 1, at, key, metadata)  # type: ignore[arg-type]  # that is the test
    billing.record_usage("m", 1, NOON, "good")
    assert rows(session, UsageEvent) == 1


# --- aggregation


def test_a_day_is_summed_from_midnight_to_midnight(billing: BillingService, session: Session) -> None:
    midnight = datetime(2025, 1, 2, tzinfo=UTC)
    for index, at in enumerate(
        [JANUARY - timedelta(microseconds=1), JANUARY, midnight - timedelta(microseconds=1), midnight]
    ):
        billing.record_usage("tokens", 10**index, at, f"k{index}")
    assert billing.aggregate_daily("tokens", NOON) == 110
    aggregate = session.scalars(select(UsageAggregate)).one()
    assert (aggregate.period_start, aggregate.period_end, aggregate.granularity) == (JANUARY, midnight, "day")


def test_aggregating_again_replaces_the_total_and_says_when(
    billing: BillingService, session: Session
) -> None:
    clock = FixedClock(NOON)
    billing = BillingService(session, "t1", clock=clock)
    billing.record_usage("tokens", "0.1", NOON, "a")
    billing.aggregate_daily("tokens", NOON)
    billing.record_usage("tokens", "0.2", NOON, "b")
    clock.advance(timedelta(hours=1))
    assert billing.aggregate_daily("tokens", NOON) == Decimal("0.3")
    aggregate = session.scalars(select(UsageAggregate)).one()
    assert (aggregate.total, aggregate.updated_at) == (Decimal("0.3"), NOON + timedelta(hours=1))


def test_a_day_without_usage_has_the_total_0(billing: BillingService) -> None:
    assert billing.aggregate_daily("tokens", NOON) == 0


def test_a_naive_day_is_refused(billing: BillingService) -> None:
    with pytest.raises(InvalidPeriod, match="no offset"):
        billing.aggregate_daily("tokens", NOON.replace(tzinfo=None))


def test_days_are_those_of_the_tenants_zone(billing: BillingService, session: Session) -> None:
    billing.aggregate_daily("nothing", NOON)  # makes the tables
    change_settings(session, "t3", timezone="Asia/Tokyo", now=NOON)
    tokyo = BillingService(session, "t3")
    tokyo.record_usage("tokens", 5, datetime(2025, 1, 1, 14, 59, tzinfo=UTC), "a")
    tokyo.record_usage("tokens", 7, datetime(2025, 1, 1, 15, tzinfo=UTC), "b")
    assert tokyo.aggregate_daily("tokens", NOON) == 5
    [first] = tokyo.list_daily_aggregates("tokens")
    assert first.period_start == datetime(2024, 12, 31, 15, tzinfo=UTC)
    assert tokyo.aggregate_daily("tokens", datetime(2025, 1, 1, 15, tzinfo=UTC)) == 7


def test_daily_aggregates_are_listed_in_pages(billing: BillingService, session: Session) -> None:
    for day in (3, 1, 2):
        billing.aggregate_daily("tokens", datetime(2025, 1, day, 8, tzinfo=UTC))
    BillingService(session, "t2").aggregate_daily("tokens", NOON)
    page = billing.list_daily_aggregates("tokens", limit=2)
    rest = billing.list_daily_aggregates("tokens", after=page[-1].period_start)
    assert [item.period_start.day for item in page + rest] == [1, 2, 3]
    assert billing.list_daily_aggregates("tokens", until=page[1].period_start) == page[:1]


# --- settings


def test_the_zone_is_fixed_once_there_is_usage(billing: BillingService, session: Session) -> None:
    billing.record_usage("tokens", 1, NOON, "k")
    with pytest.raises(InvalidSettings, match="new tenant id"):
        change_settings(session, "t1", timezone="Asia/Tokyo", now=NOON)
    changed = change_settings(session, "t1", late_policy="grace", grace_seconds=60, now=NOON)
    assert changed == settings_of(session, "t1")
    assert (changed.timezone, changed.late_policy, changed.grace_seconds) == ("UTC", "grace", 60)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timezone": "Mars/Base"},
        {"late_policy": "never"},
        {"grace_seconds": -1},
        {"number_series": ""},
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    billing: BillingService, session: Session, wrong: dict[str, str | int]
) -> None:
    billing.aggregate_daily("nothing", NOON)  # makes the tables
    with pytest.raises(InvalidSettings):
        change_settings(session, "t9", now=NOON, **wrong)  # type: ignore[arg-type]  # that is the test


# --- invoices


def test_an_invoice_without_prices_has_no_lines_and_is_made_once(
    billing: BillingService, session: Session
) -> None:
    billing.record_usage("tokens", 42, NOON, "k")
    invoice_id = billing.generate_monthly_invoice(JANUARY, FEBRUARY, "usd")
    session.commit()
    assert billing.generate_monthly_invoice(JANUARY, FEBRUARY, "USD") == invoice_id
    invoice = session.scalars(select(Invoice)).one()
    assert (invoice.id, invoice.total_amount, invoice.currency) == (invoice_id, 0, "usd")
    assert rows(session, InvoiceLine) == 0


def test_a_refused_invoice_leaves_the_session_usable(billing: BillingService, session: Session) -> None:
    with pytest.raises(SvcInfraError):
        billing.generate_monthly_invoice(FEBRUARY, JANUARY, "usd")
    with pytest.raises(SvcInfraError):
        billing.generate_monthly_invoice(JANUARY, FEBRUARY, "notacur")
    billing.generate_monthly_invoice(JANUARY, FEBRUARY, "usd")
    session.commit()
    assert rows(session, Invoice) == 1


def test_the_provider_is_told_after_the_commit_and_only_of_new_invoices(session: Session) -> None:
    told: list[tuple[str, int]] = []

    def sync(invoice: Invoice, lines: list[InvoiceLine]) -> None:
        told.append((invoice.id, len(lines)))

    billing = BillingService(session, "t1", provider_sync=sync)
    invoice_id = billing.generate_monthly_invoice(JANUARY, FEBRUARY, "usd")
    assert told == []
    session.commit()
    assert told == [(invoice_id, 0)]
    billing.generate_monthly_invoice(JANUARY, FEBRUARY, "usd")
    session.commit()
    assert len(told) == 1


def test_a_rolled_back_invoice_is_told_to_nobody(session: Session) -> None:
    told: list[str] = []

    async def sync(invoice: Invoice, lines: list[InvoiceLine]) -> None:
        told.append(invoice.id)

    billing = BillingService(session, "t1", provider_sync=sync)
    billing.generate_monthly_invoice(JANUARY, FEBRUARY, "usd")
    session.rollback()
    session.commit()
    assert told == []


def test_a_provider_that_fails_never_loses_the_invoice(session: Session) -> None:
    async def sync(invoice: Invoice, lines: list[InvoiceLine]) -> None:
        raise ConnectionError("no provider today")

    billing = BillingService(session, "t1", provider_sync=sync)
    billing.generate_monthly_invoice(JANUARY, FEBRUARY, "usd")
    session.commit()
    assert rows(session, Invoice) == 1


async def test_in_a_running_loop_the_provider_is_told_by_a_task_of_it() -> None:
    told: list[str] = []

    async def sync(invoice: Invoice, lines: list[InvoiceLine]) -> None:
        told.append(invoice.id)

    engine = create_engine("sqlite://")
    with Session(engine) as session:
        billing = BillingService(session, "t1", provider_sync=sync)
        invoice_id = billing.generate_monthly_invoice(JANUARY, FEBRUARY, "usd")
        session.commit()
    await provider_syncs()
    assert told == [invoice_id]
    engine.dispose()


# --- the schema


def test_a_database_file_without_tables_is_refused_with_the_command_that_makes_them(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'empty.sqlite'}")
    with Session(engine) as session, pytest.raises(SchemaMissing, match="migrate"):
        BillingService(session, "t1").record_usage("tokens", 1, NOON, "k")
    engine.dispose()


def test_tables_made_in_a_rolled_back_transaction_are_made_again(
    billing: BillingService, session: Session
) -> None:
    billing.record_usage("tokens", 1, NOON, "k")
    session.rollback()
    billing.record_usage("tokens", 2, NOON, "k")
    session.commit()
    assert billing.aggregate_daily("tokens", NOON) == 2
