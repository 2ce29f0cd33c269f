"""The audit recomputes every kind of line, and of every meter: whichever amount is falsified, it says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.billing.credit_notes import credit_invoice
from svc_infra.billing.invoice_closing import generate_closing_invoices
from svc_infra.billing.invoice_states import void_invoice
from svc_infra.billing.metering import Metering, QuantityRounding
from svc_infra.billing.meters import Meter
from svc_infra.billing.subscription_changes import change_subscription, end_subscription
from svc_infra.billing.units import Operation, UnitConversion
from svc_infra.billing.usage import NewUsage, record_many
from svc_infra.billing.usage_corrections import void_usage
from svc_infra.billing.usage_meters import register_meter
from svc_infra.simulation.audit import audit
from tests.contract.billing_shop import MONTHS, Sessions, Shop
from tests.contract.test_audit import without_guards

_BASE = (
    '[[prices]]\nkey = "base"\nplan = "{0}"\ncurrency = "usd"\nunit_amount = "{1}"\n'
    'recurring_interval = "month"\n'
)
_USAGE = '[[prices]]\nkey = "{0}"\nplan = "use"\ncurrency = "usd"\nmetric = "{1}"\n'
_PLANS = ("small", "large", "ahead", "yearly", "promise", "use", "plain")
CATALOG = (
    "".join(f'[[plans]]\nkey = "{plan}"\n{"default = true" * (plan == "plain")}\n' for plan in _PLANS)
    + _BASE.format("small", "3100.5")
    + _BASE.format("large", 6200)
    + _BASE.format("ahead", 3001)
    + "advance = true\n"
    + _BASE.format("yearly", 36500).replace("month", "year")
    + _BASE.format("promise", 5000).replace('"base"', '"commitment"')
    + "commitment = true\n"
    + _USAGE.format("calls", "calls").replace('"use"', '"promise"')
    + 'unit_amount = "100"\n'
    + _USAGE.format("gpt", "tokens")
    + 'unit_amount = "10"\nfilter = { model = ["gpt", "gpt-mini"] }\n'
    + _USAGE.format("other", "tokens")
    + 'unit_amount = "3"\ngroup_by = ["region"]\n'
    + _USAGE.format("minimum", "quiet")
    + 'unit_amount = "1"\nminimum_amount = "99"\n'
    + _USAGE.format("bytes", "bytes")
    + 'unit_amount = "7"\n'
    + _USAGE.format("fee", "payments")
    + 'model = "percentage"\npercent = "1"\n'
    + 'per_event = { fixed_amount = "30", free_events = 1, minimum_amount = "50" }\n'
    + "".join(_USAGE.format(kind, kind) + 'unit_amount = "11"\n' for kind in Meter)
    + '[[prices]]\nkey = "plain"\nplan = "plain"\ncurrency = "usd"\nmetric = "plain"\nunit_amount = "5"\n'
)
_JANUARY = datetime(2025, 1, 7, 12, tzinfo=UTC)


async def record(shop: Shop, metric: str, *events: tuple[str, dict[str, Any]], tenant_id: str = "t") -> str:
    usage = [
        NewUsage(tenant_id, metric, Decimal(amount), _JANUARY + timedelta(days=at), f"{shop.now} {at}", data)
        for at, (amount, data) in enumerate(events)
    ]
    [first, *_] = await shop.call(record_many, usage, now=shop.now)
    return str(first.id)


@pytest.fixture
async def shop(session_factory: Sessions) -> Shop:
    """Half a year in which everything happens that an invoice can tell of."""
    shop = Shop(session_factory)
    await shop.apply(CATALOG)
    for kind in Meter:
        unique = "user" if kind is Meter.UNIQUE_COUNT else None
        await shop.call(register_meter, Metering(kind.value, kind, unique), now=shop.now)
    tokens = Metering("tokens", dimensions=("model", "region"))
    conversion = UnitConversion(Operation.DIVIDE, Decimal(1000), None)
    converted = Metering("bytes", conversion=conversion, rounding=QuantityRounding(places=1))
    for metering in (tokens, converted):
        await shop.call(register_meter, metering, now=shop.now)
    await _bill_t(shop)
    await _bill_others(shop)
    return shop


async def _bill_t(shop: Shop) -> None:
    small = await shop.subscribe("small", quantity=3, trial_days=9)
    ahead, yearly = await shop.subscribe("ahead"), await shop.subscribe("yearly")
    for plan in ("promise", "use"):
        await shop.subscribe(plan)
    await record(shop, "calls", ("7", {}))
    await record(
        shop, "tokens", ("2", {"model": "gpt"}), ("5", {"region": "eu"}), ("4", {"region": 1.5, "model": "x"})
    )
    await record(shop, "bytes", ("1234", {}))
    await record(shop, "payments", ("100", {}), ("200", {}), ("3.5", {}))
    for kind in Meter:
        await record(shop, kind, ("3", {"user": "a"}), ("8", {"user": "b"}), ("5", {"user": "a"}))
    shop.now = MONTHS[1]
    january = await shop.invoice(1)
    await shop.call(credit_invoice, "t", january, amount=777, reason="kindness", actor="ann", now=shop.now)
    shop.now = datetime(2025, 2, 12, tzinfo=UTC)
    await shop.call(change_subscription, "t", small, plan_key="large", now=shop.now)
    for held in (ahead, yearly):
        await shop.call(end_subscription, "t", held, ended_at=datetime(2025, 2, 20, tzinfo=UTC), now=shop.now)
    await record(shop, "calls", ("20", {}))  # late: a commitment is reached after all
    await record(shop, "tokens", ("9", {"model": "gpt-mini"}), ("1", {"region": "us"}))
    await record(shop, "bytes", ("100", {}))
    for month in (2, 3):
        shop.now = MONTHS[month]
        await shop.invoice(month)


async def _bill_others(shop: Shop) -> None:
    """One whose usage is voided, one who gets a closing invoice, and one whose invoice is voided."""
    shop.now = MONTHS[0]
    made = {}
    for tenant_id in ("credited", "closed", "voided"):
        held = await shop.subscribe("plain", tenant_id=tenant_id)
        made[tenant_id] = await record(shop, "plain", ("40", {}), tenant_id=tenant_id)
        if tenant_id == "closed":
            await shop.call(end_subscription, tenant_id, held, ended_at=MONTHS[1], now=shop.now)
    shop.now = MONTHS[1]
    january = {tenant_id: await shop.invoice(1, tenant_id) for tenant_id in made}
    for tenant_id in ("closed", "voided"):
        await record(shop, "plain", ("3", {}), tenant_id=tenant_id)
    await shop.call(void_usage, "credited", made["credited"], reason="wrong", actor="ann", now=shop.now)
    shop.now = MONTHS[2]
    await shop.call(generate_closing_invoices, ["closed"], now=shop.now)
    for tenant_id in ("credited", "voided"):
        await shop.invoice(2, tenant_id)
    await shop.call(void_invoice, "voided", january["voided"], reason="wrong", now=shop.now)


async def test_every_kind_of_line_is_recomputed_and_right(shop: Shop) -> None:
    async with shop.session_factory() as session:
        kinds = set(await session.scalars(text("SELECT kind FROM invoice_lines")))
    assert kinds == {"fixed", "unused", "usage", "true_up", "adjustment", "credit"}
    report = await audit(shop.session_factory)
    assert report.differences == []
    assert (report.unknown, report.waiting, report.tenants) == (0, 0, 4)


_OF = "tenant_id = 't' AND kind = '{}'"
FALSIFIED = {
    "fixed in arrears, with seats and a trial": _OF.format("fixed") + " AND description = 'base'"
    " AND price_snapshot LIKE '%3100.5%'",
    "fixed after a change of plan": _OF.format("fixed") + " AND price_snapshot LIKE '%6200%'",
    "fixed in advance": _OF.format("fixed") + " AND price_snapshot LIKE '%3001%'",
    "fixed for a part of a year": _OF.format("fixed") + " AND price_snapshot LIKE '%36500%'",
    "unused": _OF.format("unused"),
    "true-up": _OF.format("true_up"),
    "adjustment of a true-up": _OF.format("adjustment") + " AND metric IS NULL",
    "adjustment of usage": _OF.format("adjustment") + " AND metric = 'calls'",
    "adjustment on a closing invoice": "tenant_id = 'closed' AND kind = 'adjustment'",
    "adjustment of a void invoice": "tenant_id = 'voided' AND kind = 'adjustment'",
    "credit that is carried": "tenant_id = 'credited' AND kind = 'credit'",
    "minimum": _OF.format("usage") + " AND description = 'minimum'",
    "filtered": _OF.format("usage") + " AND description = 'gpt'",
    "grouped": _OF.format("usage") + " AND description = 'other (eu)'",
    "by the event": _OF.format("usage") + " AND description = 'fee'",
    "converted": _OF.format("usage") + " AND description = 'bytes'",
    **{f"meter {kind.value}": _OF.format("usage") + f" AND metric = '{kind.value}'" for kind in Meter},
}


async def test_whichever_line_is_falsified_is_found(shop: Shop, engine: AsyncEngine) -> None:
    """With its invoice's total, so that nothing but its own amount is wrong."""
    first = "(SELECT min(id) FROM invoice_lines WHERE {})"
    unseen = []
    for name, where in FALSIFIED.items():
        where = where.replace("price_snapshot LIKE", "CAST(price_snapshot AS TEXT) LIKE")
        line = f"id = {first.format(where)}"
        changes = (
            f"UPDATE invoice_lines SET amount = amount + {{0}} WHERE {line}",
            "UPDATE invoices SET total_amount = total_amount + {0} "
            f"WHERE id = (SELECT invoice_id FROM invoice_lines WHERE {line})",
        )
        for by in (1, -1):
            async with engine.begin() as connection:
                await without_guards(connection)
                for change in changes:
                    changed = await connection.execute(text(change.format(by)))
                    assert changed.rowcount == 1, name
            if by == 1:
                found = {each.kind for each in (await audit(shop.session_factory)).differences}
                if not found & {"amount", "credit", "adjustment"} or "total" in found:
                    unseen.append((name, found))
    assert unseen == []
    assert (await audit(shop.session_factory)).is_clean


OTHERWISE = {
    "credit note": "UPDATE credit_notes SET total_amount = total_amount + 1",
    "unbilled": "DELETE FROM invoice_lines WHERE kind = 'fixed' AND tenant_id = 't'"
    " AND CAST(price_snapshot AS TEXT) LIKE '%6200%'",
    "day total": "UPDATE usage_aggregates SET total = '99' WHERE metric = 'maximum'",
}


async def test_what_stands_beside_lines_is_held_against_them(shop: Shop, engine: AsyncEngine) -> None:
    for kind, change in OTHERWISE.items():
        async with engine.begin() as connection:
            await without_guards(connection)
            await connection.execute(text(change))
        assert kind in {each.kind for each in (await audit(shop.session_factory)).differences}
