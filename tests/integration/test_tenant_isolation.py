"""Row-level security: what a transaction that acts for a tenant cannot reach, whatever its queries say."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from fastapi import Depends, FastAPI
from sqlalchemy import Connection, Table, UniqueConstraint, delete, func, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from svc_infra.api.fastapi.service import make_app
from svc_infra.api.fastapi.webhooks import endpoints as endpoint_routes
from svc_infra.api.keys import TENANT_SCOPES
from svc_infra.billing.models import UsageEvent
from svc_infra.billing.quotas import require_quota
from svc_infra.cli import cli
from svc_infra.db.schema import metadata
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.db.tenant_isolation import act_for, condition_of, isolate, require_isolation
from svc_infra.exceptions import InvalidSettings
from svc_infra.webhooks.endpoints import get_endpoint
from svc_infra.webhooks.models import EndpointRow
from tests.unit.api.asking import client_of
from tests.unit.api.route_matrix import OWNER, STRANGER, Seeds, Sessions, make_key
from tests.unit.api.seeds import sow

ROLE = "svc_infra_tenant_test"
WALLED = [table for table in metadata().sorted_tables if condition_of(table) is not None]

pytestmark = pytest.mark.postgres_only


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine of one connection, so that whatever a transaction leaves behind meets the next one."""
    engine = make_engine(database_url, pool_size=1)
    async with engine.begin() as connection:
        await connection.run_sync(isolate, ROLE)
    yield engine
    await engine.dispose()


@pytest.fixture
def session_factory(engine: AsyncEngine) -> Sessions:
    return make_session_factory(engine)


@pytest.fixture
async def seeds(session_factory: Sessions) -> Seeds:
    return await sow(session_factory)


@asynccontextmanager
async def acting(sessions: Sessions, tenant_id: str) -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        act_for(session, tenant_id, ROLE)
        yield session


async def counts(session: AsyncSession) -> dict[str, int]:
    return {
        table.name: await session.scalar(select(func.count()).select_from(table)) or 0 for table in WALLED
    }


async def test_whatever_is_asked_a_tenant_finds_its_own_rows_only(
    session_factory: Sessions, seeds: Seeds
) -> None:
    async with session_factory() as session:
        everything = await counts(session)  # by the owner of the tables, whom nothing holds back
    async with acting(session_factory, OWNER) as session:
        own = await counts(session)
    async with acting(session_factory, STRANGER) as session:
        assert {name for name, count in (await counts(session)).items() if count} == set()
    seeded = {"usage_events", "invoices", "invoice_lines", "webhook_endpoints", "webhook_deliveries", "jobs"}
    seeded |= {"webhook_delivery_attempts", "webhook_replays", "webhook_audit", "outbox_messages"}
    assert {name for name, count in own.items() if count} >= seeded
    assert own == everything  # all that was sown is the owner's


async def test_it_holds_over_commits_and_savepoints_and_ends_with_the_session(
    session_factory: Sessions, seeds: Seeds
) -> None:
    events = select(func.count()).select_from(UsageEvent)
    async with acting(session_factory, STRANGER) as session:
        assert await session.scalar(events) == 0
        await session.commit()
        assert await session.scalar(events) == 0
        async with session.begin_nested() as savepoint:
            await session.execute(text(f"SELECT set_config('svc_infra.tenant_id', '{OWNER}', true)"))
            await savepoint.rollback()
        assert await session.scalar(events) == 0
        await session.rollback()
    async with session_factory() as session:  # on the same connection
        assert await session.scalar(text("SELECT current_setting('role')")) == "none"
        assert await session.scalar(events) == 1
    async with session_factory() as session:  # the tenant is the empty text now, and no longer NULL
        await session.execute(text(f"SET LOCAL ROLE {ROLE}"))
        assert await session.scalar(text("SELECT current_setting('svc_infra.tenant_id', true)")) == ""
        assert set((await counts(session)).values()) == {0}


async def test_without_a_tenant_nothing_is_found_and_none_can_be_left_out(
    session_factory: Sessions, seeds: Seeds, engine: AsyncEngine
) -> None:
    await engine.dispose()  # a connection on which no tenant was ever named
    async with session_factory() as session:
        await session.execute(text(f"SET LOCAL ROLE {ROLE}"))
        assert set((await counts(session)).values()) == {0}
        with pytest.raises(InvalidSettings, match="name one"):
            act_for(session, "", ROLE)


async def refused(sessions: Sessions, statement: Any, parameters: dict[str, Any] | None = None) -> str:
    async with acting(sessions, STRANGER) as session:
        with pytest.raises(DBAPIError) as error:
            await session.execute(statement, parameters or {})
    return str(error.value)


async def test_nothing_is_written_for_another_tenant(session_factory: Sessions, seeds: Seeds) -> None:
    endpoint = {
        "id": "0194b1e0-0000-7000-8000-000000000001",
        "tenant_id": OWNER,
        "url": "https://x.example/",
        "topics": ["*"],
        "secrets": [],
        "created_at": func.now(),
    }
    insert = metadata().tables["webhook_endpoints"].insert()
    assert "row-level security" in await refused(session_factory, insert.values(**endpoint))
    async with acting(session_factory, STRANGER) as session:
        await session.execute(insert.values(**endpoint | {"tenant_id": STRANGER}))
        for statement in (
            update(EndpointRow).where(EndpointRow.tenant_id == OWNER).values(url="https://stolen.example/"),
            delete(UsageEvent).where(UsageEvent.tenant_id == OWNER),
        ):
            result: Any = await session.execute(statement)
            assert result.rowcount == 0
        given_away = update(EndpointRow).values(tenant_id=OWNER)
        with pytest.raises(DBAPIError, match="row-level security"):
            await session.execute(given_away)
    replay = metadata().tables["webhook_replays"].insert()
    values = {
        "id": "0194b1e0-0000-7000-8000-000000000002",
        "endpoint_id": seeds.ids["endpoint_id"],
        "state": "running",
        "until": func.now(),
        "states": [],
        "topics": [],
        "rate_per_second": 1,
        "cursor": "",
        "queued": 0,
        "next_at": func.now(),
        "created_at": func.now(),
    }
    assert "row-level security" in await refused(session_factory, replay.values(**values))


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE usage_events",
        "SELECT digest FROM api_keys",
        "SELECT * FROM admin_acts",
        "DELETE FROM webhook_audit",
        "UPDATE prices SET currency = 'eur'",
        "DROP POLICY svc_infra_tenant ON usage_events",
        "ALTER TABLE usage_events DISABLE ROW LEVEL SECURITY",
    ],
)
async def test_what_no_tenant_may_do_is_refused(session_factory: Sessions, statement: str) -> None:
    message = await refused(session_factory, text(statement))
    assert "permission denied" in message or "must be owner" in message


async def test_a_condition_that_would_tell_is_not_tried_on_hidden_rows(
    session_factory: Sessions, seeds: Seeds, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            "CREATE FUNCTION tell(seen text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS "
            "$$ BEGIN RAISE EXCEPTION 'it saw %', seen; END $$"
        )
    async with acting(session_factory, STRANGER) as session:
        assert (await session.execute(text("SELECT id FROM webhook_endpoints WHERE tell(url)"))).all() == []
    async with acting(session_factory, OWNER) as session:
        with pytest.raises(DBAPIError, match="it saw"):
            await session.execute(text("SELECT id FROM webhook_endpoints WHERE tell(url)"))


async def copied(sessions: Sessions, table: Table, **changed: Any) -> dict[str, Any]:
    """A row of the owner's, with some values changed."""
    async with sessions() as session:
        found = await session.execute(select(table).where(table.c.tenant_id == OWNER).limit(1))
        return {**found.mappings().one(), **changed}


INDEXED = [
    table.name
    for table in WALLED
    if any(
        next(iter(index.columns)).name == "tenant_id" and index.dialect_options["postgresql"]["where"] is None
        for index in table.indexes
    )
    or next(iter(table.primary_key)).name == "tenant_id"
]


async def test_an_index_finds_the_tenants_rows_under_the_policy_too(session_factory: Sessions) -> None:
    assert {"usage_events", "usage_aggregates", "invoices", "quota_windows", "subscriptions"} <= set(INDEXED)
    async with acting(session_factory, OWNER) as session:
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        for name in INDEXED:
            plan = "\n".join(await session.scalars(text(f"EXPLAIN SELECT tenant_id FROM {name}")))
            assert re.search(r"(Index|Recheck) Cond: .*current_setting", plan), plan


async def test_a_conflict_with_a_hidden_row_changes_and_shows_nothing_of_it(
    session_factory: Sessions, seeds: Seeds
) -> None:
    """An id is the one key that tenants share; every other key of theirs begins with the tenant."""
    messages = metadata().tables["outbox_messages"]
    theirs = await copied(session_factory, messages, tenant_id=STRANGER, body=b"{}", idempotency_digest=None)
    new = postgresql.insert(messages).values(theirs)
    taking_over = new.on_conflict_do_update(index_elements=["id"], set_={"body": b"{}"})
    message = await refused(session_factory, taking_over.returning(messages.c.body))
    assert "row-level security" in message
    async with acting(session_factory, STRANGER) as session:
        passed_over = await session.execute(new.on_conflict_do_nothing().returning(messages.c.body))
        assert passed_over.all() == []
        await session.commit()
    kept = await copied(session_factory, messages, tenant_id=STRANGER)
    assert (kept["id"], kept["body"] != b"{}") == (theirs["id"], True)
    for table in WALLED:
        for key in (each for each in table.constraints if isinstance(each, UniqueConstraint)):
            assert "tenant_id" in key.columns or table.name in {"webhook_deliveries"}, (table.name, key.name)


async def test_the_key_of_a_hidden_row_is_free_for_another_tenant(
    session_factory: Sessions, seeds: Seeds
) -> None:
    events = metadata().tables["usage_events"]
    row = await copied(session_factory, events, tenant_id=STRANGER)
    async with acting(session_factory, STRANGER) as session:
        added = postgresql.insert(events).values(row).on_conflict_do_nothing().returning(events.c.id)
        assert len((await session.execute(added)).all()) == 1


@pytest.mark.parametrize("name", ["invoice_lines", "credit_notes", "credit_note_lines"])
async def test_what_belongs_to_a_row_cannot_be_added_to_another_tenants(
    session_factory: Sessions, seeds: Seeds, name: str
) -> None:
    """A foreign key sees hidden rows, so it has to be of the tenant's, too."""
    table = metadata().tables[name]
    row = await copied(session_factory, table, tenant_id=STRANGER)
    row |= {key: value for key, value in (("id", str(uuid4())), ("subscription_id", None)) if key in row}
    async with acting(session_factory, STRANGER) as session:
        await session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        with pytest.raises(DBAPIError, match="foreign key"):
            await session.execute(table.insert().values(row))


async def test_what_names_a_row_by_its_id_alone_must_see_it(session_factory: Sessions, seeds: Seeds) -> None:
    endpoints, deliveries = metadata().tables["webhook_endpoints"], metadata().tables["webhook_deliveries"]
    own = await copied(session_factory, endpoints, id=str(uuid4()), tenant_id=STRANGER)
    async with acting(session_factory, STRANGER) as session:
        await session.execute(endpoints.insert().values(own))
        await session.commit()
    changed = {"id": str(uuid4()), "endpoint_id": own["id"], "tenant_id": STRANGER}
    of_their_message = await copied(session_factory, deliveries, **changed)
    message = await refused(session_factory, deliveries.insert().values(of_their_message))
    assert "row-level security" in message
    walled = {table.name for table in WALLED}
    by_id_alone = {
        (table.name, key.referred_table.name)
        for table in WALLED
        for key in table.foreign_key_constraints
        if key.referred_table.name in walled and "tenant_id" not in key.columns
    }
    # Each of these is looked for in the policy of the table that names it.
    assert by_id_alone == {
        ("webhook_deliveries", "outbox_messages"),
        ("webhook_deliveries", "webhook_endpoints"),
        ("webhook_delivery_attempts", "webhook_deliveries"),
        ("webhook_replays", "webhook_endpoints"),
    }


async def test_a_route_whose_query_forgets_the_tenant_still_shows_nothing(
    engine: AsyncEngine, session_factory: Sessions, seeds: Seeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(session: Any, endpoint_id: str, **_: Any) -> Any:
        return get_endpoint(session, endpoint_id)

    monkeypatch.setattr(endpoint_routes, "get_endpoint", forgetful)
    key = await make_key(session_factory, STRANGER, list(TENANT_SCOPES))

    async def asked(app: FastAPI) -> int:
        async with client_of(app, {"Authorization": f"Bearer {key}"}) as client:
            return (await client.get(f"/_webhooks/endpoints/{seeds.ids['endpoint_id']}")).status_code

    assert await asked(make_app(engine)) == 200  # the first wall is down, and there is no second one
    assert await asked(make_app(engine, tenant_role=ROLE)) == 404


async def test_a_quota_is_held_behind_the_wall(
    engine: AsyncEngine, session_factory: Sessions, seeds: Seeds
) -> None:
    app = make_app(engine, tenant_role=ROLE)
    app.add_api_route("/call", lambda: {}, dependencies=[Depends(require_quota("calls"))])
    key = await make_key(session_factory, OWNER, list(TENANT_SCOPES))
    async with client_of(app, {"Authorization": f"Bearer {key}"}) as client:
        assert (await client.get("/call")).status_code == 200
        async with engine.begin() as connection:
            await connection.exec_driver_sql(f"REVOKE ALL ON quota_windows FROM {ROLE}")
        assert (await client.get("/call")).status_code == 500  # it was the role's to use


async def test_a_role_that_is_not_held_back_is_refused(engine: AsyncEngine) -> None:
    def check(connection: Connection, role: str) -> str:
        with pytest.raises(InvalidSettings) as refusal:
            require_isolation(connection, role)
        return str(refusal.value)

    async with engine.connect() as connection:
        assert "superuser" in await connection.run_sync(check, "postgres")
        assert "no role" in await connection.run_sync(check, "nobody_there")
        assert "63" in await connection.run_sync(check, 'x"; DROP TABLE jobs; --')
        await connection.exec_driver_sql(f"ALTER ROLE {ROLE} BYPASSRLS")
        assert "bypasses" in await connection.run_sync(check, ROLE)
        await connection.exec_driver_sql(f"ALTER ROLE {ROLE} NOBYPASSRLS")
        await connection.exec_driver_sql("ALTER TABLE invoices DISABLE ROW LEVEL SECURITY")
        assert "invoices" in await connection.run_sync(check, ROLE)


def test_migrate_makes_the_role_and_its_policies(empty_database_url: str) -> None:
    setting = ["--database-url", empty_database_url, "--set", f"database.tenant_role={ROLE}_cli"]
    for _ in range(2):  # and again
        result = CliRunner().invoke(cli, ["migrate", *setting])
        assert result.exit_code == 0, result.output
