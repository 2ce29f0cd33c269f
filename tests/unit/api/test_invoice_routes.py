"""Invoices over HTTP: pages and filters, acts for the state that was read, and nothing kept by a preview."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.setup import add_billing
from svc_infra.billing import BillingService
from svc_infra.billing.models import CreditNote
from svc_infra.billing.tenants import change_settings
from svc_infra.clock import FixedClock
from svc_infra.jobs.acts import list_acts
from svc_infra.jobs.models import JobRow
from tests.unit.api.asking import ONE, TWO, client_of, principal_of
from tests.unit.api.route_matrix import Seeds, rows_in_all_tables
from tests.unit.api.seeds import sow_billing

Sessions = async_sessionmaker[AsyncSession]
PROBLEM = "urn:svc-infra:problem:"
ANY_STATE = {"If-Match": "*"}


@pytest.fixture
def app(session_factory: Sessions, clock: FixedClock) -> FastAPI:
    app = FastAPI()
    add_billing(app, session_factory=session_factory, principal=principal_of, clock=clock, has_provider=True)
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app, ONE) as client:
        yield client


@pytest.fixture
async def invoice_id(session_factory: Sessions) -> str:
    """An issued invoice over 1,030, of which 10 are credited."""
    seeds = Seeds()
    async with session_factory.begin() as session:
        await session.run_sync(sow_billing, seeds, "t1")
    return seeds.ids["invoice_id"]


async def make_invoices(sessions: Sessions, tenant_id: str, months: range) -> list[str]:
    def make(session: Session) -> list[str]:
        billing = BillingService(session, tenant_id)
        bounds = [datetime(2025 + n // 12, n % 12 + 1, 1, tzinfo=UTC) for n in range(months.stop + 1)]
        return [billing.generate_monthly_invoice(bounds[n], bounds[n + 1], "usd") for n in months]

    async with sessions.begin() as session:
        return await session.run_sync(make)


async def test_an_act_is_for_the_state_that_was_read(
    client: httpx.AsyncClient, session_factory: Sessions, invoice_id: str
) -> None:
    path = f"/_billing/invoices/{invoice_id}"
    read = await client.get(path)
    etag = read.headers["ETag"]
    assert (await client.get(path, headers={"If-None-Match": f'"x", W/{etag}'})).status_code == 304
    why = {"reason": "they are gone"}

    blind = await client.post(f"{path}/mark-uncollectible", json=why)
    assert (blind.status_code, blind.json()["type"]) == (428, PROBLEM + "if-match-missing")
    done = await client.post(f"{path}/mark-uncollectible", json=why, headers={"If-Match": etag})
    assert (done.status_code, done.json()["status"]) == (200, "uncollectible")
    late = await client.post(f"{path}/mark-paid", headers={"If-Match": etag})
    assert (late.status_code, late.json()["type"]) == (412, PROBLEM + "changed-meanwhile")
    assert late.headers["ETag"] == done.headers["ETag"]
    paid = await client.post(f"{path}/mark-paid", headers={"If-Match": f'"x", {done.headers["ETag"]}'})
    assert (paid.status_code, paid.json()["status"]) == (200, "paid")
    void = await client.post(f"{path}/void", json=why, headers=ANY_STATE)
    assert (void.status_code, void.json()["type"]) == (409, PROBLEM + "invalid-status")

    async with session_factory() as session:
        acts = await session.run_sync(list_acts, subject=invoice_id)
    assert [(act.act, act.actor) for act in acts] == [
        ("mark_invoice_paid", "tenant t1"),
        ("mark_invoice_uncollectible", "tenant t1"),
    ]
    assert acts[1].detail == {"tenant_id": "t1", **why}


async def test_of_two_acts_for_one_state_one_is_done(
    client: httpx.AsyncClient, session_factory: Sessions, invoice_id: str
) -> None:
    path = f"/_billing/invoices/{invoice_id}"
    etag = {"If-Match": (await client.get(path)).headers["ETag"]}
    note = {"reason": "an outage", "amount": 100}
    answers = await asyncio.gather(
        *(client.post(f"{path}/credit-notes", json=note, headers=etag) for _ in range(4))
    )
    assert sorted(answer.status_code for answer in answers) == [201, 412, 412, 412]
    assert (await client.get(path)).json()["credited_amount"] == 110


async def test_a_repeated_credit_note_is_the_first_one(
    client: httpx.AsyncClient, session_factory: Sessions, invoice_id: str
) -> None:
    path = f"/_billing/invoices/{invoice_id}/credit-notes"
    headers = {"If-Match": (await client.get(path.removesuffix("/credit-notes"))).headers["ETag"]}
    note = {"reason": "an outage", "lines": [{"position": 1, "amount": 30}, {"position": 2}]}
    first = await client.post(path, json=note, headers={**headers, "Idempotency-Key": "k"})
    again = await client.post(path, json=note, headers={**headers, "Idempotency-Key": "k"})
    assert (first.status_code, again.status_code, again.content) == (201, 201, first.content)
    body = first.json()
    assert [line["position"] for line in body["lines"]] == [1, 2]
    assert body["total_amount"] == sum(line["amount"] for line in body["lines"])
    listed = (await client.get(path)).json()["items"]
    assert [each["id"] for each in listed][1:] == [body["id"]]
    async with session_factory() as session:
        assert await session.scalar(select(func.count()).select_from(CreditNote)) == 2


async def test_too_much_cannot_be_credited(client: httpx.AsyncClient, invoice_id: str) -> None:
    path = f"/_billing/invoices/{invoice_id}/credit-notes"
    wrong: list[tuple[dict[str, Any], int]] = [
        ({"amount": 1_021}, 422),
        ({"amount": 1.0}, 422),
        ({"amount": "1"}, 422),
        ({"amount": True}, 422),
        ({"amount": 2**63}, 422),
        ({"lines": [{"position": 3}]}, 404),
        ({"lines": [{"position": 1}, {"position": 1}]}, 422),
        ({"amount": 1, "lines": [{"position": 1}]}, 422),
    ]
    for more, status in wrong:
        answer = await client.post(path, json={"reason": "why", **more}, headers=ANY_STATE)
        assert (answer.status_code, more) == (status, more)
    assert len((await client.get(path)).json()["items"]) == 1


async def test_the_list_is_filtered_and_read_page_by_page(
    client: httpx.AsyncClient, session_factory: Sessions
) -> None:
    made = await make_invoices(session_factory, "t1", range(5))
    await make_invoices(session_factory, "t2", range(2))
    await client.post(f"/_billing/invoices/{made[1]}/mark-paid", headers=ANY_STATE)

    seen, params = list[str](), dict[str, Any](limit=2)
    while True:
        page = (await client.get("/_billing/invoices", params=params)).json()
        seen += [invoice["id"] for invoice in page["items"]]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    assert seen == made

    async def ids(**params: Any) -> list[str]:
        answer = await client.get("/_billing/invoices", params=params)
        return [invoice["id"] for invoice in answer.json()["items"]]

    assert await ids(status="paid") == [made[1]]
    assert await ids(period="2025-03") == [made[2]]
    assert await ids(period="2025-03", status="paid") == []
    cursor = params["cursor"]
    for headers, other in ((TWO, {}), (ONE, {"status": "paid"}), (ONE, {"period": "2025-01"})):
        answer = await client.get(
            "/_billing/invoices", params={"limit": 2, "cursor": cursor, **other}, headers=headers
        )
        assert (answer.status_code, answer.json()["type"]) == (422, PROBLEM + "invalid-cursor")


async def test_a_month_is_the_tenant_s_own(client: httpx.AsyncClient, session_factory: Sessions) -> None:
    def make(session: Session) -> str:
        change_settings(session, "t1", timezone="Europe/Zurich", now=datetime(2025, 1, 1, tzinfo=UTC))
        bounds = datetime(2024, 12, 31, 23, tzinfo=UTC), datetime(2025, 1, 31, 23, tzinfo=UTC)
        return BillingService(session, "t1").generate_monthly_invoice(*bounds, "usd")

    async with session_factory.begin() as session:
        made = await session.run_sync(make)
    found = await client.get("/_billing/invoices?period=2025-01")
    assert [invoice["id"] for invoice in found.json()["items"]] == [made]
    assert (await client.get("/_billing/invoices?period=2024-12")).json()["items"] == []


async def test_lines_are_paged_and_add_up_and_are_explained(
    client: httpx.AsyncClient, invoice_id: str
) -> None:
    path = f"/_billing/invoices/{invoice_id}"
    first = (await client.get(f"{path}/lines?limit=1")).json()
    rest = (await client.get(f"{path}/lines?limit=1&cursor={first['next_cursor']}")).json()
    lines = [*first["items"], *rest["items"]]
    assert [line["position"] for line in lines] == [1, 2]
    assert rest["next_cursor"] is None
    assert sum(line["amount"] for line in lines) == (await client.get(path)).json()["total_amount"] == 1_030
    explained = (await client.get(f"{path}/explanation")).json()["lines"]
    [usage] = [each for each in explained if each["line"]["kind"] == "usage"]
    assert usage["tiers"] == [
        {"tier": 1, "quantity": "12", "unit_amount": "2.5", "flat_amount": "0", "amount": "30"}
    ]
    assert (usage["events"], usage["days"]) == (
        1,
        [{"day_start": "2025-01-10T00:00:00Z", "total": "12"}],
    )


async def test_a_draft_is_issued_early_and_mirrored_in_the_caller_s_trace(
    client: httpx.AsyncClient, session_factory: Sessions
) -> None:
    async with session_factory.begin() as session:
        # Days that never end: the clock of a draft's grace is the system's here.
        await session.run_sync(
            change_settings, "t1", now=datetime(2025, 1, 1, tzinfo=UTC), grace_seconds=2**31 - 1
        )
    [draft] = await make_invoices(session_factory, "t1", range(1))
    path = f"/_billing/invoices/{draft}"
    read = await client.get(path)
    assert (read.json()["status"], read.json()["number"]) == ("draft", None)
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    headers = {"If-Match": read.headers["ETag"], "traceparent": trace}
    issued = await client.post(f"{path}/finalize", headers=headers)
    assert (issued.status_code, issued.json()["status"], issued.json()["number"]) == (200, "finalized", 1)
    again = await client.post(f"{path}/finalize", headers=ANY_STATE)
    assert again.json() == issued.json()
    async with session_factory() as session:
        jobs = list(await session.scalars(select(JobRow)))
    assert [(job.name, job.payload["invoice_id"]) for job in jobs] == [("billing.sync_invoice", draft)]
    assert jobs[0].trace_context == issued.headers["traceparent"]
    assert issued.headers["traceparent"].split("-")[1] == "ab" * 16


async def test_a_preview_keeps_nothing(
    client: httpx.AsyncClient, session_factory: Sessions, invoice_id: str
) -> None:
    before = await rows_in_all_tables(session_factory)
    preview = (await client.get("/_billing/preview?month=2025-02")).json()
    assert [(each["currency"], each["total_amount"]) for each in preview["items"]] == [
        ("usd", 995)
    ]  # with what waits
    catalog = (
        '[[plans]]\nkey = "matrix"\nname = "Matrix"\ndefault = true\n[[prices]]\nkey = "base"\n'
        'plan = "matrix"\ncurrency = "usd"\nmodel = "fixed"\nrecurring_interval = "month"\n'
        'unit_amount = "1500"\n'
    )
    what_if = {"month": "2025-02", "catalog": catalog}
    compared = (await client.post("/_billing/preview", json=what_if)).json()
    assert compared["items"] == preview["items"]
    assert [each["total_amount"] for each in compared["under_catalog"]] == [1_495]
    assert await rows_in_all_tables(session_factory) == before

    invoiced = await client.get("/_billing/preview?month=2025-01")
    assert (invoiced.status_code, invoiced.json()["type"]) == (409, PROBLEM + "period-overlap")
    wrong = await client.post("/_billing/preview", json={"catalog": "[[plans]]\nkey = 1\n"})
    assert (wrong.status_code, wrong.json()["type"]) == (422, PROBLEM + "invalid-catalog")
    assert "catalog.toml:2" in wrong.json()["detail"]


async def test_reading_takes_a_statement_or_two(
    client: httpx.AsyncClient, engine: AsyncEngine, invoice_id: str
) -> None:
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            statements.append(statement)

    path = f"/_billing/invoices/{invoice_id}"
    await client.get("/_billing/invoices?limit=1")
    taken = {}
    event.listen(engine.sync_engine, "before_cursor_execute", note)
    reads = ("/lines", "/explanation")
    lists = ("/_billing/invoices", "/_billing/plans", "/_billing/subscriptions")
    for each in (*lists, path, *(f"{path}{read}" for read in reads)):
        statements.clear()
        assert (await client.get(each)).status_code == 200
        taken[each.removeprefix(path)] = len(statements)
    event.remove(engine.sync_engine, "before_cursor_execute", note)
    assert taken == {
        "/_billing/invoices": 1,
        "": 1,
        "/lines": 2,
        "/explanation": 4,
        "/_billing/plans": 2,
        "/_billing/subscriptions": 1,
    }
